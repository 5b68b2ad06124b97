"""Findings: causes with a stable id, and how they follow from what a worker observed.

The workers report what a checkpoint holds (:mod:`qvlfp8.worker.inspect`) and what vLLM's loader did
with it (:mod:`qvlfp8.worker.preflight`); the rules here say what it means. They are pure:
observations in, findings out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qvlfp8.finding_kinds import KINDS, Kind, Severity

__all__ = ["KINDS", "Finding", "Kind", "Severity", "diagnose_inspect", "diagnose_preflight"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A diagnosed cause: an id of :data:`KINDS`, a sentence for this checkpoint, what shows it."""

    id: str
    summary: str
    evidence: tuple[str, ...] = ()

    @property
    def severity(self) -> Severity:
        """The severity of the finding's kind."""
        return KINDS[self.id].severity


def diagnose_inspect(measured: Mapping[str, Any]) -> list[Finding]:
    """Say what an inspection's problems mean: one finding an id, the problems its evidence.

    ``measured`` is the worker's result. No finding means that the inspect stage passed.
    """
    return [
        Finding(
            id=kind,
            summary=KINDS[kind].meaning,
            evidence=(*_problems(measured, kind), *_unlisted(count - len(_problems(measured, kind)))),
        )
        for kind, count in measured["counts"].items()
    ]


def _problems(measured: Mapping[str, Any], kind: str) -> list[str]:
    return [f"{p['subject']}: {p['detail']}" for p in measured["problems"] if p["finding"] == kind]


def _unlisted(count: int) -> tuple[str, ...]:
    return (f"and {count} more that are not listed",) if count > 0 else ()


def diagnose_preflight(measured: Mapping[str, Any]) -> list[Finding]:
    """Say what a preflight's observations mean; most severe first, ids of :data:`KINDS`.

    ``measured`` is the worker's result. No finding of severity ``fail`` or ``error`` means that the
    preflight stage passed.
    """
    error = measured["exception"]
    if error is not None and error["origin"] == "packages":
        return [_from_exception("packages-incompatible", error)]
    if error is not None and error["origin"] != "checkpoint":
        return [_from_exception("environment-fault", error)]
    refusals = [*measured["refused"], *([error] if error is not None else [])]
    found = _refusals(refusals, measured)
    if error is None:
        # With KV scales left out because they were refused, what their absence causes says nothing.
        rules = [rule for rule in _RULES if rule is not _kv_scales or not measured["refused"]]
        found += [finding for rule in rules for finding in rule(measured)]
    order: tuple[Severity, ...] = ("error", "fail", "note")
    return sorted(found, key=lambda finding: order.index(finding.severity))


def _refusals(errors: Sequence[Mapping[str, Any]], measured: Mapping[str, Any]) -> list[Finding]:
    """One finding an id; two refusals with one cause share it."""
    found: dict[str, Finding] = {}
    for error in errors:
        finding = _from_exception(_classify(error, measured), error)
        if earlier := found.get(finding.id):
            finding = replace(earlier, evidence=earlier.evidence + finding.evidence)
        found[finding.id] = finding
    return list(found.values())


def _from_exception(kind: str, error: Mapping[str, Any]) -> Finding:
    tensor = error.get("tensor")
    evidence = [f"{error['type']}: {error['message']}", f"raised in {error['where']}"]
    if tensor is not None:
        evidence.insert(0, f"while loading {tensor}")
    return Finding(id=kind, summary=KINDS[kind].meaning, evidence=tuple(evidence))


_KV_SCALE = re.compile(r"\.[kv]_scale$")
_LANGUAGE_KV_SCALE = re.compile(r"\.self_attn\.([kv])_proj\.\1_scale$")
_VISION = re.compile(r"^(model\.)?visual\.")
_NO_PLACE = ("no module or parameter named", "nested weight")


def _classify(error: Mapping[str, Any], measured: Mapping[str, Any]) -> str:
    tensor = error["tensor"]
    if tensor is None and measured["stage_reached"] != "load":
        return "missing-file" if error["type"] == "OSError" else "config-rejected"
    if measured.get("quantization") is None and measured["fp8_tensors"]:
        return "quantization-not-recognised"
    if error["type"] in ("AssertionError", "RuntimeError") or "shape" in error["message"]:
        return "shape-mismatch"
    if tensor is not None and _LANGUAGE_KV_SCALE.search(tensor):
        # KeyError in 0.10.0, TypeError in 0.24.0: their loaders know the name, and fail to use it.
        return "language-kv-scale-unsupported"
    homeless = error["type"] == "KeyError" or any(w in error["message"] for w in _NO_PLACE)
    if not homeless:
        return "loader-error"
    stray = tensor is not None and _is_vision(tensor) and _KV_SCALE.search(tensor)
    return "stray-vision-kv-scale" if stray else "unexpected-tensor"


MOST_EVIDENCE = 50
"""Lines of evidence in a finding. Diagnosis itself always sees everything that was measured."""


def _finding(kind: str, evidence: Sequence[str]) -> Iterator[Finding]:
    """One finding, if there is evidence."""
    if evidence:
        shown = (*evidence[:MOST_EVIDENCE], *_unlisted(len(evidence) - MOST_EVIDENCE))
        yield Finding(id=kind, summary=KINDS[kind].meaning, evidence=shown)


def _is_vision(name: str) -> bool:
    return _VISION.match(name) is not None


