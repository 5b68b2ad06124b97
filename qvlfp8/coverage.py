"""Which expectations cover which cells, of many cells. Pure.

:meth:`qvlfp8.cells.Expectation.covers` says it of one. Of most globs the checkpoint alone decides: whatever
follows ``vlm-fp8/modelopt-0.41.0/seeing-untied/``, ``lm-fp8/*`` does not match it and ``vlm-*`` does. So of
each cell only those expectations are looked at that its checkpoint leaves open.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from qvlfp8.cells import OF_CHECKPOINT, Cell, Expectation, Stage, admits, globs

__all__ = ["Coverage"]

Covering = tuple[int, Expectation]
"""An expectation and its place in matrix.yaml."""


@dataclass(frozen=True, slots=True)
class _Open:
    """An expectation that may cover cells of a checkpoint; ``settled``: it does, if it admits their vLLM."""

    index: int
    expectation: Expectation
    stages: tuple[Stage, ...]
    settled: bool


class Coverage:
    """The expectations of a matrix, asked of its cells one after the other."""

    def __init__(self, expectations: Sequence[Expectation]) -> None:
        self._expectations = tuple(expectations)
        self._of_recipe: dict[str, tuple[Covering, ...]] = {}
        self._alone: dict[str, tuple[tuple[Stage, Covering], ...]] = {}
        self._open: dict[str, tuple[_Open, ...]] = {}

    def of(self, cell: Cell) -> Mapping[Stage, tuple[Covering, ...]]:
        """The expectations of each stage of a cell that has any, in matrix.yaml's order."""
        if cell.checkpoint not in self._open:
            self._open[cell.checkpoint] = tuple(self._left_open(cell))
            self._alone[cell.checkpoint] = tuple(self._of_checkpoint(cell))
        found: dict[Stage, tuple[Covering, ...]] = {}
        for stage, one in self._alone[cell.checkpoint]:
            found[stage] = (*found.get(stage, ()), one)
        for left in self._open[cell.checkpoint]:
            known = left.expectation
            if not admits(known.vllm, cell.serve.vllm):
                continue
            for stage in left.stages:
                if stage in cell.stages if left.settled else known.covers(cell, stage):
                    found[stage] = (*found.get(stage, ()), (left.index, known))
        return found

    def _of(self, recipe: str) -> tuple[Covering, ...]:
        """Those that may cover cells of a recipe: of most globs its name decides."""
        if recipe not in self._of_recipe:
            start = f"{recipe}/"
            self._of_recipe[recipe] = tuple(
                (index, one)
                for index, one in enumerate(self._expectations)
                if _matches(globs(one.cells), start) is not False
                and _matches(globs(one.without), start) is not True
            )
        return self._of_recipe[recipe]

    def _of_checkpoint(self, cell: Cell) -> Iterator[tuple[Stage, Covering]]:
        for index, one in self._of(cell.recipe.id):
            for stage in one.shows:
                if stage in OF_CHECKPOINT and one.covers(cell, stage):
                    yield stage, (index, one)

    def _left_open(self, cell: Cell) -> Iterator[_Open]:
        start = f"{cell.checkpoint}/"
        for index, one in self._of(cell.recipe.id):
            stages = tuple(stage for stage in one.shows if stage not in OF_CHECKPOINT)
            admitted = admits(one.modelopt, cell.quantize.modelopt) and admits(
                one.transformers, cell.quantize.transformers
            )
            inside = _matches(globs(one.cells), start)
            outside = _matches(globs(one.without), start)
            if stages and admitted and inside is not False and outside is not True:
                settled = inside is True and outside is False
                yield _Open(index, one, stages, settled)


def _matches(patterns: Iterable[str], start: str) -> bool | None:
    """Whether one of the globs matches every text with this beginning (True), or none (False); else None."""
    told = [_matches_one(pattern, start) for pattern in patterns]
    if True in told:
        return True
    return None if None in told else False


def _matches_one(pattern: str, start: str) -> bool | None:
    if pattern.endswith("*") and fnmatchcase(start, pattern):
        return True
    plain = _PLAIN.match(pattern)
    literal = plain[0] if plain else ""
    return None if start.startswith(literal) or literal.startswith(start) else False


_PLAIN = re.compile(r"[^*?\[]*")
