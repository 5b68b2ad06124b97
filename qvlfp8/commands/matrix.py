"""``qvlfp8 matrix`` and ``qvlfp8 table``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
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
from qvlfp8.plan import Plan
from qvlfp8.project import Project
from qvlfp8.report.progress import ConsoleProgress
from qvlfp8.report.render import print_table, to_json, to_markdown
from qvlfp8.report.table import CellView
from qvlfp8.run import Here, Runner
from qvlfp8.store import writing


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
    console = Console(stderr=True)
    project = Project.open(matrix, store)
    cells = project.cells(only=only, everything=everything)
    faults: list[QvlError] = []
    lacking: Mapping[str, str] = {}
    with ExitStack() as stack:
        stack.enter_context(project.store.locked())
        progress = stack.enter_context(ConsoleProgress(console, verbose=verbose))
        if engine != "ray":
            plan, _ = execute(
                project,
                cells,
                progress,
                engine=engine,
                again=again,
                evidence=evidence,
                jobs=jobs,
                faults=faults,
            )
        else:
            from qvlfp8.commands.cluster import ClusterOptions, execute_on_cluster

            options = ClusterOptions.of(of_cluster)
            plan, faults, lacking = execute_on_cluster(
                project, cells, progress, options, again=again, evidence=evidence, jobs=jobs
            )
    views = project.views(plan, project.executed, lacking)
    _publish(project, views)
    print_table(Console(), views)
    console.print(_summary(project, plan, views), markup=False, highlight=False, soft_wrap=True)
    if faults:
        raise faults[0]
    raise_for_errors(views)
    surprises = dict.fromkeys(text for v in views for _, text in project.surprises(v) if text)
    if surprises:
        listed = "\n".join(surprises)
        raise UnexpectedError(f"{len(surprises)} stages ended otherwise than matrix.yaml expects:\n{listed}")


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
) -> tuple[Plan, Engine]:
    """Execute what cells need and is not executed yet; the store is locked by the caller.

    Args:
        evidence: whether a committed record of another machine stands for a run.
        faults: takes what kept steps from being executed; without it the first is raised.

    Returns:
        The plan, and the engine, in which more can be run.

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
    Runner(plan, place, progress=progress, lookup=lookup, again=again).run()
    if faults is not None:
        faults += place.faults
        return plan, running_in
    if place.faults:
        raise place.faults[0]
    raise_for_errors(project.views(plan, project.executed))
    return plan, running_in


def _publish(project: Project, views: Sequence[CellView]) -> None:
    with writing(project.store.root):
        (project.store.root / "matrix.md").write_text(to_markdown(views), encoding="utf-8")
        (project.store.root / "matrix.json").write_text(to_json(views), encoding="utf-8")


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


def show_table(
    matrix: Path,
    store: Path | None,
    *,
    only: Sequence[str],
    everything: bool,
    form: Literal["terminal", "markdown", "json"],
) -> None:
    """Print the matrix from the records there are."""
    project = Project.open(matrix, store)
    cells = project.cells(only=only, everything=everything)
    views = project.views(project.plan(cells, project.locks(cells)))
    match form:
        case "terminal":
            print_table(Console(), views)
        case "markdown":
            print(to_markdown(views), end="")
        case "json":
            print(to_json(views), end="")
