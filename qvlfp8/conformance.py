"""Does a checkpoint hold what its own configuration declares, and what its recipe asked for?

Each ``check_…`` looks at one thing and yields problems; none of them decides by raising. Names in a
problem are those of the file; what is missing is named canonically (:mod:`qvlfp8.structure`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from qvlfp8 import untrusted
from qvlfp8.checkpoint import Checkpoint, NotACheckpoint, Tensor
from qvlfp8.quantization import Scheme, UnknownQuantization, excludes
from qvlfp8.quantization import read as read_scheme
from qvlfp8.structure import Linear, Part, Structure, canonical, part_of
from qvlfp8.tensorfile import read_bytes, values_of_each

Finding = Literal[
    "config-contradicts-config",
    "config-contradicts-tensors",
    "dtype-mismatch",
    "file-invalid",
    "file-missing",
    "missing-tensor",
    "quantized-outside-scope",
    "scale-missing",
    "scale-not-finite",
    "scale-not-positive",
    "scope-not-quantized",
    "shape-mismatch",
    "stray-vision-kv-scale",
    "tie-contradicts-tensors",
    "unexpected-tensor",
    "weight-not-finite",
    "weight-all-zero",
]

FP8 = "F8_E4M3"
SCALES = ("weight_scale", "input_scale")
KV_SCALES = ("k_proj.k_scale", "v_proj.v_scale")

_DTYPES: Mapping[str, str] = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong: a finding's id, the tensor, module or file, and a sentence."""

    finding: Finding
    subject: str
    detail: str


@dataclass(frozen=True)
class Case:
    """A checkpoint with its structure and quantization scheme, its tensors by canonical name."""

    checkpoint: Checkpoint
    model: Structure
    scheme: Scheme

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by canonical name; of two spellings of one name the first counts."""
        named: dict[str, Tensor] = {}
        for name, tensor in self.checkpoint.tensors.items():
            named.setdefault(canonical(name), tensor)
        return named

    @cached_property
    def dtype(self) -> str:
        """The type of everything that is not quantized, as config.json declares it."""
        config = self.checkpoint.config
        return _DTYPES.get(str(config.get("dtype", config.get("torch_dtype"))), "BF16")

    def is_fp8(self, linear: Linear) -> bool:
        """Whether the module's weight really is FP8."""
        weight = self.tensors.get(f"{linear.name}.weight")
        return weight is not None and weight.dtype == FP8

    def declared_fp8(self, linear: Linear) -> bool:
        """Whether the configuration says that the module is FP8."""
        return self.scheme.fp8 and not excludes(self.scheme.exclusions, linear.name)

    def quantized(self, part: Part) -> tuple[list[str], list[str]]:
        """Give the part's linear modules in FP8, and those that are not."""
        linears = [linear for linear in self.model.linears.values() if linear.part == part]
        return (
            [linear.name for linear in linears if self.is_fp8(linear)],
            [linear.name for linear in linears if not self.is_fp8(linear)],
        )

    def kv_scales(self, part: Part) -> list[str]:
        """Give the part's key and value cache scales, by canonical name."""
        return [
            name for name in self.tensors if name.endswith((".k_scale", ".v_scale")) and part_of(name) == part
        ]


def check_all(case: Case, recipe: Mapping[str, Any] | None) -> Iterator[Problem]:
    """Run every check; with a recipe also those against its scope."""
    yield from check_files(case.checkpoint)
    yield from check_both_configs(case)
    yield from check_structure(case)
    yield from check_tie(case)
    yield from check_weight_values(case)
    yield from check_linears(case)
    yield from check_kv_scales(case, calibrated=recipe is not None)
    yield from check_scale_values(case)
    yield from check_foreign(case)
    if recipe is not None:
        yield from check_scope(case, recipe)


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
        other = read_scheme(held.hf_quant_config)
    except UnknownQuantization as error:
        yield Problem(finding="config-contradicts-config", subject="hf_quant_config.json", detail=str(error))
        return
    for what, here, there in (
        ("exclusions", sorted(case.scheme.exclusions), sorted(other.exclusions)),
        ("FP8 KV cache", case.scheme.kv_fp8, other.kv_fp8),
    ):
        if here != there:
            detail = f"{what}: config.json has {here}, hf_quant_config.json {there}"
            yield Problem(finding="config-contradicts-config", subject="hf_quant_config.json", detail=detail)


