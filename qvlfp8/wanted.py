"""Which steps of a plan are to be executed, given what is known of each. Pure."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Set

from qvlfp8.environments import Device
from qvlfp8.plan import Plan, Step
from qvlfp8.results import Record
from qvlfp8.survey import Seen

Intact = Callable[[Step, Record | None], bool]
"""Whether what a step made is still there, as its record says it was."""


def wanted(
    plan: Plan,
    seen: Mapping[str, Seen],
    *,
    devices: Set[Device],
    again: bool,
    intact: Intact,
    built: Callable[[Step], bool],
    lacking: Container[str] = (),
) -> tuple[Step, ...]:
    """The steps without a final record that nothing failed before, in the plan's order; builds for them.

    Args:
        devices: what steps can run on here; a step that needs another is left out.
        again: execute what has a final record as well, models excepted.
        intact: asked of what a wanted step reads; what is no longer there is made anew.
        built: whether an environment is there.
        lacking: digests of the steps for which there is no machine that could execute them.
    """
    broken: set[str] = set()
    while True:
        chosen = _open_steps(plan, seen, broken, devices, lacking, again=again)
        read = {need for digest in chosen for need in plan.steps[digest].needs} - chosen
        lost = {need for need in read if not intact(plan.steps[need], seen[need].record)}
        if not lost:
            break
        broken |= lost
    used = {need for digest in chosen for need in plan.steps[digest].needs}
    return tuple(
        step
        for step in plan.steps.values()
        if step.digest in chosen or (step.stage == "build" and step.digest in used and not built(step))
    )


def _open_steps(
    plan: Plan,
    seen: Mapping[str, Seen],
    broken: Set[str],
    devices: Set[Device],
    lacking: Container[str],
    *,
    again: bool,
) -> set[str]:
    chosen: set[str] = set()
    doomed: set[str] = set()
    for step in plan.steps.values():
        if step.unresolved:
            doomed.add(step.digest)
        if step.stage == "build" or step.device not in devices:
            continue
        final = seen[step.digest].final
        if doomed.intersection(step.needs):
            doomed.add(step.digest)
        elif (
            final is None
            or step.digest in broken
            or chosen.intersection(step.needs)
            or (again and step.stage != "model")
        ):
            (doomed if step.digest in lacking else chosen).add(step.digest)
        elif final.status == "fail":
            doomed.add(step.digest)
    return chosen
