"""Which records of a plan still speak of what is there now. Pure.

A record is found by its step's *input* digest. What it read besides - the model, the checkpoint - is
named in it by content, so that a record whose checkpoint has since been made anew, and differently,
is told apart: it is stale, and never shown as current.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qvlfp8.plan import Plan, Step
from qvlfp8.results import Record

Lookup = Callable[[Step], Record | None]
"""The stored record of a step, or None where it was not executed."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is known of one step."""

    record: Record | None
    stale: bool = False
    elsewhere: bool = False
    """The record is committed evidence of another machine, on a checkpoint whose digest it names."""
    earlier_worker: bool = False
    """The worker that executed it elsewhere had another source than today's, which its key leaves out."""

    @property
    def final(self) -> Record | None:
        """The record, if it is current and not an error: nothing is to be executed again."""
        settled = self.record is not None and not self.stale and self.record.status != "error"
        return self.record if settled else None


def survey(plan: Plan, lookup: Lookup) -> dict[str, Seen]:
    """Look every step of the plan up, by digest, in the plan's order."""
    seen: dict[str, Seen] = {}
    for step in plan.steps.values():
        record = lookup(step)
        elsewhere = record is not None and record.elsewhere
        stale = record is not None and not elsewhere and _stale(record, step, seen)
        earlier = record is not None and elsewhere and _earlier_worker(record, step)
        seen[step.digest] = Seen(record=record, stale=stale, elsewhere=elsewhere, earlier_worker=earlier)
    return seen


def _earlier_worker(record: Record, step: Step) -> bool:
    return bool(record.inputs.get("worker") != step.inputs.get("worker"))


def _stale(record: Record, step: Step, seen: Mapping[str, Seen]) -> bool:
    for need in step.needs:
        source = seen[need].record
        if source is None or source.stage == "build":
            continue
        if seen[need].stale or source.made is None or record.read.get(need) != source.made:
            return True
    return False
