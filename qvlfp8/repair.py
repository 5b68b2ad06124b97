"""Mend a checkpoint without quantizing it again: what to change (pure), and the copy that has it changed.

What can be mended so: KV cache scales of the vision tower are left out, the exclusions are spelled as every
vLLM reads them and agree with the tensors, both configuration files say the same, and missing processor and
tokenizer files come from the base model. Everything else is refused, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qvlfp8 import checkpoint as ck
from qvlfp8 import conformance, declared, quantization, structure
from qvlfp8.conformance import Case, Problem
from qvlfp8.errors import RepairError
from qvlfp8.structure import Part
from qvlfp8.untrusted import printable

__all__ = ["REPORT", "Repair", "companions", "plan"]

REPORT = "repair.json"
"""The file in a mended folder that says what was changed."""

_WHOLE: tuple[tuple[Part, str], ...] = (("vision", "visual"), ("head", "lm_head"))
"""Parts that are excluded as a whole, by the one name that every vLLM from 0.10.0 on matches."""

_COMPANIONS = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
)
"""Files of a base model that quantizing does not change."""


_OUTER = frozenset({"architectures", "dtype", "model_type", "torch_dtype", "transformers_version"})
"""Fields of a ``text_config`` that are not the whole model's."""


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What to change: pure, nothing is written yet.

    ``mended`` is what the checkpoint will be; ``dropped`` are names of tensors as the files have them;
    ``written`` the JSON files to write anew; ``restored`` the files to take from the base model; ``changes``
    a sentence for each.
    """

    source: ck.Checkpoint
    mended: ck.Checkpoint
    dropped: tuple[str, ...]
    written: Mapping[str, Mapping[str, Any]]
    restored: Mapping[str, Path]
    changes: tuple[str, ...]


def plan(
    source: ck.Checkpoint,
    *,
    base: Path | None = None,
    without_kv_cache: bool = False,
    headers_only: bool = False,
) -> Repair:
    """Find the smallest change after which the checkpoint is sound.

    Args:
        source: the checkpoint to mend; it is only read.
        base: the folder of the model that was quantized, for files that ``source`` lacks.
        without_kv_cache: drop the language model's KV cache scales as well and keep the cache in BF16.
        headers_only: look at no tensor's value and at no processor or tokenizer file.

    Raises:
        RepairError: something is wrong that only quantizing again can mend.
        UnknownModel, UnknownQuantization: the checkpoint is of a kind that is not known.
    """
    model = structure.from_config(source.config)
    scheme = quantization.read(source.quantization)
    if not scheme.fp8:
        raise RepairError(f"{source.root}: it is not quantized", mend="repair is for FP8 checkpoints")
    try:
        said = declared.read(source.quantization)
    except declared.UnknownDeclaration as error:
        raise quantization.UnknownQuantization(str(error)) from None
    case = Case(source, model, said)
    dropped = tuple(case.tensors[name].name for name in case.kv_scales("vision"))
    changes = [f"drop {len(dropped)} KV cache scales of the vision tower"] if dropped else []
    if without_kv_cache:
        scales = tuple(case.tensors[name].name for name in case.kv_scales("language_model"))
        changes += [f"drop {len(scales)} KV cache scales of the language model"] if scales else []
        changes += ["declare a KV cache that is not quantized"] if scheme.kv_fp8 else []
        dropped += scales
    _check_separate(source)
    exclusions = _exclusions(case)
    kv_fp8 = scheme.kv_fp8 and not without_kv_cache
    written, respelled = _configurations(source, exclusions, kv_fp8=kv_fp8)
    changes += respelled
    files = [] if headers_only else list(conformance.check_files(source))
    restored = _restored(source, base, files)
    changes += [f"take {name} from {base}" for name in restored]
    changes = [printable(change, most=4_000) for change in changes]
    gone = set(dropped)
    kept = {name: tensor for name, tensor in source.tensors.items() if name not in gone}
    written |= _index(source, kept) if dropped else {}
    config = written.get(ck.CONFIG, source.config)
    mended = replace(
        source,
        tensors=MappingProxyType(kept),
        config=config,
        quantization=config["quantization_config"],
        quantization_source="config.json",
        hf_quant_config=written.get(ck.HF_QUANT_CONFIG, source.hf_quant_config),
    )
    _refuse(mended, model, files, restored, headers_only=headers_only)
    return Repair(
        source=source,
        mended=mended,
        dropped=dropped,
        written=written,
        restored=restored,
        changes=tuple(changes),
    )


def _check_separate(source: ck.Checkpoint) -> None:
    """Check that an hf_quant_config.json that vLLM does not take can be spelled anew.

    Raises:
        UnknownQuantization: it cannot.
    """
    separate = source.hf_quant_config or {}
    if not isinstance(separate.get("quantization", {}), Mapping):
        raise quantization.UnknownQuantization(
            f"{ck.HF_QUANT_CONFIG}: its field 'quantization' is not an object"
        )


def _exclusions(case: Case) -> list[str]:
    """The exclusions, spelled portably, that say of each whole part what its tensors are."""
    patterns = list(case.declared.exclusions)
    for part, name in _WHOLE:
        fp8, unquantized = case.quantized(part)
        if fp8 and unquantized:
            raise RepairError(
                f"{case.checkpoint.root}: of the {len(fp8) + len(unquantized)} linear modules of its {part} "
                f"{len(fp8)} are FP8, {unquantized[0]} is not; no spelling of that is known for every vLLM",
                mend="quantize the part whole, or not at all",
            )
        if fp8:
            patterns = quantization.without(patterns, fp8)
        else:
            patterns = [name, *(p for p in patterns if name not in re.split(r"[.*]", p))]
    return sorted(dict.fromkeys(patterns))


def _configurations(
    source: ck.Checkpoint, exclusions: Sequence[str], *, kv_fp8: bool
) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    """Both configuration files as they must be, where they are not so already; a sentence for each."""
    inline = source.config.get("quantization_config")
    stated = inline or source.hf_quant_config or {}
    separate = source.hf_quant_config or {
        "producer": stated.get("producer", {}),
        "quantization": {"quant_algo": "FP8"},
    }
    config = _published_form(source.config) | {
        "quantization_config": {"quant_method": "modelopt", **_respell(stated, exclusions, kv_fp8=kv_fp8)}
    }
    wanted = {
        ck.CONFIG: (source.config, config),
        ck.HF_QUANT_CONFIG: (source.hf_quant_config, _respell(separate, exclusions, kv_fp8=kv_fp8)),
    }
    written = {name: new for name, (old, new) in wanted.items() if new != old}
    spelled = ", ".join(exclusions) or "none"
    changes = [f"write the exclusions ({spelled}) into {name}" for name in written]
    if source.config.get("text_config") is not None:
        changes.insert(
            0, "write config.json in the published, flat form, which every transformers reads alike"
        )
    return dict(written), changes


def _published_form(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json without a ``text_config``: what stands there goes to the top, as in the published models.

    What stands in a ``text_config`` is read differently: vLLM before 0.20 takes the
    architecture and ``tie_word_embeddings`` from it, later ones from the top.
    """
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        return dict(config)
    flat = {key: value for key, value in config.items() if key != "text_config"}
    flat |= {key: value for key, value in text.items() if key not in _OUTER and value is not None}
    rope = flat.pop("rope_parameters", None) or flat.get("rope_scaling")
    if isinstance(rope, Mapping) and "mrope_section" in rope:
        if other := sorted(f"{key} {rope[key]}" for key in rope if not _is_plain_rope(key, rope[key])):
            raise RepairError(
                f"config.json: text_config: rope: {printable(other[0])}: "
                "no form of that is known for every vLLM",
                mend="write config.json as the published models have it, without a text_config",
            )
        flat["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
        if "rope_theta" in rope:
            flat["rope_theta"] = rope["rope_theta"]
    if "dtype" in flat:
        flat.setdefault("torch_dtype", flat["dtype"])
    flat["tie_word_embeddings"] = structure.from_config(config).tied
    return flat


def _is_plain_rope(key: str, value: object) -> bool:
    """Whether a field of the rotary embedding is one of plain mrope's, which the published form can say."""
    return key in {"mrope_section", "rope_theta"} or (
        key in {"rope_type", "type"} and value in ("default", "mrope")
    )


def _respell(stated: Mapping[str, Any], exclusions: Sequence[str], *, kv_fp8: bool) -> dict[str, Any]:
    """A configuration with these exclusions and this KV cache, under every key that a vLLM reads."""
    nested = "quantization" in stated
    inner = dict(stated["quantization"] if nested else stated)
    inner["exclude_modules"] = list(exclusions)
    inner["kv_cache_quant_algo"] = "FP8" if kv_fp8 else None
    if not nested:
        inner["ignore"] = list(exclusions)
    if not kv_fp8:
        inner.pop("kv_cache_scheme", None)
    return {**stated, "quantization": inner} if nested else inner


def _index(source: ck.Checkpoint, kept: Mapping[str, ck.Tensor]) -> dict[str, Mapping[str, Any]]:
    """The index without the tensors that are dropped; nothing if the checkpoint has none."""
    if not (source.root / ck.INDEX).exists():
        return {}
    total = sum(tensor.nbytes for tensor in kept.values())
    files = {name: tensor.file.name for name, tensor in kept.items()}
    return {ck.INDEX: {"metadata": {"total_size": total}, "weight_map": files}}


def _restored(source: ck.Checkpoint, base: Path | None, problems: Sequence[Problem]) -> dict[str, Path]:
    """The base model's files that the checkpoint lacks or has damaged, by name."""
    if base is None:
        return {}
    damaged = {problem.subject for problem in problems if problem.finding == "file-invalid"}
    found = {
        name: base / name
        for name in _COMPANIONS
        if (base / name).is_file() and (name in damaged or not (source.root / name).is_file())
    }
    for file in found.values():
        _must_be_inside(file, base)
    return found


def _must_be_inside(file: Path, root: Path) -> None:
    if not ck.is_inside(file, root):
        raise RepairError(f"{file}: a link out of the folder", mend="put the file itself there")


def _refuse(
    mended: ck.Checkpoint,
    model: structure.Structure,
    files: Sequence[Problem],
    restored: Mapping[str, Path],
    *,
    headers_only: bool,
) -> None:
    """Check what the mended checkpoint would be.

    Raises:
        RepairError: it would still not be sound.
    """
    try:
        quantization.read(mended.quantization)
        case = Case(mended, model, declared.read(mended.quantization))
        problems = [*_files(files, restored), *_tensors(case)]
        problems += [] if headers_only else conformance.check_scale_values(case)
    except (ck.NotACheckpoint, quantization.UnknownQuantization) as error:
        raise RepairError(
            f"{mended.root}: {printable(str(error))}", mend="quantize and export again"
        ) from error
    if not problems:
        return
    first = problems[0]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    is_file = first.finding in {"file-missing", "file-invalid"}
    raise RepairError(
        f"{mended.root}: {printable(first.subject)}: {printable(first.detail)}{more} [{first.finding}]",
        mend="name the base model's folder (--base)" if is_file else "quantize and export again",
    )


def _files(problems: Sequence[Problem], restored: Mapping[str, Path]) -> Iterator[Problem]:
    """Problems of files besides the weights that the base model's files do not end."""
    for problem in problems:
        template = problem.subject.startswith("chat_template") and "chat_template.json" in restored
        vocabulary = problem.subject == "tokenizer.json" and {"vocab.json", "merges.txt"} <= set(restored)
        if problem.subject not in restored and not template and not vocabulary:
            yield problem


def _tensors(case: Case) -> Iterator[Problem]:
    """Every check that headers answer."""
    yield from conformance.check_both_configs(case)
    yield from conformance.check_structure(case)
    yield from conformance.check_linears(case)
    yield from conformance.check_kv_scales(case, calibrated=False)
    yield from conformance.check_foreign(case)


def companions(repair: Repair) -> list[Path]:
    """The files of the source that are carried over as they are: all but weights and rewritten JSON.

    Raises:
        RepairError: a link leads out of the folder.
    """
    source = repair.source
    left = {*source.weight_files, *repair.written, *repair.restored, REPORT}
    files = []
    for path in sorted(source.root.iterdir()):
        if path.name in left or not path.is_file():
            continue
        files.append(path)
    for path in [*files, *(source.root / name for name in source.weight_files)]:
        _must_be_inside(path, source.root)
    return files
