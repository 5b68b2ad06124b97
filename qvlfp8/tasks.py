"""Steps -> tasks: what is carried out in one go, and after what. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter

from qvlfp8.plan import Plan, Step


@dataclass(frozen=True, kw_only=True)
class Task:
    """One build, one model, or one batch; ``steps`` are what it answers, ``after`` names other tasks."""

    name: str
    steps: tuple[Step, ...]
    after: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """For people."""
        first = self.steps[0]
        what = first.subject if len(self.steps) == 1 else first.environment or first.subject
        return f"{first.stage} {what}"


def make_tasks(plan: Plan, steps: Sequence[Step], *, spread: bool = False) -> tuple[Task, ...]:
    """Tasks that answer the steps.

    Args:
        plan: where the steps and what they need stand.
        steps: what is wanted, in the plan's order.
        spread: every step is a task of its own, to be carried out anywhere, but for preflights: a vLLM is
            imported once for all of them. Otherwise the steps of an environment stay together.
    """
    return tuple(_alone(steps)) + tuple(_batches(plan, steps, spread=spread))


def order_of(tasks: Sequence[Task]) -> TopologicalSorter[str]:
    """The tasks' names as a graph, prepared; what is not among them is done already."""
    names = {task.name for task in tasks}
    order = TopologicalSorter({task.name: [a for a in task.after if a in names] for task in tasks})
    order.prepare()
    return order


def _alone(steps: Sequence[Step]) -> Iterator[Task]:
    for step in steps:
        if step.stage in {"build", "model"}:
            yield Task(name=step.digest, steps=(step,))


def _batches(plan: Plan, steps: Sequence[Step], *, spread: bool) -> Iterator[Task]:
    batches: dict[str, list[Step]] = {}
    for step in steps:
        if step.stage in {"quantize", "preflight", "generate"} and not (spread and step.stage != "preflight"):
            batches.setdefault(f"{step.stage} {step.environment}", []).append(step)
        elif step.stage == "inspect" and not spread:
            batches.setdefault(f"inspect {plan.steps[step.needs[0]].environment}", []).append(step)
        elif step.stage not in {"build", "model"}:
            batches[step.digest] = [step]
    names: Mapping[str, str] = {s.digest: name for name, group in batches.items() for s in group}
    # Runs of vLLM take longest: they come first, beside the short ones.
    for name, group in sorted(batches.items(), key=lambda batch: batch[1][0].stage != "generate"):
        # A run of vLLM needs its baseline, which stands before it in the same batch.
        after = {names.get(need, need) for step in group for need in step.needs} - {name}
        yield Task(name=name, steps=tuple(group), after=tuple(after))