def check_tie(case: Case) -> Iterator[Problem]:
    """Check that an lm_head which is stored beside tied embeddings is the same: serving drops it."""
    head = case.tensors.get("lm_head.weight")
    embedding = case.tensors.get("model.embed_tokens.weight")
    if not case.model.tied or head is None or embedding is None:
        return
    if read_bytes(head) != read_bytes(embedding):
        detail = "the configuration ties it to the embeddings, from which it differs"
        yield Problem(finding="tie-contradicts-tensors", subject=head.name, detail=detail)


def check_weight_values(case: Case) -> Iterator[Problem]:
    """Check that no stored weight is NaN or infinite, and that no FP8 weight is all zero."""
    for tensor in case.checkpoint.tensors.values():
        if tensor.dtype not in {FP8, "BF16"}:
            continue
        raw = read_bytes(tensor)
        if not _all_finite(tensor.dtype, raw):
            yield Problem(finding="weight-not-finite", subject=tensor.name, detail="it holds NaN or infinity")
        elif tensor.dtype == FP8 and not raw.strip(b"\0"):
            yield Problem(finding="weight-all-zero", subject=tensor.name, detail="every element is zero")


def _all_finite(dtype: str, raw: bytes) -> bool:
    """E4M3 has NaN at all ones and no infinity; BF16 has both where the exponent is all ones."""
    if dtype == FP8:
        return b"\x7f" not in raw and b"\xff" not in raw
    high = raw[1::2]
    if b"\x7f" not in high and b"\xff" not in high:
        return True
    return not any(h in {0x7F, 0xFF} and low & 0x80 for low, h in zip(raw[0::2], high, strict=True))


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


def check_structure(case: Case) -> Iterator[Problem]:
    """Check that every tensor of the model is there, in its shape and, unless FP8, its type."""
    for name, shape in case.model.shapes.items():
        tensor = case.tensors.get(name)
        if tensor is None:
            if name not in case.model.optional:
                yield Problem(finding="missing-tensor", subject=name, detail=f"{list(shape)} is expected")
            continue
        if tensor.shape != shape:
            yield _wrong_shape(tensor, f"{list(shape)} is expected")
        is_weight = name.removesuffix(".weight") in case.model.linears
        if tensor.dtype != case.dtype and not (is_weight and tensor.dtype == FP8):
            yield _wrong_dtype(tensor, case.dtype)


def check_linears(case: Case) -> Iterator[Problem]:
    """Check that configuration, weight and scales of every linear module agree."""
    for linear in case.model.linears.values():
        weight = case.tensors.get(f"{linear.name}.weight")
        if weight is None:
            continue
        fp8, declared = case.is_fp8(linear), case.declared_fp8(linear)
        if fp8 != declared:
            says = "quantizes the module" if declared else "leaves the module unquantized"
            yield Problem(
                finding="config-contradicts-tensors",
                subject=weight.name,
                detail=f"the configuration {says}, the weight is {weight.dtype}",
            )
        for scale in SCALES:
            found = case.tensors.get(f"{linear.name}.{scale}")
            if fp8 and found is None:
                yield _missing_scale(f"{linear.name}.{scale}", "the weight is FP8")
            if not fp8 and found is not None:
                yield Problem(
                    finding="unexpected-tensor",
                    subject=found.name,
                    detail=f"a scale, but the weight is {weight.dtype}",
                )


def check_kv_scales(case: Case, *, calibrated: bool) -> Iterator[Problem]:
    """Check that the KV scales of the language model are all there, or none if there may be none.

    ModelOpt writes no scale for a quantizer with a constant range; vLLM then takes 1.0. So an FP8
    cache without any scale is sound unless ``calibrated`` says that the recipe measured them.
    """
    found = case.kv_scales("language_model")
    if not case.scheme.kv_fp8:
        for name in found:
            yield Problem(
                finding="config-contradicts-tensors",
                subject=case.tensors[name].name,
                detail="a KV cache scale, but the configuration has no FP8 KV cache",
            )
    elif found or calibrated:
        for name in expected_kv_scales(case.model):
            if name not in case.tensors:
                yield _missing_scale(name, "the configuration has an FP8 KV cache")


