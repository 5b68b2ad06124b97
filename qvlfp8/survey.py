"""Which records of a plan still speak of what is there now. Pure.

A record is found by its step's *input* digest. What it read besides - the model, the checkpoint - is
named in it by content, so that a record whose checkpoint has since been made anew, and differently,
is told apart: it is stale, and never shown as current. So is a step of which there is nothing but an older
record, under another digest: it says which of the inputs has changed since.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qvlfp8.plan import SHORT, Plan, Step
from qvlfp8.results import Record

Lookup = Callable[[Step], Record | None]
"""The stored record of a step, or None where it was not executed."""

REMADE = "what it was executed on has been made anew since, and differs"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is known of one step."""

    record: Record | None
    stale: bool = False
    because: str = ""
    """What has changed since, of a stale one; it has no record if only an older one was found."""
    elsewhere: bool = False
    """The record is committed evidence of another machine, on a checkpoint whose digest it names."""
    earlier_worker: bool = False
    """The worker that executed it elsewhere had another source than today's, which its key leaves out."""

    @property
    def final(self) -> Record | None:
        """The record, if it is current and not an error: nothing is to be executed again."""
        settled = self.record is not None and not self.stale and self.record.status != "error"
        return self.record if settled else None


_NEVER = Seen(record=None)


def survey(plan: Plan, lookup: Lookup, older: Lookup | None = None) -> dict[str, Seen]:
    """Look every step of the plan up, by digest, in the plan's order.

    Args:
        plan: it may lack steps of which there is no record.
        older: the newest record of a step's stage and subject that is not the step's own.
    """
    seen: dict[str, Seen] = {}
    for step in plan.steps.values():
        record = lookup(step)
        if record is None:
            before = older(step) if older else None
            known = Seen(record=None, stale=True, because=changed(before, step)) if before else _NEVER
            seen[step.digest] = known
            continue
        elsewhere = record.elsewhere
        stale = not elsewhere and _stale(record, step, seen)
        seen[step.digest] = Seen(
            record=record,
            stale=stale,
            because=REMADE if stale else "",
            elsewhere=elsewhere,
            earlier_worker=elsewhere and _earlier_worker(record, step),
        )
    return seen


def changed(record: Record, step: Step) -> str:
    """Which inputs of a record are no longer those of the step, in one sentence."""
    said = record.inputs.get("asked") or _partly(record, step)
    other = [name for name, value in said.items() if not _holds(name, value, step)]
    if not other:
        return "what it was executed on has changed since, or was made another way"
    verb = "has" if len(other) == 1 else "have"
    return f"{', '.join(other)} {verb} changed since {record.started[:10]}"


def _holds(name: str, value: str, step: Step) -> bool:
    if value == step.asked.get(name):
        return True
    # A run on a GPU may have been made in either lock for one.
    return name == f"lock of {step.environment}" and value in step.standing


def _partly(record: Record, step: Step) -> dict[str, str]:
    """What a record that does not name its inputs says of them: its own worker, lock and parameters."""
    inputs = record.inputs
    told = {
        f"{step.stage} worker": inputs.get("worker"),
        "judgement": inputs.get("judgement"),
        f"lock of {step.environment}": inputs.get("lock"),
    }
    found = {name: value[:SHORT] for name, value in told.items() if value is not None and name in step.asked}
    if "params" in inputs and inputs["params"] != dict(step.params):
        found["recipe" if "recipe" in step.params else "exam and options"] = "another"
    return found


def _earlier_worker(record: Record, step: Step) -> bool:
    """Whether its worker, or that of the checkpoint it is about, had another source."""
    said = record.inputs.get("asked")
    if said is None:
        return bool(record.inputs.get("worker") != step.inputs.get("worker"))
    return any(value != said.get(name) for name, value in step.asked.items() if name.endswith(" worker"))


def _stale(record: Record, step: Step, seen: Mapping[str, Seen]) -> bool:
    for need in step.needs:
        needed = seen.get(need, _NEVER)
        source = needed.record
        if source is None or source.stage == "build":
            continue
        if needed.stale or source.made is None or record.read.get(need) != source.made:
            return True
    return False
