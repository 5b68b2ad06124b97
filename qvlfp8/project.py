"""A project folder: matrix.yaml, recipes/, locks and the store, and the plan that follows from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qvlfp8.errors import UsageError
from qvlfp8.expect import surprise
from qvlfp8.locks import Lock, read_lock
from qvlfp8.matrix import STAGES, Cell, Environment, Matrix, read_matrix, select
from qvlfp8.plan import Plan, Step, make_plan
from qvlfp8.report.table import CellView, view_cells
from qvlfp8.results import Record
from qvlfp8.store import Store
from qvlfp8.survey import survey


@dataclass(frozen=True, kw_only=True)
class Project:
    """matrix.yaml, read, and the store that belongs to it."""

    matrix: Matrix
    store: Store

    @classmethod
    def open(cls, matrix: Path, store: Path | None = None) -> Project:
        """Read a project.

        Raises:
            FileFormatError: matrix.yaml or a recipe is missing or not valid.
            UsageError: the store's path cannot be resolved.
        """
        read = read_matrix(matrix)
        place = store or matrix.parent / ".qvlfp8"
        try:
            return cls(matrix=read, store=Store(place.resolve()))
        except (OSError, RuntimeError) as error:
            raise UsageError(f"{place}: not a usable path: {error}", mend="name another (--store)") from None

    @property
    def environments(self) -> dict[str, Environment]:
        """Every environment by id."""
        return {environment.id: environment for environment in self.matrix.environments}

    def locks(self, cells: Iterable[Cell]) -> dict[str, Lock]:
        """The lock of each environment that the cells name.

        Raises:
            LockError: one is missing or out of date.
        """
        named = {e.id: e for cell in cells for e in (cell.quantize, cell.serve)}
        return {name: read_lock(self.matrix, environment) for name, environment in named.items()}

    def cells(self, *, only: Sequence[str] = (), everything: bool = False) -> tuple[Cell, ...]:
        """The cells asked for.

        Raises:
            UsageError: a glob of ``only`` names no cell, or there is none in the default slice.
        """
        for glob in only:
            if not select(self.matrix.cells, only=(glob,), everything=True):
                raise UsageError(f"--only {glob!r} names no cell", mend="`qvlfp8 plan --all` lists all cells")
        chosen = select(self.matrix.cells, only=only, everything=everything)
        if not chosen:
            raise UsageError(
                "no cell is in the default slice",
                mend="mark models and environments with `default: true` in matrix.yaml, or use --all",
            )
        return chosen

    def plan(self, cells: Sequence[Cell], locks: Mapping[str, Lock]) -> Plan:
        """The steps of these cells."""
        return make_plan(cells, {name: lock.digest for name, lock in locks.items()})

    def lookup(self, step: Step) -> Record | None:
        """The stored record of a step."""
        return self.store.record(step.stage, step.digest)

    def views(self, plan: Plan) -> tuple[CellView, ...]:
        """The plan's cells with what their records say."""
        return view_cells(plan, survey(plan, self.lookup))

    def surprises(self, view: CellView) -> Iterator[tuple[str, str | None]]:
        """(stage, what is not as expected or None) for each stage of a cell."""
        expected_failure = False
        for stage in view.stages:
            expected = self.matrix.expected(view.cell, stage.stage)
            yield (
                stage.stage,
                surprise(view.cell, stage, expected, blocked_as_expected=expected_failure),
            )
            # inspect and preflight stand side by side on quantize: only its failure blocks them.
            expected_failure |= bool(expected) and stage.stage == STAGES[0]
