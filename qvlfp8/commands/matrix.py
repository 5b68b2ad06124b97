"""``qvlfp8 matrix`` and ``qvlfp8 table``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from rich.console import Console

from qvlfp8.cells import Cell
from qvlfp8.engine import Engine
from qvlfp8.engine.choose import EngineName, make_engine
from qvlfp8.errors import QvlError, UsageError
from qvlfp8.fault_errors import error_of
from qvlfp8.host import devices
from qvlfp8.parts import parts
from qvlfp8.plan import Plan
from qvlfp8.project import Project
from qvlfp8.report.progress import ConsoleProgress
from qvlfp8.report.render import print_table, to_json, to_markdown
from qvlfp8.report.table import CellView
from qvlfp8.run import Here, Runner
from qvlfp8.sharing import beside, processes
from qvlfp8.store import writing
from qvlfp8.unchanged import Outcome, Unchanged
from qvlfp8.untrusted import collection_paused


class UnexpectedError(QvlError):
    """Stages that ended otherwise than matrix.yaml expects."""


def run_matrix(
    matrix: Path,
    store: Path | None,
    *,
    only: Sequence[str],
    everything: bool,
    again: bool,
    jobs: int | None,
    engine: EngineName | Literal["ray"],
    verbose: bool,
    evidence: bool = True,
    of_cluster: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Execute, print, and compare with what is expected.

    Args:
        evidence: as for :func:`execute`.
        of_cluster: options that only engine ``ray`` has, by the name that users give.

    Raises:
        QvlError: by class; what could be executed was.
    """
    if of_cluster and engine != "ray":
        raise UsageError(
            f"{next(iter(of_cluster))} is for --engine ray", mend="add it, or leave the option out"
        )
    console, screen = Console(stderr=True), Console()
    asked = {"only": list(only), "everything": everything, "evidence": evidence, "engine": engine}
    unchanged = _unchanged(matrix, screen, asked)
    project = Project.open(matrix, store)
    cells = project.cells(only=only, everything=everything)
    faults: list[QvlError] = []
    lacking: Mapping[str, str] = {}
    done = False
    with project.store.locked():
        known = None if again or engine == "ray" else unchanged.outcome(project.store, _outputs(project))
        if known is not None:
            _show(known, screen, console)
            return
        with ConsoleProgress(console, verbose=verbose) as progress:
            if engine != "ray":
                executed = execute(
                    project,
                    cells,
                    progress,
                    engine=engine,
                    again=again,
                    evidence=evidence,
                    jobs=jobs,
                    faults=faults,
                )
                plan, done = executed.plan, executed.done
            else:
                from qvlfp8.commands.cluster import ClusterOptions, execute_on_cluster

                options = ClusterOptions.of(of_cluster)
                plan, faults, lacking = execute_on_cluster(
                    project, cells, progress, options, again=again, evidence=evidence, jobs=jobs
                )
        views = project.views(plan, project.executed, lacking)
        _publish(project, views)
        outcome = _outcome(project, plan, views, screen)
        _show(outcome, screen, console)
        if faults:
            raise faults[0]
        raise_for_errors(views)
        surprises = dict.fromkeys(text for v in views for _, text in project.surprises(v) if text)
        if done and not surprises:
            unchanged.keep(outcome, project.store, _outputs(project), held=True)
    if surprises:
        listed = "\n".join(surprises)
        raise UnexpectedError(f"{len(surprises)} stages ended otherwise than matrix.yaml expects:\n{listed}")


@dataclass(frozen=True, kw_only=True)
class Executed:
    """What came of executing a plan."""

    plan: Plan
    engine: Engine
    """In which more can be run."""
    done: bool
    """Whether nothing is left to be executed."""


def execute(
    project: Project,
    cells: Sequence[Cell],
    progress: ConsoleProgress,
    *,
    engine: EngineName,
    again: bool = False,
    evidence: bool = True,
    jobs: int | None = None,
    faults: list[QvlError] | None = None,
) -> Executed:
    """Execute what cells need and is not executed yet; the store is locked by the caller.

    Args:
        evidence: whether a committed record of another machine stands for a run.
        faults: takes what kept steps from being executed; without it the first is raised.

    Raises:
        QvlError: as above.
    """
    locks = project.locks(cells)
    plan = project.plan(cells, locks)
    running_in = make_engine(engine, project.store, project.matrix.file.locks, announce=progress.announce)
    place = Here(
        plan,
        store=project.store,
        engine=running_in,
        environments=project.environments,
        locks=locks,
        progress=progress,
        devices=devices(),
        jobs=jobs,
    )
    lookup = project.executed if evidence else project.own
    runner = Runner(plan, place, progress=progress, lookup=lookup, again=again)
    runner.run()
    if faults is not None:
        faults += place.faults
    elif place.faults:
        raise place.faults[0]
    else:
        raise_for_errors(project.views(plan, project.executed))
    return Executed(plan=plan, engine=running_in, done=not place.faults and not runner.wanted())


