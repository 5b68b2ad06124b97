"""How a tensor's shape differs from the model's, without the numbers: what a loader's answer hangs on."""

from __future__ import annotations

import math
from collections.abc import Iterator

__all__ = ["RIGHT", "Shape", "different", "relation"]

Shape = tuple[int, ...]

RIGHT = "right"
"""The shape is the expected one."""

_WIDE = 3
"""From this rank on (the convolution of the patches) a loader compares whole shapes."""


def relation(shape: Shape, expected: Shape) -> str:
    """Name the difference: :data:`RIGHT`, a sign for each side, or how the rank differs.

    Signs are ``=``, ``<``, ``>``, and for sides that broadcast or vanish ``1`` and ``0``.
    """
    if shape == expected:
        return RIGHT
    if len(shape) != len(expected):
        return f"rank{min(len(shape), 3)}-{_content(shape, expected)}"
    if len(shape) >= _WIDE:
        return "wide-one" if math.prod(shape) == 1 else "wide"
    return "".join(_sign(side, wanted) for side, wanted in zip(shape, expected, strict=True))


def _content(shape: Shape, expected: Shape) -> str:
    count = math.prod(shape)
    if count == 0:
        return "none"
    if count == 1:
        return "one"
    if [side for side in shape if side != 1] == [side for side in expected if side != 1]:
        return "padded"
    return "flat" if count == math.prod(expected) else "other"


def _sign(side: int, wanted: int) -> str:
    if side == wanted:
        return "="
    if side <= 1:
        return str(side)
    return "<" if side < wanted else ">"


def different(expected: Shape) -> Iterator[Shape]:
    """One shape for each relation other than :data:`RIGHT` that an expected shape can have.

    Sides of the expected shape are even and at least 4, or it is a scalar.
    """
    seen = {RIGHT}
    for shape in _candidates(expected):
        found = relation(shape, expected)
        if found not in seen:
            seen.add(found)
            yield shape


def _candidates(expected: Shape) -> Iterator[Shape]:
    if len(expected) in (1, 2):
        choices = [(side, side // 2, side * 2, 1, 0) for side in expected]
        pairs = [(first,) for first in choices[0]]
        if len(expected) == 2:
            pairs = [(first, second) for first in choices[0] for second in choices[1]]  # type: ignore[misc]
        yield from pairs
    elif expected:
        yield (expected[0] * 2, *expected[1:])
        yield (1,) * len(expected)
    count = math.prod(expected)
    ones: Shape = ()
    for rank in range(5):
        if rank != len(expected):
            yield (0,) * rank if rank else ()
            yield ones
            yield (count, *(1,) * (rank - 1)) if rank else ()
            yield (count * 2 + 3, *(3,) * (rank - 1)) if rank else ()
            if rank > len(expected):
                yield (1,) * (rank - len(expected)) + expected
            if 0 < rank < len(expected) and count:
                yield (count // expected[-1], *expected[-1:])[:rank]
        ones = (*ones, 1)
