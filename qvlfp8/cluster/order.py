"""What a node is told: one task, and all that its steps need, as data that a process elsewhere can read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from qvlfp8.environments import Environment, Locks
from qvlfp8.locks import Lock
from qvlfp8.plan import LockKey, Plan, Stated, Step
from qvlfp8.results import Attempt
from qvlfp8.tasks import Task

Inside = Literal["venv", "docker"]
"""The engine that runs a step on its node."""


@dataclass(frozen=True, kw_only=True)
class LockText:
    """A lock without its file: nodes have no checkout of the project."""

    text: str
    lock: Lock

    @classmethod
    def of(cls, lock: Lock) -> LockText:
        """Read a lock's file."""
        return cls(text=lock.path.read_text(encoding="utf-8"), lock=lock)

    def written(self, folder: Path) -> Lock:
        """Write the file into a folder, where it may be already; the lock that it is."""
        path = folder / f"{self.lock.digest}-{self.lock.path.name}"
        if not path.exists():
            half = path.with_name(f"{path.name}.{id(self)}")
            half.write_text(self.text, encoding="utf-8")
            half.replace(path)
        return replace(self.lock, path=path)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is the same for every task of a run."""

    shared: str
    """URL of the store that all nodes reach."""
    inside: Inside
    node_store: str | None
    """Where nodes keep environments and what they fetched; None: each node's own default."""
    settings: Locks
    limits: Mapping[str, float]
    """Seconds for one job, by stage."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """One task for a node. The locks of its environments, which many tasks share, come apart from it."""

    task: Task
    steps: Mapping[str, Step]
    """By digest: the task's, and those that they read or are built in."""
    environments: Mapping[str, Environment]
    attempts: Mapping[str, tuple[Attempt, ...]]
    """Of steps that are tried again, the earlier tries."""
    setting: Setting


def order_for(
    task: Task,
    plan: Plan,
    *,
    environments: Mapping[str, Environment],
    attempts: Mapping[str, tuple[Attempt, ...]],
    setting: Setting,
) -> Order:
    """All that one task's steps need of a plan, and no more."""
    needed = {need: plan.steps[need] for step in task.steps for need in step.needs}
    steps = {**needed, **{step.digest: step for step in task.steps}}
    return Order(
        task=Task(name=task.name, steps=tuple(plain(step) for step in task.steps)),
        steps={digest: plain(step) for digest, step in steps.items()},
        environments={s.environment: environments[s.environment] for s in steps.values() if s.environment},
        attempts={step.digest: attempts[step.digest] for step in task.steps if step.digest in attempts},
        setting=setting,
    )


def lock_keys(order: Order) -> frozenset[LockKey]:
    """Of the environments that an order's steps run in, or build."""
    return frozenset((step.environment, step.device) for step in order.steps.values() if step.environment)


def plain(step: Step) -> Step:
    """The step with ordinary dictionaries and tuples, which can be pickled."""
    work = replace(
        step.work,
        params=_plain(step.params),
        inputs=_plain(step.inputs),
        words=Stated(of=_plain(step.asked), keys=step.evidence),
    )
    return step._replace(work=work, made=None)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping | MappingProxyType):
        return {key: _plain(item) for key, item in value.items()}
    return value