def _outputs(project: Project) -> tuple[Path, Path]:
    return project.store.root / "matrix.md", project.store.root / "matrix.json"


def _publish(project: Project, views: Sequence[CellView]) -> None:
    with writing(project.store.root):
        for path, text in zip(_outputs(project), (to_markdown(views), to_json(views)), strict=True):
            path.write_text(text, encoding="utf-8")


def _unchanged(
    matrix: Path, screen: Console, asked: Mapping[str, object], kept_as: str = "unchanged"
) -> Unchanged:
    """What a run reads, and how it shows what it comes to."""
    colours = None if screen.no_color else screen.color_system
    shown = [screen.width, screen.is_terminal, colours, screen.encoding, screen.legacy_windows]
    folder = matrix.parent
    inputs = (matrix, folder / "recipes", folder / "containers" / "locks", folder / "results")
    asked = {**asked, "devices": sorted(devices()), "shown": shown}
    return Unchanged(asked, inputs, kept_as=kept_as)


def _outcome(project: Project, plan: Plan, views: Sequence[CellView], screen: Console) -> Outcome:
    return Outcome(shown=_drawn(views, screen, "terminal"), summary=_summary(project, plan, views))


def _show(outcome: Outcome, screen: Console, console: Console) -> None:
    screen.file.write(outcome.shown)
    screen.file.flush()
    console.print(outcome.summary, markup=False, highlight=False, soft_wrap=True)


def _summary(project: Project, plan: Plan, views: Sequence[CellView]) -> str:
    counts: dict[str, int] = {}
    for view in views:
        counts[view.decisive.status] = counts.get(view.decisive.status, 0) + 1
    shown = ", ".join(f"{number} {status}" for status, number in counts.items())
    left = len(project.matrix.cells) - len(plan.cells)
    rest = f"; {left} more cells with --all" if left > 0 else ""
    missing = dict.fromkeys(stage.because for view in views for stage in view.stages if stage.lacking)
    rest += "".join(f"\nnot run: {text}" for text in missing)
    root = project.store.root
    return f"{len(views)} cells: {shown}{rest}\nalso in {root / 'matrix.md'} and {root / 'matrix.json'}"


def raise_for_errors(views: Sequence[CellView]) -> None:
    """Raise for the first stage that could not be executed."""
    for view in views:
        for stage in view.stages:
            if stage.status == "error":
                what = f"{stage.stage} of {view.cell.id} could not be executed: {stage.because}"
                raise error_of(stage.because, what)


@collection_paused()
def show_table(
    matrix: Path,
    store: Path | None,
    *,
    only: Sequence[str],
    everything: bool,
    form: Literal["terminal", "markdown", "json"],
) -> None:
    """Print the matrix from the records there are; what was printed before, if nothing has changed since."""
    screen = Console()
    asked = {"only": list(only), "everything": everything}
    unchanged = _unchanged(matrix, screen, asked, kept_as=f"unchanged-{form}")
    project = Project.open(matrix, store)
    known = unchanged.outcome(project.store)
    if known is None:
        cells = project.cells(only=only, everything=everything)
        views = _views(project, project.plan(cells, project.locks(cells)))
        known = Outcome(shown=_drawn(views, screen, form))
        # Others may write to the store meanwhile: nobody holds it for a table.
        unchanged.keep(known, project.store, held=False)
    screen.file.write(known.shown)
    screen.file.flush()


def _views(project: Project, plan: Plan) -> tuple[CellView, ...]:
    """The plan's cells with what their records say; of many, another process looks half of them up."""
    if len(plan.cells) < _MANY:
        return project.views(plan)
    own, *others = (plan.part(cells) for cells in parts(plan.cells, 2))
    with beside(
        lambda: [view for other in others for view in project.views(other)], count=processes()
    ) as rest:
        found = {view.cell.id: view for view in (*project.views(own), *rest())}
    return tuple(found[cell.id] for cell in plan.cells)


_MANY = 2_000
"""Cells, from which on another process spares more time than it takes."""


def _drawn(views: Sequence[CellView], screen: Console, form: Literal["terminal", "markdown", "json"]) -> str:
    match form:
        case "terminal":
            with screen.capture() as captured:
                print_table(screen, views)
            return captured.get()
        case "markdown":
            return to_markdown(views)
        case "json":
            return to_json(views)
