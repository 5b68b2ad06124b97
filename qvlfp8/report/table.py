"""The compatibility matrix as rows: what each cell's furthest executed stage says. Pure.

A cell is shown by what was executed for it and nothing else: a preflight that passed is shown as that,
not as "works"; what was not run is shown as not run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from qvlfp8 import results, scoring
from qvlfp8.cells import GENERATED, Cell, Stage
from qvlfp8.environments import Device
from qvlfp8.findings import Finding
from qvlfp8.plan import NOTHING, Plan, Step
from qvlfp8.results import Host, Record, Status
from qvlfp8.scoring import Bounds
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
    device: Device = "cpu"
    where: Host | None = None
    """The machine that executed it."""
    measured: Mapping[str, Any] = field(default_factory=dict)
    earlier_worker: bool = False
    """It was executed elsewhere, by a worker whose source has changed since; :attr:`remark` says so."""
    older: bool = False
    """Of a stale one: there is nothing but a record of something else than what is asked now."""
    lacking: bool = False
    """No machine that could be had has what it asks for; ``because`` says what."""

    @property
    def remark(self) -> str:
        """What a reader has to know beside the status, in a sentence; empty if there is nothing."""
        return EARLIER_WORKER if self.earlier_worker else ""

    @property
    def excused(self) -> bool:
        """Whether it was not run, as it is now, because this machine cannot."""
        elsewhere = self.device == "cuda" or self.lacking
        return elsewhere and (self.status == "not run" or self.older)

    @property
    def findings(self) -> tuple[str, ...]:
        """The ids of the causes."""
        return tuple(cause.id for cause in self.causes)


@dataclass(frozen=True, kw_only=True)
class CellView:
    """One cell: its stages in order."""

    cell: Cell
    stages: tuple[StageView, ...]

    @cached_property
    def decisive(self) -> StageView:
        """The stage that the table shows: the worst one; the last that was run if all passed.

        A run of vLLM that passed answers for a stage before it that was not executed on this machine, or
        not since it has changed; one that cannot be had here, for want of a GPU, does not hide what was.
        """
        found = {view.status for view in self.stages}
        ran = [view for view in self.stages if view.stage in GENERATED and view.status == "pass"]
        for status in (*_BAD, *_ABSENT):
            if status not in found:
                continue
            for view in self.stages:
                answered = bool(ran) and status in {"stale", *_ABSENT} and view.stage not in GENERATED
                if view.status == status and not view.excused and not answered:
                    return view
        return [view for view in self.stages if view.status == "pass"][-1]

    def stage(self, name: Stage) -> StageView | None:
        """One stage; None if the cell's model has not got it."""
        for view in self.stages:
            if view.stage == name:
                return view
        return None


def difference(view: CellView) -> str | None:
    """Where what preflight foretold and what a run showed differ, in one line; None if they agree.

    Preflight foretells that a checkpoint loads and that no part of it is left unset or misread; a run
    agrees if it loads, speaks and sees.
    """
    foretold = view.stage("preflight")
    ran = [stage for stage in view.stages if stage.stage in ("load", "text", "image")]
    if foretold is None or foretold.status not in {"pass", "fail"}:
        return None
    if not ran or any(stage.status not in {"pass", "fail", "blocked"} for stage in ran):
        return None
    failed = [stage for stage in ran if stage.status == "fail"]
    if (foretold.status == "fail") == bool(failed):
        return None
    if failed:
        return f"preflight passed, the run failed at {failed[0].stage}: {failed[0].because}"
    return f"preflight failed ({foretold.because}), the run passed"


_BAD: tuple[Status, ...] = ("error", "fail", "stale")
_ABSENT: tuple[Status, ...] = ("blocked", "not run")


def view_cells(
    plan: Plan,
    seen: Mapping[str, Seen],
    bounds: Callable[[Cell], Bounds],
    lacking: Mapping[str, str] = NOTHING,
    answered: Answered | None = None,
) -> tuple[CellView, ...]:
    """All cells of a plan with what their records say.

    Args:
        plan: of the cells.
        seen: what is known of its steps.
        bounds: those of a cell's recipe.
        lacking: what steps ask for that no machine has, by digest.
        answered: what is known already of what runs say; takes what is scored now.
    """
    known = Answered() if answered is None else answered
    # A checkpoint's steps are those of all its cells.
    executed: dict[str, tuple[StageView, ...]] = {}
    return tuple(
        CellView(
            cell=cell,
            stages=tuple(
                _lacking(view, lacking)
                for view in (
                    *_executed(plan, seen, cell, executed),
                    *_generated(plan, seen, cell, bounds, known),
                )
            ),
        )
        for cell in plan.cells
    )


def _lacking(view: StageView, lacking: Mapping[str, str]) -> StageView:
    if view.status != "not run" or view.digest not in lacking:
        return view
    return replace(view, because=lacking[view.digest], lacking=True)


