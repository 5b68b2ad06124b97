"""What weights and scales hold: numbers, and such as a quantizer can have made."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from qvlfp8.conformance.case import Case
from qvlfp8.conformance.problem import Finding, Problem, wrong_dtype, wrong_shape
from qvlfp8.conformance.stored import FP8, GROUP, ONE
from qvlfp8.structure import Shape, canonical
from qvlfp8.tensorfile import Tensor, blocks, decode_e4m3, read_bytes, values_of_each

_ZEROS = bytes((0x00, 0x08, 0x80, 0x88))
"""Two zeros of E2M1, of either sign, in a byte."""

_READERS = 8

_SAYS: Mapping[Finding, str] = {
    "weight-not-finite": "it holds NaN or infinity",
    "weight-all-zero": "every element is zero",
}


def check_weight_values(case: Case) -> Iterator[Problem]:
    """Check that no stored weight is NaN or infinite, and that no quantized weight is all zero."""
    weights = [
        tensor
        for name, tensor in case.checkpoint.tensors.items()
        if tensor.dtype in {FP8, "BF16", "U8"} and case.scale_of(canonical(name)) is None
    ]
    # Reading gigabytes is most of it, and does not hold the interpreter.
    with ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1)) as pool:
        for tensor, fault in zip(weights, pool.map(_fault, weights), strict=True):
            if fault is not None:
                yield Problem(finding=fault, subject=tensor.name, detail=_SAYS[fault])


def _fault(tensor: Tensor) -> Finding | None:
    quantized, zero = tensor.dtype in {FP8, "U8"}, True
    for block in blocks(tensor):
        if not _all_finite(tensor.dtype, block):
            return "weight-not-finite"
        zero = zero and quantized and _all_zero(tensor.dtype, block)
    return "weight-all-zero" if zero and quantized else None


def _all_zero(dtype: str, raw: bytes) -> bool:
    # Both end at the first other byte of most weights; counting zeros would read all of it once more.
    if dtype == "U8":
        return not raw[:64].translate(None, _ZEROS) and not raw.translate(None, _ZEROS)
    return raw == bytes(len(raw))


def _all_finite(dtype: str, raw: bytes) -> bool:
    """E4M3 has NaN at all ones, BF16 NaN and infinity where the exponent is all ones, E2M1 neither."""
    if dtype == "U8":
        return True
    if dtype == FP8:
        return b"\x7f" not in raw and b"\xff" not in raw
    high = raw[1::2]
    if b"\x7f" not in high and b"\xff" not in high:
        return True
    return not any(h in {0x7F, 0xFF} and low & 0x80 for low, h in zip(raw[0::2], high, strict=True))


def check_scale_values(case: Case) -> Iterator[Problem]:
    """Check type and shape of every scale, and that its numbers are finite and above zero."""
    small: list[Tensor] = []
    for name, tensor in case.tensors.items():
        known = case.scale_of(name)
        if known is None and not name.endswith("_scale"):
            continue
        scale, shapes = (known[1], known[1].shapes(known[0])) if known else (ONE, ((), (1,)))
        if tensor.dtype not in scale.dtypes:
            yield wrong_dtype(tensor, " or ".join(scale.dtypes))
        elif tensor.shape not in shapes:
            yield wrong_shape(tensor, scale.says)
        elif tensor.dtype == FP8:
            yield from _check_groups(case, name, tensor)
        else:
            small.append(tensor)
    for tensor, numbers in values_of_each(small):
        yield from _check_numbers(tensor, numbers)


def _check_numbers(tensor: Tensor, numbers: Sequence[float]) -> Iterator[Problem]:
    """Name the first that is no number, else the first that is not above zero."""
    wrong: tuple[tuple[Finding, Callable[[float], bool]], ...] = (
        ("scale-not-finite", lambda value: not math.isfinite(value)),
        ("scale-not-positive", lambda value: value <= 0),
    )
    for finding, is_wrong in wrong:
        for index, value in enumerate(numbers):
            if is_wrong(value):
                where = "it" if len(numbers) == 1 else f"that of row {index}"
                yield Problem(finding=finding, subject=tensor.name, detail=f"{where} is {value}")
                return


def _check_groups(case: Case, name: str, tensor: Tensor) -> Iterator[Problem]:
    """Check scales of groups: zero only where the whole group is zero."""
    raw = read_bytes(tensor)
    if not _all_finite(FP8, raw):
        yield Problem(finding="scale-not-finite", subject=tensor.name, detail="it holds NaN")
        return
    if max(raw, default=0) >= 0x80:
        index, byte = next((i, byte) for i, byte in enumerate(raw) if byte >= 0x80)
        yield _not_positive(tensor, index, f"is {decode_e4m3(byte)}")
        return
    weight = case.tensors.get(f"{name.rpartition('.')[0]}.weight")
    if b"\0" in raw and weight is not None and weight.dtype == "U8":
        lost = _first_lost_group(raw, read_bytes(weight), tensor.shape, weight.shape)
        if lost is not None:
            yield _not_positive(tensor, lost, "is zero, and its values are not")


def _not_positive(tensor: Tensor, index: int, what: str) -> Problem:
    row, column = divmod(index, tensor.shape[1])
    return Problem(
        finding="scale-not-positive", subject=tensor.name, detail=f"that of row {row}, group {column} {what}"
    )


def _first_lost_group(scales: bytes, packed: bytes, shape: Shape, weight_shape: Shape) -> int | None:
    """Find the first scale of zero whose group is not all zero, as an index into the scales."""
    row_bytes = weight_shape[-1]
    at = scales.find(b"\0")
    while at >= 0:
        row, column = divmod(at, shape[1])
        start = row * row_bytes + column * GROUP // 2
        end = min(start + GROUP // 2, (row + 1) * row_bytes)
        if packed[start:end].translate(None, _ZEROS):
            return at
        at = scales.find(b"\0", at + 1)
    return None
