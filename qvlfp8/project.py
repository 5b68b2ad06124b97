"""A project folder: matrix.yaml, recipes/, locks and the store, and the plan that follows from them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from qvlfp8 import digest
from qvlfp8.cells import BLOCKED_BY, Cell, Stage, select
from qvlfp8.environments import Environment, ServeEnvironment
from qvlfp8.errors import UsageError
from qvlfp8.evidence import Evidence
from qvlfp8.locks import Lock, Target, find_lock, path_of, problem
from qvlfp8.matrix import Matrix, read_matrix
from qvlfp8.plan import NOTHING, LockKey, Plan, Step
from qvlfp8.planning import make_plan
from qvlfp8.results import Record
from qvlfp8.store import Store
from qvlfp8.survey import Lookup, survey
from qvlfp8.untrusted import collection_paused

if TYPE_CHECKING:
    from qvlfp8.report.table import CellView


@dataclass(frozen=True, kw_only=True)
class Project:
    """matrix.yaml, read, and the store that belongs to it."""

    matrix: Matrix
    store: Store
    results: Path | None = None
    """Where its committed records are, if not in ``results/`` beside matrix.yaml."""

    @classmethod
    def open(cls, matrix: Path, store: Path | None = None, results: Path | None = None) -> Project:
        """Read a project.

        Raises:
            FileFormatError: matrix.yaml or a recipe is missing or not valid.
            UsageError: the store's path cannot be resolved.
        """
        read = read_matrix(matrix)
        place = store or matrix.parent / ".qvlfp8"
        try:
            return cls(matrix=read, store=Store(place.resolve()), results=results)
        except (OSError, RuntimeError) as error:
            raise UsageError(f"{place}: not a usable path: {error}", mend="name another (--store)") from None

    @cached_property
    def options(self) -> str:
        """Options of the command line that name this project and store, where they are not the usual ones."""
        matrix, store = self.matrix.path, self.store.root
        found = "" if matrix == Path("matrix.yaml") else f" --matrix {shlex.quote(str(matrix))}"
        usual = (matrix.parent / ".qvlfp8").resolve()
        return found if store == usual else f"{found} --store {shlex.quote(str(store))}"

    @property
    def environments(self) -> dict[str, Environment]:
        """Every environment by id."""
        return {environment.id: environment for environment in self.matrix.environments}

    def locks(self, cells: Iterable[Cell], *, gpu: Target = "cuda") -> dict[LockKey, Lock]:
        """The locks of the environments that the cells name; some may say that there is none.

        A lock for a GPU is read where there is one: without it an environment is only asked without.

        Args:
            gpu: which lock is meant for a GPU: this machine's or a bundle's.

        Raises:
            LockError: one is missing or out of date.
        """
        cells = tuple(cells)
        named = {e.id: e for cell in cells for e in (cell.quantize, cell.serve)}
        locks: dict[LockKey, Lock] = {(i, "cpu"): find_lock(self.matrix, e) for i, e in named.items()}
        for environment in {cell.serve.id: cell.serve for cell in cells}.values():
            if environment.device == "cuda" and path_of(self.matrix, environment, gpu).exists():
                locks[environment.id, "cuda"] = find_lock(self.matrix, environment, gpu)
        return locks

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

    def plan(self, cells: Sequence[Cell], locks: Mapping[LockKey, Lock]) -> Plan:
        """The steps of these cells."""
        served = {cell.serve.id: cell.serve for cell in cells}
        return make_plan(
            cells,
            {key: lock.digest for key, lock in locks.items()},
            self.matrix.file.exam.model_dump(),
            unresolved={key: lock.unresolved for key, lock in locks.items() if lock.unresolved is not None},
            standing={name: self._standing(serve) for name, serve in served.items()},
        )

    def _standing(self, environment: ServeEnvironment) -> tuple[str, ...]:
        """Digests of the locks under which a committed record may have been made on a GPU."""
        if environment.device == "cpu":
            return ()
        targets: tuple[Target, ...] = ("cuda", "bundle")
        current = [target for target in targets if problem(self.matrix, environment, target) is None]
        return tuple(digest.of_file(path_of(self.matrix, environment, target)) for target in current)

    @cached_property
    def evidence(self) -> Evidence:
        """The committed records."""
        return Evidence(self.results or self.matrix.path.parent / "results")

    def own(self, step: Step) -> Record | None:
        """The record of a step in the store."""
        return self.store.record(step.stage, step.digest)

    def lookup(self, step: Step) -> Record | None:
        """The record of a step: this machine's own, else a committed one."""
        return self.own(step) or self.evidence.record(step)

    def executed(self, step: Step) -> Record | None:
        """The record of a step that spares executing it: what needs no GPU is proven here, not trusted."""
        return self.own(step) or self._elsewhere(step)

    def _elsewhere(self, step: Step) -> Record | None:
        return self.evidence.record(step) if step.stage == "generate" else None

    def finished(self, plan: Plan) -> set[str]:
        """The digests of a plan's steps that are done, as the store is now: no run would execute them."""
        there, elsewhere = self.store.digests(), self.evidence.has_runs
        # Of a large plan most steps have no record: that is seen at once, for all of them.
        steps = {
            digest: step
            for digest, step in plan.steps.items()
            if digest in there or (elsewhere and step.stage == "generate")
        }
        seen = survey(replace(plan, steps=steps), self.executed)
        return {digest for digest, found in seen.items() if found.final}

    def older(self, step: Step) -> Record | None:
        """The newest record of a step's stage and subject that is not current; this machine's first."""
        own = self.store.older(step.stage, step.subject, than=step.digest)
        return own or self.evidence.older(step)

    def views(
        self, plan: Plan, lookup: Lookup | None = None, lacking: Mapping[str, str] = NOTHING
    ) -> tuple[CellView, ...]:
        """The plan's cells with what their records say.

        Args:
            plan: of the cells.
            lookup: finds the records [default: all there are].
            lacking: what steps ask for that no machine has, by digest.
        """
        from qvlfp8.report.table import view_cells

        # Records live as long as the project.
        with collection_paused():
            seen = survey(plan, lookup or self.lookup, self.older)
            return view_cells(plan, seen, self.matrix.bounds, lacking)

    def surprises(self, view: CellView) -> Iterator[tuple[Stage, str | None]]:
        """(stage, what is not as expected or None) for each stage of a cell."""
        from qvlfp8.expect import surprise

        failing: set[Stage] = set()
        covering = self.matrix.coverage.of(view.cell)
        for stage in view.stages:
            expected = [expectation for _, expectation in covering.get(stage.stage, ())]
            blocking = failing & set(BLOCKED_BY[stage.stage])
            if stage.status == "not run":
                # It could have been: an environment that does not resolve blocks what needs it.
                blocking -= {"resolve"}
            blocked = bool(blocking)
            yield (
                stage.stage,
                surprise(view.cell, stage, expected, blocked_as_expected=blocked, options=self.options),
            )
            if any(not e.flaky for e in expected) or (expected and stage.status == "fail"):
                failing.add(stage.stage)
