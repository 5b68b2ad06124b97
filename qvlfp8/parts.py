"""Cells in parts that are looked up apart from one another: whole checkpoints, as chance has it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

from qvlfp8.cells import Cell

__all__ = ["parts"]


def parts(cells: Sequence[Cell], count: int) -> tuple[tuple[Cell, ...], ...]:
    """Up to ``count`` parts of about as many checkpoints each; every checkpoint's cells are in one of them.

    Which part a checkpoint is in follows from its name: those of one recipe or model take the same time, and
    are not all in the same.
    """
    names = sorted({cell.checkpoint for cell in cells}, key=lambda name: (crc32(name.encode()), name))
    part_of = {name: place % count for place, name in enumerate(names)}
    found: dict[int, list[Cell]] = {}
    for cell in cells:
        found.setdefault(part_of[cell.checkpoint], []).append(cell)
    return tuple(tuple(found[number]) for number in sorted(found))
