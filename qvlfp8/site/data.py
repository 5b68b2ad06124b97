"""What the site is made from: every cell with what its records say, and those records. Only reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from qvlfp8.cells import GENERATED, Cell, Stage
from qvlfp8.observed import notes
from qvlfp8.parts import parts
from qvlfp8.plan import Plan
from qvlfp8.project import Project
from qvlfp8.report.evidence import judged_marks
from qvlfp8.report.table import Answered, CellView, view_cells
from qvlfp8.results import Record
from qvlfp8.site.names import slug
from qvlfp8.site.outcome import Outcome, ended_at, executed, furthest, outcome
from qvlfp8.site.untrusted import excerpt
from qvlfp8.survey import survey
from qvlfp8.untrusted import collection_paused

__all__ = ["Elsewhere", "Site", "SiteCell", "gather", "page_of", "record_name"]


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """The same cell, run on another accelerator."""

    view: CellView
    outcome: Outcome
    record: Record
    agrees: bool
    """Whether it ended alike at every stage that a run answers, speed aside."""


@dataclass(frozen=True, kw_only=True)
class SiteCell:
    """One cell, what it is shown as, and what of it was executed.

    ``records`` are those that speak of its stages, by stage; ``baseline`` is the unquantized model's run
    that its own is held against. ``notes`` are findings that fail nothing.
    """

    cell: Cell
    view: CellView
    outcome: Outcome
    furthest: Stage | None
    executed: bool
    earlier: bool
    """Its run was made elsewhere, by a worker whose source has changed since."""
    records: Mapping[Stage, Record]
    baseline: Record | None = None
    notes: tuple[tuple[Stage, str], ...] = ()
    elsewhere: tuple[Elsewhere, ...] = ()

    @cached_property
    def at(self) -> Stage:
        """The stage at which it ended."""
        return ended_at(self.view)

    @cached_property
    def findings(self) -> tuple[str, ...]:
        """The findings that fail its stages, each once."""
        return tuple(dict.fromkeys(name for stage in self.view.stages for name in stage.findings))

    @cached_property
    def shown(self) -> tuple[str, ...]:
        """The findings that its stages show, whether or not they fail them."""
        return tuple(dict.fromkeys((*self.findings, *(name for _, name in self.notes))))

    @cached_property
    def hardware(self) -> tuple[str, ...]:
        """What vLLM was run on: accelerators, or ``CPU``; nothing if it was not run."""
        ran = [self.records[stage] for stage in GENERATED if stage in self.records]
        ran += [other.record for other in self.elsewhere]
        return tuple(dict.fromkeys(record.host.accelerator or "CPU" for record in ran))

    @property
    def page(self) -> str | None:
        """Its page, relative to the site; None where nothing was executed."""
        return page_of(self.cell) if self.executed else None


@dataclass(frozen=True, kw_only=True)
class Site:
    """All cells of matrix.yaml, in its order, and the records of the unquantized models."""

    project: Project
    plan: Plan
    cells: tuple[SiteCell, ...]

    @cached_property
    def by_id(self) -> Mapping[str, SiteCell]:
        """Cells by id."""
        return {cell.cell.id: cell for cell in self.cells}

    @cached_property
    def records(self) -> Mapping[str, Record]:
        """Every record that a page speaks of, by the name of its file."""
        found: dict[str, Record] = {}
        for cell in self.cells:
            others = [other.record for other in cell.elsewhere]
            for record in (*cell.records.values(), *([cell.baseline] if cell.baseline else []), *others):
                found.setdefault(record_name(record), record)
        return dict(sorted(found.items()))

    def log(self, record: Record) -> str:
        """The end of a record's log; empty where the log did not come with it."""
        if record.elsewhere or not record.log:
            return ""
        text = self.project.store.log(record.stage, record.digest)
        return excerpt(text.replace("\r\n", "\n").replace("\r", "\n"))


def page_of(cell: Cell) -> str:
    """A cell's page; the name does not depend on what else there is."""
    return f"cells/{cell.id.replace('/', '~')}.html"


def record_name(record: Record) -> str:
    """File name of a record's copy: several machines may have executed one step."""
    return f"{record.stage}-{record.digest[:16]}-{slug(record.host.accelerator or 'cpu')}.json"


def gather(project: Project, early: Callable[[Site], None] | None = None) -> Site:
    """Look every cell of a project up, in its store and in its committed records.

    Args:
        project: whose.
        early: is given a site of about half of the checkpoints, with all their cells, before the others are
            looked up.

    Raises:
        QvlError: a lock or a committed record is not valid.
    """
    # What is gathered lives until the end: looking through it for what does not finds nothing.
    with collection_paused():
        cells = project.cells(everything=True)
        plan = project.plan(cells, project.locks(cells))
        answered = Answered()
        found: dict[str, SiteCell] = {}
        for part in parts(cells, 2 if early else 1):
            told = tuple(_gather(project, plan.part(part) if early else plan, answered))
            if early and not found:
                early(Site(project=project, plan=plan, cells=told))
            found |= {cell.cell.id: cell for cell in told}
        # Those of no cell as well: a folder of records is valid as a whole.
        deque(project.evidence.records(), maxlen=0)
        return Site(project=project, plan=plan, cells=tuple(found[cell.id] for cell in cells))


