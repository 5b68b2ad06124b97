"""What a checkpoint is, in a few lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qvlfp8.claims import FileClaim
from qvlfp8.declared import Method
from qvlfp8.describe import Description, PartFormats

__all__ = ["lines"]

METHODS: Mapping[Method, str] = {
    "none": "not quantized",
    "modelopt-fp8": "ModelOpt FP8",
    "modelopt-nvfp4": "ModelOpt NVFP4",
    "modelopt-kv-cache-only": "ModelOpt, the KV cache only",
    "compressed-tensors-fp8": "compressed-tensors FP8",
    "compressed-tensors-nvfp4": "compressed-tensors NVFP4",
}
_PARTS = {"vision": "vision tower", "language_model": "language model", "head": "lm_head"}


def lines(of: Description) -> Iterator[str]:
    """Say what a checkpoint is; a line for each thing, the sizes in decimal units."""
    stored = ", ".join(f"{dtype} {_size(count)}" for dtype, count in of.bytes_by_dtype)
    files = "1 file" if of.weight_files == 1 else f"{of.weight_files} files"
    yield (
        f"{of.title}: {_count(of.parameters)} parameters, {of.layers} layers,"
        f" {of.vision_blocks} vision blocks; {of.tensors} tensors in {files} ({stored})"
    )
    by = f", by {of.producer} {of.producer_version or ''}".rstrip() if of.producer else ""
    yield f"{METHODS[of.method]}{by}; activation scales: {of.activations}"
    for part in of.parts:
        yield f"{_PARTS[part.part]}: {_part(part, tied=of.tied)}"
    yield from _kv_cache(of)
    for claim in of.claims:
        yield from _claim(claim)
    yield from of.claims_differ
    if of.missing_files:
        yield f"missing: {', '.join(of.missing_files)}"


def _part(part: PartFormats, *, tied: bool) -> str:
    if not part.formats:
        return "not stored, tied to the embedding" if tied else "not stored"
    said = ", ".join(f"{count} {form}" for form, count in part.formats)
    return f"{said}; the first otherwise is {part.first_exception}" if part.partial else said


def _kv_cache(of: Description) -> Iterator[str]:
    kv = of.kv_cache
    if kv.declared is not None or kv.scales:
        declared = "FP8" if kv.declared else "not quantized"
        yield f"KV cache: {declared}, {kv.scales} of {kv.expected} scales"
    if kv.stray:
        yield f"KV cache scales of the vision tower, which has no cache: {', '.join(kv.stray)}"


def _claim(claim: FileClaim) -> Iterator[str]:
    taken = "" if claim.taken else " (not taken: config.json counts)"
    if claim.unknown:
        yield f"{claim.file}{taken}: says what is not known: {claim.unknown}"
        return
    yield f"{claim.file}{taken} excludes {', '.join(claim.exclusions) or 'nothing'}"
    for what, names in (
        ("excluded, yet quantized", claim.stored_quantized),
        ("not excluded, yet not quantized", claim.stored_unquantized),
        ("quantized in another format than it says", claim.stored_otherwise),
    ):
        if names:
            yield f"{claim.file}: {what}: {', '.join(names)}"


def _size(count: int) -> str:
    for unit, width in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= width:
            return f"{count / width:.1f} {unit}"
    return f"{count} B"


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.1f} billion" if parameters >= 5e7 else f"{parameters / 1e6:.1f} million"
