"""The compatibility matrix as rows: what each cell's furthest executed stage says. Pure.

A cell is shown by what was executed for it and nothing else: a preflight that passed is shown as that,
not as "works"; what was not run is shown as not run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qvlfp8.matrix import STAGES, Cell, Stage
from qvlfp8.plan import Plan, Step
from qvlfp8.results import Status
from qvlfp8.survey import Seen


@dataclass(frozen=True, kw_only=True)
class Cause:
    """A finding that fails a stage, and the first thing that showed it."""

    id: str
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class StageView:
    """One stage of one cell."""

    stage: Stage
    status: Status
    causes: tuple[Cause, ...] = ()
    because: str = ""
    digest: str = ""

    @property
    def findings(self) -> tuple[str, ...]:
        """The ids of the causes."""
        return tuple(cause.id for cause in self.causes)


@dataclass(frozen=True, kw_only=True)
class CellView:
    """One cell: its stages in order."""

    cell: Cell
    stages: tuple[StageView, ...]

    @property
    def decisive(self) -> StageView:
        """The stage that the table shows: the worst one, the last if all passed."""
        for status in _WORST_FIRST:
            for view in self.stages:
                if view.status == status:
                    return view
        return self.stages[-1]


_WORST_FIRST: tuple[Status, ...] = ("error", "fail", "stale", "blocked", "not run")


def view_cells(plan: Plan, seen: Mapping[str, Seen]) -> tuple[CellView, ...]:
    """All cells of a plan with what their records say."""
    return tuple(
        CellView(cell=cell, stages=tuple(_view(plan, seen, cell, stage) for stage in STAGES))
        for cell in plan.cells
    )


def _view(plan: Plan, seen: Mapping[str, Seen], cell: Cell, stage: Stage) -> StageView:
    step = plan.step(cell, stage)
    found = seen[step.digest]
    sources = [record for need in _ancestors(plan, step) if (record := seen[need].record)]
    failed = next((record for record in sources if record.status != "pass"), None)
    if failed is not None and not (failed.stage == "build" and found.record):
        because = f"{failed.stage} of {failed.subject}: {failed.because()}"
        return StageView(stage=stage, status="blocked", because=because, digest=step.digest)
    if found.record is None:
        return StageView(stage=stage, status="not run", digest=step.digest)
    if found.stale:
        because = "what it was executed on has been made anew since, and differs"
        return StageView(stage=stage, status="stale", because=because, digest=step.digest)
    return StageView(
        stage=stage,
        status=found.record.status,
        causes=tuple(
            Cause(id=f.id, text="; ".join((f.summary, *f.evidence[:2]))) for f in found.record.causes
        ),
        because=found.record.because(),
        digest=step.digest,
    )


def _ancestors(plan: Plan, step: Step) -> Iterable[str]:
    for need in step.needs:
        yield from _ancestors(plan, plan.steps[need])
        yield need


SYMBOLS: Mapping[Status, str] = {
    "pass": "◐",
    "fail": "✗",
    "error": "!",
    "stale": "~",
    "blocked": "▪",
    "not run": "·",
}

LEGEND = (
    (
        "◐",
        "loads: vLLM's own loader took every tensor (preflight, no GPU); text and image were not run",
    ),
    ("✗", "fails at the stage that the letter names"),
    ("!", "error: the machine's or the harness's fault, not the checkpoint's"),
    ("~", "stale: what it was executed on has changed since"),
    ("▪", "blocked: an earlier stage failed"),
    ("·", "not run"),
)


@dataclass(frozen=True, kw_only=True)
class Reason:
    """One cause behind marks that are not clean, with the letter that stands for it in the table."""

    letter: str
    stage: Stage
    what: str
    cells: int
    text: str
    example: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows are checkpoints, columns serve environments."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    reasons: tuple[Reason, ...]


def make_table(views: Iterable[CellView]) -> Table:
    """Lay the cells out; a mark is a symbol and the letters of its causes."""
    views = tuple(views)
    causes: dict[tuple[Stage, str], list[tuple[CellView, Cause]]] = {}
    for view in views:
        for stage in view.stages:
            for cause in _causes(stage):
                causes.setdefault((stage.stage, cause.id), []).append((view, cause))
    letters = {key: _letter(index) for index, key in enumerate(causes)}
    columns = tuple(dict.fromkeys(view.cell.serve.id for view in views))
    rows: dict[str, dict[str, str]] = {}
    for view in views:
        found = [letters[s.stage, cause.id] for s in view.stages for cause in _causes(s)]
        mark = SYMBOLS[view.decisive.status] + ("".join(f" {letter}" for letter in found))
        rows.setdefault(view.cell.checkpoint, {})[view.cell.serve.id] = mark
    return Table(
        columns=columns,
        rows=tuple((name, tuple(marks.get(c, "") for c in columns)) for name, marks in rows.items()),
        reasons=tuple(
            Reason(
                letter=letters[key],
                stage=key[0],
                what=key[1],
                cells=len(seen),
                text=seen[0][1].text,
                example=seen[0][0].cell.id,
            )
            for key, seen in causes.items()
        ),
    )


def _causes(view: StageView) -> tuple[Cause, ...]:
    if view.status == "error" or (view.status == "fail" and not view.causes):
        return (Cause(id=view.status, text=view.because),)
    return view.causes


def _letter(index: int) -> str:
    """a, b, …, z, aa, ab, …"""
    high, low = divmod(index, 26)
    return (_letter(high - 1) if high else "") + chr(ord("a") + low)
