"""The files beside the weights, and the two places of a quantization configuration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qvlfp8 import declared, untrusted
from qvlfp8.checkpoint import Checkpoint, NotACheckpoint
from qvlfp8.conformance.case import Case
from qvlfp8.conformance.problem import Problem
from qvlfp8.declared import UnknownDeclaration


def check_files(checkpoint: Checkpoint) -> Iterator[Problem]:
    """Check the files besides the weights that vLLM reads to serve pictures and chat."""
    root = checkpoint.root
    # A name to report, and the sets of files of which one must be whole.
    alternatives = {
        "tokenizer_config.json": [["tokenizer_config.json"]],
        "tokenizer.json": [["tokenizer.json"], ["vocab.json", "merges.txt"]],
        "preprocessor_config.json": [["preprocessor_config.json"]],
        "chat_template.jinja": [["chat_template.jinja"], ["chat_template.json"]],
    }
    for name, choices in alternatives.items():
        if any(all((root / file).is_file() for file in files) for files in choices):
            continue
        if name == "chat_template.jinja" and _mentions_template(checkpoint):
            continue
        yield Problem(
            finding="file-missing",
            subject=name,
            detail="copy it from the model that was quantized; vLLM needs it to serve",
        )

    yield from _check_content(checkpoint)


def _check_content(checkpoint: Checkpoint) -> Iterator[Problem]:
    """Check that the JSON files are objects, and that pictures are cut as the vision tower expects."""
    for name in ("tokenizer_config.json", "tokenizer.json", "preprocessor_config.json"):
        file = checkpoint.root / name
        if not file.is_file():
            continue
        try:
            bound = untrusted.of_tokenizer() if name == "tokenizer.json" else untrusted.of_configuration()
            content = untrusted.read_object(file, bound, "copy it from the base model", checkpoint.root)
        except NotACheckpoint as error:
            yield Problem(finding="file-invalid", subject=name, detail=error.problem)
            continue
        if name != "preprocessor_config.json":
            continue
        vision = checkpoint.config.get("vision_config", {})
        pairs = (
            ("patch_size", "patch_size"),
            ("temporal_patch_size", "temporal_patch_size"),
            ("merge_size", "spatial_merge_size"),
        )
        for here, there in pairs:
            if here in content and there in vision and content[here] != vision[there]:
                detail = f"{here} is {content[here]!r}, vision_config has {there} {vision[there]!r}"
                yield Problem(finding="file-invalid", subject=name, detail=detail)
    template = checkpoint.root / "chat_template.jinja"
    if template.is_file():
        try:
            if not _read(template, checkpoint).strip():
                yield Problem(finding="file-invalid", subject=template.name, detail="it is empty")
        except NotACheckpoint as error:
            yield Problem(finding="file-invalid", subject=template.name, detail=error.problem)


def check_both_configs(case: Case) -> Iterator[Problem]:
    """Check that config.json and hf_quant_config.json, where both speak, say the same."""
    held = case.checkpoint
    if held.quantization_source != "config.json" or held.hf_quant_config is None:
        return
    try:
        other = declared.read(held.hf_quant_config)
    except UnknownDeclaration as error:
        yield Problem(finding="config-contradicts-config", subject="hf_quant_config.json", detail=str(error))
        return
    for what, here, there in (
        ("method", case.declared.method, other.method),
        ("exclusions", sorted(case.declared.exclusions), sorted(other.exclusions)),
        ("FP8 KV cache", case.kv_fp8, other.kv_cache == "fp8"),
    ):
        if here != there:
            detail = f"{what}: config.json has {here}, hf_quant_config.json {there}"
            yield Problem(finding="config-contradicts-config", subject="hf_quant_config.json", detail=detail)


def _mentions_template(checkpoint: Checkpoint) -> bool:
    """Older transformers keep the template inside tokenizer_config.json."""
    file = checkpoint.root / "tokenizer_config.json"
    try:
        return file.is_file() and b'"chat_template"' in _read(file, checkpoint)
    except NotACheckpoint:
        return False


def _read(file: Path, checkpoint: Checkpoint) -> bytes:
    bound = untrusted.of_configuration()
    return untrusted.read_bounded(file, bound, "copy it from the base model", checkpoint.root)
