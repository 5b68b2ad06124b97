"""Records that stand for no current step: what they were of is shown as stale, never as current. Pure.

A step's digest is its name. A record that is not found under a current one was made with another worker,
lock, recipe or model; it still says that its cell was executed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from qvlfp8.cells import GENERATED, OF_CHECKPOINT, Cell, Stage
from qvlfp8.plan import Plan
from qvlfp8.report.table import CellView, StageView
from qvlfp8.results import Record, RecordedStage

__all__ = ["Outdated", "outdated", "with_stale"]

Outdated = Mapping[tuple[RecordedStage, str], Record]
"""By what is executed and its subject: the last record of it, where none is current."""

_INPUTS = {
    "worker": "the source of its worker",
    "judgement": "how it is judged",
    "params": "its recipe or options",
    "lock": "its environment's lock",
    "needs": "what it was executed on",
}


def outdated(records: Iterable[Record], plan: Plan) -> Outdated:
    """Those of the records that stand for no step of the plan."""
    keys = {key for step in plan.steps.values() for key in step.evidence}
    found: dict[tuple[RecordedStage, str], Record] = {}
    for record in records:
        if record.digest in plan.steps or (record.evidence in keys and record.elsewhere):
            continue
        known = found.get((record.stage, record.subject))
        if known is None or known.started < record.started:
            found[record.stage, record.subject] = record
    return found


def with_stale(view: CellView, plan: Plan, old: Outdated) -> CellView:
    """A cell in which what was not run, and has an outdated record, is stale."""
    return replace(view, stages=tuple(_stage(view.cell, stage, plan, old) for stage in view.stages))


def _stage(cell: Cell, stage: StageView, plan: Plan, old: Outdated) -> StageView:
    if stage.status != "not run":
        return stage
    record = old.get(_key(cell, stage.stage))
    if record is None:
        return stage
    changed = _changed(record, plan, cell, stage.stage)
    because = f"executed {record.started[:10]} ({record.status}); since then {changed}"
    return replace(
        stage, status="stale", because=because, digest=record.digest, where=record.host, device="cpu"
    )


def _key(cell: Cell, stage: Stage) -> tuple[RecordedStage, str]:
    if stage in GENERATED:
        return "generate", cell.id
    if stage in OF_CHECKPOINT:
        return "quantize" if stage == "quantize" else "inspect", cell.checkpoint
    return "preflight", f"{cell.checkpoint}/{cell.serve.id}"


def _changed(record: Record, plan: Plan, cell: Cell, stage: Stage) -> str:
    """Which inputs differ, in words."""
    step = plan.step(cell, stage)
    now = {
        **step.inputs,
        "params": dict(step.params),
        "needs": list(step.needs),
        "lock": next(
            (plan.steps[n].inputs["lock"] for n in step.needs if plan.steps[n].stage == "build"), None
        ),
    }
    changed = [
        text
        for name, text in _INPUTS.items()
        if name in record.inputs and record.inputs[name] != now.get(name)
    ]
    # What it was executed on differs whenever anything before it does: the nearer reason says more.
    told = [text for text in changed if text != _INPUTS["needs"]] or changed
    return f"{' and '.join(told) or 'what it was asked'} changed"
