"""What matrix.yaml has to expect for records to be no surprise. Pure; :mod:`qvlfp8.expect_edit` writes it.

An expectation that no longer shows is narrowed to where it does, or removed; a finding that nobody expected
becomes one, with the reason that a person gives. What was not executed changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from qvlfp8.cells import Cell, Expectation, Stage, globs
from qvlfp8.expect import unexpected, unshown
from qvlfp8.matrix import Matrix
from qvlfp8.report.table import StageView

Place = tuple[str, Stage]
"""A checkpoint's or cell's id, and the stage: what an expectation's globs are matched with."""


@dataclass(frozen=True, kw_only=True)
class Amendment:
    """How ``expectations`` change; numbers are places in the list as it stands."""

    removed: frozenset[int] = frozenset()
    narrowed: Mapping[int, Expectation] = field(default_factory=dict)
    """Expectations that show less, or leave more cells out; nothing else of them is another."""
    split: Mapping[int, tuple[Expectation, ...]] = field(default_factory=dict)
    """What goes beside a narrowed or removed one: its cells that still show it at other stages."""
    added: tuple[Expectation, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing changes."""
        return not (self.removed or self.narrowed or self.split or self.added)


@dataclass(frozen=True, kw_only=True)
class New:
    """What a person says of findings that nobody expected yet."""

    reason: str
    link: str | None = None
    flaky: bool = False
    cells: str | None = None
    """The glob that was asked for; it is written where it names exactly the cells that show the finding."""


def amend(
    matrix: Matrix,
    seen: Iterable[tuple[Cell, StageView]],
    new: New | None,
    *,
    asked: Callable[[Stage, str], bool] = lambda _stage, _finding: True,
) -> Amendment:
    """What makes the records no surprise.

    Args:
        seen: the stages that were executed.
        new: what is said of findings that nobody expected; without it they are left alone.
        asked: the stages and findings that may be corrected.
    """
    gone: dict[int, set[Place]] = {}
    shown: dict[str, dict[Stage, dict[str, Cell]]] = {}
    for cell, view in seen:
        if view.status not in {"pass", "fail"}:
            continue
        expected = matrix.expected(cell, view.stage)
        for expectation in unshown(view, expected):
            if asked(view.stage, expectation.shows[view.stage]):
                index = matrix.file.expectations.index(expectation)
                gone.setdefault(index, set()).add((cell.subject(view.stage), view.stage))
        for finding in unexpected(view, expected):
            if asked(view.stage, finding):
                cells = shown.setdefault(finding, {}).setdefault(view.stage, {})
                cells[cell.subject(view.stage)] = cell
    removed: set[int] = set()
    narrowed: dict[int, Expectation] = {}
    split: dict[int, tuple[Expectation, ...]] = {}
    for index, places in gone.items():
        narrower, beside = _narrow(matrix, matrix.file.expectations[index], places)
        if narrower is None:
            removed.add(index)
        else:
            narrowed[index] = narrower
        if beside:
            split[index] = beside
    added = (
        [e for finding, stages in shown.items() for e in _new(matrix, finding, stages, new)] if new else []
    )
    return Amendment(removed=frozenset(removed), narrowed=narrowed, split=split, added=tuple(added))


def _narrow(
    matrix: Matrix, old: Expectation, gone: set[Place]
) -> tuple[Expectation | None, tuple[Expectation, ...]]:
    """The expectation where it still shows (None: nowhere that a glob can name), and what goes beside it."""
    left = _covered(matrix, old) - gone
    stages = {stage for _, stage in left}
    if not stages:
        return None, ()
    shows = {stage: finding for stage, finding in old.shows.items() if stage in stages}
    without = _patterns(matrix, {place for place in gone if place[1] in stages}, left)
    narrower = old.model_copy(update={"shows": shows, "without": (*globs(old.without), *without)})
    lost = left - _covered(matrix, narrower)
    again: dict[str, set[Stage]] = {}
    for subject, stage in lost:
        again.setdefault(subject, set()).add(stage)
    beside = []
    for wanted in sorted({tuple(sorted(stages)) for stages in again.values()}):
        subjects = sorted(subject for subject, stages in again.items() if tuple(sorted(stages)) == wanted)
        kept = {stage: finding for stage, finding in old.shows.items() if stage in wanted}
        beside.append(
            Expectation(
                cells=_as_globs(subjects), shows=kept, reason=old.reason, link=old.link, flaky=old.flaky
            )
        )
    return (narrower if left - lost else None), tuple(beside)


def _covered(matrix: Matrix, expectation: Expectation) -> set[Place]:
    return {
        (cell.subject(stage), stage)
        for cell in matrix.cells
        for stage in expectation.shows
        if expectation.covers(cell, stage)
    }


def _patterns(matrix: Matrix, gone: set[Place], left: set[Place]) -> list[str]:
    """Globs for what is gone: of a whole server or checkpoint where all of it is, else one by one."""
    cells = {cell.id: cell for cell in matrix.cells}
    found = sorted({subject for subject, _ in gone if subject not in cells})
    rest = {subject for subject, _ in gone} & cells.keys()
    still = {subject for subject, _ in left} & cells.keys()
    wholes: tuple[tuple[str, Callable[[Cell], str]], ...] = (
        ("*/{}", lambda cell: cell.server),
        ("{}/*", lambda cell: cell.checkpoint),
    )
    for form, of in wholes:
        whole = _several(of(cells[subject]) for subject in rest) - {of(cells[subject]) for subject in still}
        found += [form.format(name) for name in sorted(whole)]
        rest = {subject for subject in rest if of(cells[subject]) not in whole}
    return [*found, *sorted(rest)]


def _several(names: Iterable[str]) -> set[str]:
    """Those that stand more than once."""
    seen: set[str] = set()
    twice: set[str] = set()
    for name in names:
        (twice if name in seen else seen).add(name)
    return twice


def _new(
    matrix: Matrix, finding: str, stages: Mapping[Stage, Mapping[str, Cell]], new: New
) -> Iterable[Expectation]:
    """One expectation for all stages at which the same cells show a finding."""
    of: dict[tuple[str, ...], list[Stage]] = {}
    for stage, cells in stages.items():
        of.setdefault(tuple(sorted(cells)), []).append(stage)
    for subjects, together in of.items():
        yield Expectation(
            cells=_named(matrix, subjects, together, new.cells),
            shows=dict.fromkeys(together, finding),
            reason=new.reason,
            link=new.link,
            flaky=new.flaky,
        )


def _named(
    matrix: Matrix, subjects: Sequence[str], stages: Sequence[Stage], glob: str | None
) -> tuple[str, ...] | str:
    """The glob that was asked for, if it says the same as the list."""
    if glob is not None and all(
        {cell.subject(stage) for cell in matrix.cells if fnmatchcase(cell.subject(stage), glob)}
        == set(subjects)
        for stage in stages
    ):
        return glob
    return _as_globs(subjects)


def _as_globs(subjects: Sequence[str]) -> tuple[str, ...] | str:
    return subjects[0] if len(subjects) == 1 else tuple(subjects)