def _executed(
    plan: Plan, seen: Mapping[str, Seen], cell: Cell, known: dict[str, tuple[StageView, ...]]
) -> Iterable[StageView]:
    """What the locks say, and the stages with a step and a record of their own.

    ``known``: what steps say, by digest; takes what they say now.
    """
    missing = [Cause(id=UNRESOLVED, text=f"{s.subject}: {s.unresolved}") for s in plan.unresolved(cell)]
    yield StageView(
        stage="resolve",
        status="fail" if missing else "pass",
        causes=tuple(missing),
        because="; ".join(f"{cause.id}: {cause.text}" for cause in missing),
    )
    for stage in cell.stages:
        if stage not in plan.stages[cell.id] or stage in GENERATED:
            continue
        step = plan.step(cell, stage)
        if step.digest not in known:
            known[step.digest] = _of_step(plan, seen, step, stage)
        yield from known[step.digest]


def _of_step(plan: Plan, seen: Mapping[str, Seen], step: Step, stage: Stage) -> tuple[StageView, ...]:
    found = seen[step.digest]
    known = _unexecuted(plan, seen, step, (stage,))
    if known or found.record is None:
        return known or (StageView(stage=stage, status="not run", digest=step.digest),)
    view = StageView(
        stage=stage,
        status=found.record.status,
        causes=_as_causes(found.record.causes),
        because=found.record.because(),
        digest=step.digest,
        where=found.record.host,
        measured=found.record.measured,
        earlier_worker=found.earlier_worker,
    )
    return (view,)


def _unexecuted(
    plan: Plan, seen: Mapping[str, Seen], step: Step, stages: tuple[Stage, ...]
) -> tuple[StageView, ...]:
    """What is to be said of a step's stages while it has no current record; nothing if it has one."""
    found = seen[step.digest]
    if found.elsewhere:
        return ()
    ancestors = plan.ancestors(step)
    if never := next((need for need in ancestors if need.unresolved), None):
        because = f"resolve of {never.subject}: {never.unresolved}"
        return tuple(
            StageView(stage=stage, status="blocked", digest=step.digest, because=because) for stage in stages
        )
    sources = [record for need in ancestors if (record := seen[need.digest].record)]
    failed = next((record for record in sources if record.status != "pass"), None)

    def views(status: Status, because: str, *, older: bool = False) -> tuple[StageView, ...]:
        view = partial(StageView, digest=step.digest, device=step.device, status=status, because=because)
        return tuple(view(stage=stage, older=older) for stage in stages)

    if failed is not None and not (failed.stage == "build" and found.record):
        return views("blocked", f"{failed.stage} of {failed.subject}: {failed.because()}")
    if found.record is None and found.stale:
        return views("stale", found.because, older=True)
    if found.record is None:
        return views("not run", _needs(step))
    if found.stale:
        return views("stale", found.because)
    return ()


def _needs(step: Step) -> str:
    """What keeps a step from having been executed for whoever only reads."""
    if step.device == "cuda":
        return "it needs an NVIDIA GPU, or a committed record of one"
    if step.stage == "generate":
        return (
            "vLLM's CPU build runs without a GPU, so its runs are not committed: `nox -s matrix` makes them"
        )
    return ""


def _generated(
    plan: Plan, seen: Mapping[str, Seen], cell: Cell, bounds: Callable[[Cell], Bounds], answered: Answered
) -> Iterable[StageView]:
    """The stages that one run of vLLM answers, scored against the run of the unquantized model."""
    stages = tuple(stage for stage in cell.stages if stage in GENERATED)
    if not stages:
        return
    step = plan.step(cell, stages[0])
    record = seen[step.digest].record
    known = _unexecuted(plan, seen, step, stages)
    if known or record is None:
        yield from known
        return
    control = seen[plan.baseline(cell).digest]
    baseline = control.record
    if record.status != "fail" and baseline is not None and control.elsewhere != seen[step.digest].elsewhere:
        because = "the unquantized model was run anew since, on this machine; the checkpoint on another"
        views = [StageView(stage=stage, status="stale", because=because) for stage in stages]
    else:
        views = list(answered.of(record, baseline, bounds(cell)))
    earlier = seen[step.digest].earlier_worker or control.earlier_worker
    for view in views:
        yield replace(view, digest=step.digest, device=step.device, where=record.host, earlier_worker=earlier)