def _gather(project: Project, plan: Plan, answered: Answered) -> Iterator[SiteCell]:
    seen = survey(plan, project.lookup, project.older)
    current = {digest: found.record for digest, found in seen.items() if found.record}
    views = view_cells(plan, seen, project.matrix.bounds, answered=answered)
    told: list[dict[Stage, Record]] = [
        {
            stage.stage: record
            for stage in view.stages
            if stage.status in {"pass", "fail", "error", "stale"}
            and stage.digest
            and (record := current.get(stage.digest) or project.older(plan.steps[stage.digest])) is not None
        }
        for view in views
    ]
    loaded = {view.cell.id: records.get("load") for view, records in zip(views, told, strict=True)}
    elsewhere = _elsewhere(project, plan, answered, loaded)
    for own, said in zip(views, told, strict=True):
        view, records = own, said
        step = plan.step(view.cell, "load") if "load" in plan.stages[view.cell.id] else None
        baseline = current.get(plan.baseline(view.cell).digest) if step and "load" in records else None
        runs = elsewhere.get(view.cell.id, {})
        if "load" not in records and runs:
            # Another accelerator has more records of this vLLM, and none of this cell.
            run = next(iter(runs.values()))
            view = _with_run(view, run.view)
            records = {**records, **dict.fromkeys(_answered(run.view), run.record)}
            baseline = run.baseline
        yield _cell(view, records, baseline, runs)


def _with_run(view: CellView, run: CellView) -> CellView:
    """A cell with the stages of another view's run."""
    ran = {stage.stage: stage for stage in run.stages if stage.stage in GENERATED}
    return replace(view, stages=tuple(ran.get(stage.stage, stage) for stage in view.stages))


def _answered(run: CellView) -> Iterator[Stage]:
    """The stages of a run that its record speaks of."""
    for stage in run.stages:
        if stage.stage in GENERATED and stage.status in {"pass", "fail", "error"}:
            yield stage.stage


def _cell(
    view: CellView,
    records: Mapping[Stage, Record],
    baseline: Record | None,
    elsewhere: Mapping[str, _Run],
) -> SiteCell:
    cell = view.cell
    load = records.get("load")
    here = load.host.accelerator if load else None
    others = [
        Elsewhere(
            view=run.view,
            outcome=outcome(run.view),
            record=run.record,
            agrees=judged_marks(run.view) == judged_marks(view),
        )
        for name, run in elsewhere.items()
        if name != here
    ]
    return SiteCell(
        cell=cell,
        view=view,
        outcome=outcome(view),
        furthest=furthest(view),
        executed=executed(view),
        earlier=any(stage.earlier_worker for stage in view.stages if stage.stage in GENERATED),
        records=records,
        baseline=baseline,
        notes=tuple(_notes(view, records)),
        elsewhere=tuple(others),
    )


def _notes(view: CellView, records: Mapping[Stage, Record]) -> Iterator[tuple[Stage, str]]:
    for stage in view.stages:
        if stage.status in {"pass", "fail"} and stage.stage in records:
            failing = set(stage.findings)
            for name in dict.fromkeys(notes(stage.stage, records[stage.stage])):
                if name not in failing:
                    yield stage.stage, name


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A cell on one accelerator: what its run says, its record, and that of the unquantized model there."""

    view: CellView
    record: Record
    baseline: Record | None


def _elsewhere(
    project: Project, plan: Plan, answered: Answered, loaded: Mapping[str, Record | None]
) -> Mapping[str, Mapping[str, _Run]]:
    """Cell id -> accelerator -> its run there; nothing of a cell without a run but the one ``loaded``."""
    # Read once, a record is one object.
    cells = [
        cell
        for cell in plan.cells
        if any(record is not loaded.get(cell.id) for record in project.evidence.of(cell.id))
    ]
    found: dict[str, dict[str, _Run]] = {}
    if not cells:
        return found
    part = plan.part(cells)
    for name in project.evidence.accelerators:
        seen = survey(part, project.evidence.at(name).record)
        for view in view_cells(part, seen, project.matrix.bounds, answered=answered):
            record = seen[part.step(view.cell, "load").digest].record
            if record is not None:
                baseline = seen[part.baseline(view.cell).digest].record
                run = _Run(view=view, record=record, baseline=baseline)
                found.setdefault(view.cell.id, {})[record.host.accelerator or "CPU"] = run
    return found