def _ignored(measured: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The casts into FP8 of tensors whose modules the checkpoint excludes from quantization."""
    return [
        cast
        for cast in measured["casts"]
        if cast["to"].startswith("float8") and _is_excluded(cast["tensor"], measured["exclusions"])
    ]


def _casts(measured: Mapping[str, Any]) -> Iterator[Finding]:
    to_fp8 = [cast for cast in measured["casts"] if cast["to"].startswith("float8")]
    ignored = _ignored(measured)
    for kind, vision in (
        ("vision-exclusion-ignored", True),
        ("language-model-exclusion-ignored", False),
    ):
        side = [_arrow(cast) for cast in ignored if _is_vision(cast["tensor"]) is vision]
        scales = [f"{n} never loaded" for n in _scales(measured) if _is_vision(n) is vision]
        yield from _finding(kind, [*side, *scales] if side else ())
    contradicting = [_arrow(cast) for cast in to_fp8 if cast not in ignored]
    yield from _finding("cast-to-fp8", contradicting)
    from_fp8 = [_arrow(cast) for cast in measured["casts"] if cast["from"].startswith("float8")]
    yield from _finding("cast-from-fp8", from_fp8)
    other = [_arrow(cast) for cast in measured["casts"] if "float8" not in cast["from"] + cast["to"]]
    yield from _finding("dtype-changed", other)


def _is_excluded(tensor: str, patterns: Sequence[str]) -> bool:
    """Whether the producer meant to exclude the tensor's module, however the pattern is spelled."""
    name = tensor.removeprefix("model.").removeprefix("language_model.")
    for pattern in patterns:
        stem = pattern.replace("*", "").strip(".")
        # ModelOpt 0.37.0 writes "model.layers.visual*" for the tower.
        tower = re.search(r"(^|\.)visual(\.|$)", stem)
        meant = stem[tower.start() :].strip(".") if tower else stem
        meant = meant.removeprefix("model.").removeprefix("language_model.")
        if name.startswith(meant + "."):
            return True
        if meant in ("model", "language_model") and not name.startswith("visual."):
            return True
    return False


def _arrow(cast: Mapping[str, Any]) -> str:
    return f"{cast['tensor']}: {cast['from']} -> {cast['to']}"


def _scales(measured: Mapping[str, Any]) -> list[str]:
    return [name for name in measured["never_loaded"] if name.endswith("_scale")]


def _never_loaded(measured: Mapping[str, Any]) -> Iterator[Finding]:
    scales = _scales(measured)
    weights = [name for name in measured["never_loaded"] if name not in scales]
    if measured["tie_word_embeddings"]:
        heads = [name for name in weights if name.endswith("lm_head.weight")]
        yield from _finding("tie-misread", [f"{name} never loaded" for name in heads])
        weights = [name for name in weights if name not in heads]
    # Where a whole side was built in FP8 against its exclusion, that finding lists its scales.
    explained = {_is_vision(cast["tensor"]) for cast in _ignored(measured)}
    unexplained = [name for name in scales if _is_vision(name) not in explained]
    yield from _finding("scale-never-loaded", unexplained)
    yield from _finding("weight-never-loaded", weights)
    partly = [_part(entry, "written") for entry in measured["partly_written"]]
    yield from _finding("parameter-partly-written", partly)
    fused = [_part(entry, "written") for entry in measured["fused_scales"]]
    yield from _finding("fused-scale-in-first-shard", fused)


def _part(entry: Mapping[str, Any], verb: str) -> str:
    return f"{entry['name']}: {entry['touched']} of {entry['total']} elements {verb}"


def _shapes(measured: Mapping[str, Any]) -> Iterator[Finding]:
    broadcast = [f"{_arrow(entry)} by broadcasting" for entry in measured["reshapes"]]
    yield from _finding("shape-mismatch", broadcast)
    cut = [_part(entry, "used") for entry in measured["truncated"]]
    yield from _finding("shape-mismatch", cut)
    rewritten = measured["multiply_written"]
    yield from _finding("parameter-overwritten", rewritten)


def _dropped(measured: Mapping[str, Any]) -> Iterator[Finding]:
    dropped = measured["dropped"]
    vision = [name for name in dropped if _KV_SCALE.search(name) and _is_vision(name)]
    language = [name for name in dropped if _KV_SCALE.search(name) and name not in vision]
    heads = [name for name in dropped if name.endswith("lm_head.weight")]
    # A tied head is the embeddings: a second copy of them is not missed.
    tied = heads if measured["tie_word_embeddings"] else []
    untied = [f"{name} dropped" for name in heads if name not in tied]
    unneeded = [name for name in dropped if name.endswith(_COMPUTED) or name in tied]
    known = {*vision, *language, *unneeded, *heads}
    yield from _finding("tie-misread", untied)
    yield from _finding("stray-vision-kv-scale", vision)
    yield from _finding("kv-scale-dropped", language)
    yield from _finding("tensor-unneeded", unneeded)
    lost = [name for name in dropped if name not in known]
    yield from _finding("tensor-dropped", lost)


_COMPUTED = (".inv_freq", ".cos_cached", ".sin_cached")


def _kv_scales(measured: Mapping[str, Any]) -> Iterator[Finding]:
    alone = [f"{name} has no tensor" for name in measured["kv_scales"]["unpaired"]]
    yield from _finding("kv-scale-incomplete", alone)
    if measured["kv_cache_dtype"].startswith("fp8") and not measured["kv_scales"]["in_checkpoint"]:
        evidence = [f"{len(measured['defaulted'])} scales defaulted"]
        yield from _finding("kv-scale-defaulted", evidence)


def _runner(measured: Mapping[str, Any]) -> Iterator[Finding]:
    """How vLLM would run the model; records of before this was looked at say nothing."""
    if measured.get("runner", "generate") != "generate":
        yield from _finding("not-generative", [f"vLLM's runner for it is {measured['runner']!r}"])


_RULES: tuple[Callable[[Mapping[str, Any]], Iterator[Finding]], ...] = (
    _runner,
    _casts,
    _never_loaded,
    _shapes,
    _dropped,
    _kv_scales,
)