class Answered:
    """What runs of vLLM say, scored once however often it is asked for: scoring goes through all answers."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, Bounds], tuple[Record, Record | None, tuple[StageView, ...]]] = {}
        self._controls: dict[int, tuple[Record, scoring.Control]] = {}

    def of(self, record: Record, baseline: Record | None, bounds: Bounds) -> tuple[StageView, ...]:
        """As :func:`answers`."""
        # Records are large; who looks one up twice gets the same object. Kept here, its id is no other's.
        key = (id(record), id(baseline), bounds)
        if key not in self._known:
            views = answers(record, baseline, bounds, self._control(baseline))
            self._known[key] = (record, baseline, tuple(views))
        return self._known[key][2]

    def _control(self, baseline: Record | None) -> scoring.Control | None:
        """Many checkpoints are held against one run."""
        if baseline is None or baseline.status != "pass":
            return None
        if id(baseline) not in self._controls:
            self._controls[id(baseline)] = (baseline, scoring.Control(baseline.measured))
        return self._controls[id(baseline)][1]


def answers(
    record: Record, baseline: Record | None, bounds: Bounds, control: scoring.Control | None = None
) -> Iterable[StageView]:
    """What one run of vLLM says at each of its stages, held against the unquantized model's run.

    ``control`` is what is known already of the latter's answers.
    """
    first, *rest = GENERATED
    if record.status == "fail":
        yield StageView(
            stage=first, status="fail", causes=_as_causes(record.causes), because=record.because()
        )
        yield from (StageView(stage=stage, status="blocked", because=first) for stage in rest)
        return
    trouble = _trouble(record) or _control_trouble(baseline)
    if trouble or baseline is None:
        yield StageView(stage=first, status="error", because=trouble)
        yield from (StageView(stage=s, status="blocked", because="vLLM could not be run") for s in rest)
        return
    for stage, scored in scoring.score(record.measured, baseline.measured, bounds, control=control).items():
        bad = [finding for finding in scored.findings if finding.severity != "note"]
        yield StageView(
            stage=stage,
            status=scored.status,
            causes=_as_causes(bad),
            because="; ".join(f"{f.id}: {f.summary}" for f in bad) or scored.because or "",
            measured=scored.measured,
        )


def _trouble(record: Record) -> str:
    """Why a run says nothing of a checkpoint; empty if it does."""
    return "" if record.status == "pass" else f"{record.subject}: {record.because()}"


def _control_trouble(baseline: Record | None) -> str:
    """Why the unquantized model's run is no control: where it fails, a checkpoint cannot be blamed."""
    if baseline is None:
        return "the unquantized model was not run"
    raised = baseline.measured["load"]["exception"] if baseline.status == "pass" else None
    if raised is not None:
        return f"{baseline.subject}: vLLM cannot run it: {raised['type']}: {raised['message'][:300]}"
    return _trouble(baseline)


def _as_causes(findings: Iterable[Finding | results.Finding]) -> tuple[Cause, ...]:
    return tuple(Cause(id=f.id, text="; ".join((f.summary, *f.evidence[:2]))) for f in findings)


UNRESOLVED = "does-not-resolve"
"""The finding of an environment whose versions do not fit together."""

EARLIER_WORKER = "executed elsewhere by an earlier version of the worker: its source has changed since"

SEES = "●"
LOADS = "◐"

SYMBOLS: Mapping[Status, str] = {
    "pass": LOADS,
    "fail": "✗",
    "error": "!",
    "stale": "~",
    "blocked": "▪",
    "not run": "·",
}

LEGEND = (
    (SEES, "sees: run in vLLM; its answers depend on the picture, are right, and stay close to BF16's"),
    (
        LOADS,
        "loads: vLLM's own loader took every tensor (preflight, no GPU); text and image were not run",
    ),
    ("✗", "fails, by the causes that the letters name"),
    ("!", "error: the machine's or the harness's fault, not the checkpoint's"),
    ("~", "stale: what it was executed on, or by, has changed since"),
    ("▪", "blocked: an earlier stage failed"),
    ("·", "not run"),
)


def symbol(view: CellView) -> str:
    """The mark of a cell."""
    decisive = view.decisive
    held = [stage.stage for stage in view.stages if stage.status == "pass"]
    sees = decisive.status == "pass" and {"load", "text", "image", "fidelity"} <= set(held)
    return SEES if sees else SYMBOLS[decisive.status]


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
    differences: tuple[tuple[str, str], ...] = ()
    """Cell id, and where its preflight and its run differ."""


def make_table(views: Iterable[CellView]) -> Table:
    """Lay the cells out; a mark is a symbol and the letters of its causes."""
    views = tuple(views)
    causes: dict[tuple[Stage, str], list[tuple[CellView, Cause]]] = {}
    for view in views:
        for stage in view.stages:
            for cause in _causes(stage):
                causes.setdefault((stage.stage, cause.id), []).append((view, cause))
    letters = {key: _letter(index) for index, key in enumerate(causes)}
    columns = tuple(dict.fromkeys(view.cell.server for view in views))
    rows: dict[str, dict[str, str]] = {}
    for view in views:
        found = [letters[s.stage, cause.id] for s in view.stages for cause in _causes(s)]
        mark = symbol(view) + ("".join(f" {letter}" for letter in found))
        rows.setdefault(view.cell.checkpoint, {})[view.cell.server] = mark
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
        differences=tuple((view.cell.id, text) for view in views if (text := difference(view))),
    )


def _causes(view: StageView) -> tuple[Cause, ...]:
    if view.status == "error" or (view.status == "fail" and not view.causes):
        return (Cause(id=view.status, text=view.because),)
    if view.status == "stale":
        # One run of vLLM answers several stages, and is stale in all of them.
        return () if view.stage in GENERATED[1:] else (Cause(id="stale", text=view.because),)
    return view.causes


def _letter(index: int) -> str:
    """a, b, …, z, aa, ab, …"""
    high, low = divmod(index, 26)
    return (_letter(high - 1) if high else "") + chr(ord("a") + low)