def expected_kv_scales(model: Structure) -> list[str]:
    """Give the canonical names of all KV cache scales of the language model."""
    return [f"{attention}.{scale}" for attention in model.attentions for scale in KV_SCALES]


def check_scale_values(case: Case) -> Iterator[Problem]:
    """Check that scales are F32 and of one element, finite and above zero."""
    scales = [tensor for name, tensor in case.tensors.items() if name.endswith("_scale")]
    whole = [tensor for tensor in scales if tensor.dtype == "F32" and tensor.shape in {(), (1,)}]
    found = {tensor.name: numbers[0] for tensor, numbers in values_of_each(whole)}
    for tensor in scales:
        if tensor.dtype != "F32":
            yield _wrong_dtype(tensor, "F32")
        elif tensor.name not in found:
            yield _wrong_shape(tensor, "a scale has one element")
        else:
            yield from _check_value(tensor, found[tensor.name])


def _check_value(tensor: Tensor, value: float) -> Iterator[Problem]:
    if not math.isfinite(value):
        yield Problem(finding="scale-not-finite", subject=tensor.name, detail=f"it is {value}")
    elif value <= 0:
        yield Problem(finding="scale-not-positive", subject=tensor.name, detail=f"it is {value}")


def check_foreign(case: Case) -> Iterator[Problem]:
    """Check that every tensor belongs to a module, and no module has a tensor twice."""
    known = set(case.model.shapes) | set(expected_kv_scales(case.model))
    known.update(f"{linear}.{scale}" for linear in case.model.linears for scale in SCALES)
    vision_scales = set(case.kv_scales("vision"))
    for name, tensor in case.checkpoint.tensors.items():
        ours = canonical(name)
        if case.tensors[ours] is not tensor:
            yield Problem(
                finding="unexpected-tensor",
                subject=name,
                detail=f"{case.tensors[ours].name} is the same in another spelling",
            )
        elif ours in vision_scales:
            yield Problem(
                finding="stray-vision-kv-scale",
                subject=name,
                detail="the vision tower has no KV cache; vLLM has no parameter for it",
            )
        elif ours not in known:
            yield Problem(finding="unexpected-tensor", subject=name, detail="no module has such a tensor")


def check_scope(case: Case, recipe: Mapping[str, Any]) -> Iterator[Problem]:
    """Check that what the recipe names is quantized, and nothing else."""
    parts: tuple[Part, ...] = ("language_model", "vision", "head")
    for part in parts:
        fp8, unquantized = case.quantized(part)
        total = len(fp8) + len(unquantized)
        if part in recipe["scope"]:
            yield from _outside("scope-not-quantized", part, unquantized, total, "are not FP8")
        else:
            yield from _outside("quantized-outside-scope", part, fp8, total, "are FP8")
    wanted = recipe["kv_cache"]["format"] == "fp8"
    if wanted != case.scheme.kv_fp8:
        yield Problem(
            finding="scope-not-quantized" if wanted else "quantized-outside-scope",
            subject="kv_cache",
            detail=f"the recipe says {recipe['kv_cache']['format']}, the configuration does not",
        )


def _outside(finding: Finding, part: Part, modules: list[str], total: int, what: str) -> Iterator[Problem]:
    if modules:
        detail = f"{len(modules)} of {total} linear modules {what}, {modules[0]} first"
        yield Problem(finding=finding, subject=part, detail=detail)


def _missing_scale(name: str, why: str) -> Problem:
    return Problem(finding="scale-missing", subject=name, detail=f"{why}, its scale is not there")


def _wrong_dtype(tensor: Tensor, expected: str) -> Problem:
    return Problem(
        finding="dtype-mismatch",
        subject=tensor.name,
        detail=f"it is {tensor.dtype}, {expected} is expected",
    )


def _wrong_shape(tensor: Tensor, expected: str) -> Problem:
    return Problem(
        finding="shape-mismatch",
        subject=tensor.name,
        detail=f"it is {list(tensor.shape)}; {expected}",
    )
