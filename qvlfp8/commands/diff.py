"""``qvlfp8 diff``: what differs between two runs."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from rich.console import Console

from qvlfp8.cells import Cell, Stage
from qvlfp8.errors import EXIT_UNEXPECTED, UsageError
from qvlfp8.history import Key, compare
from qvlfp8.project import Project
from qvlfp8.report.difference import print_difference, to_json, to_markdown
from qvlfp8.runs import read_run


def show_difference(matrix: Path, before: str, after: str, *, as_markdown: bool, as_json: bool) -> int:
    """Print what differs; returns 1 if something regressed, else 0.

    Raises:
        UsageError: one of the two is no run, or two forms are asked for.
        FileFormatError: matrix.yaml or a committed record is not valid.
    """
    if as_markdown and as_json:
        raise UsageError("--markdown and --json: one form at a time", mend="leave one out")
    project = Project.open(matrix)
    old, new = read_run(before, project), read_run(after, project)
    found = compare(old.outcomes, new.outcomes, _Flaky(project))
    if as_json:
        print(to_json(old, new, found), end="")
    elif as_markdown:
        print(to_markdown(old, new, found), end="")
    else:
        print_difference(Console(), old, new, found)
    return EXIT_UNEXPECTED if found.of("regressed") else 0


class _Flaky:
    """The findings that matrix.yaml expects to be flaky, by what they are of."""

    def __init__(self, project: Project) -> None:
        self._expectations = [e for e in project.matrix.file.expectations if e.flaky]
        self._cells: dict[str, Cell] = {cell.checkpoint: cell for cell in project.matrix.cells}
        self._cells |= {cell.id: cell for cell in project.matrix.cells}

    def __call__(self, key: Key) -> Set[str]:
        cell = self._cells.get(key.subject)
        if cell is None:
            return frozenset()
        stage: Stage = key.stage
        return {e.shows[stage] for e in self._expectations if e.covers(cell, stage)}
