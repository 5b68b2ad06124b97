"""A Ray cluster as a place where tasks are carried out (:class:`qvlfp8.run.Place`).

The driver keeps no checkpoint: records and logs alone go into its own store, as they come. What is finished
is in the shared store, where a driver that is started again finds it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from qvlfp8 import fault_errors
from qvlfp8.cluster import connect, ray_tasks
from qvlfp8.cluster.finished import Finished
from qvlfp8.cluster.given_up import giver_up
from qvlfp8.cluster.line import Line
from qvlfp8.cluster.lost import error_of
from qvlfp8.cluster.order import LockText, Setting, order_for
from qvlfp8.cluster.retry import Retries, attempt_of, is_retried
from qvlfp8.cluster.shared import SharedStore
from qvlfp8.environments import Device, Environment
from qvlfp8.errors import ClusterError, QvlError
from qvlfp8.execute import now
from qvlfp8.locks import Lock
from qvlfp8.plan import LockKey, Plan, Step
from qvlfp8.progress import Progress
from qvlfp8.resources import Demand, ResourceRow, demand_of, lacking, together
from qvlfp8.results import Attempt, Fault, Record
from qvlfp8.store import Store
from qvlfp8.tasks import Task

_WAIT_S = 1.0
"""How long the driver waits for the cluster before it looks at what else is due."""

_AHEAD = 2
"""Tasks that are handed to Ray, for each that could run at once: it always has the next ones at hand."""


@dataclass(kw_only=True)
class _Sent:
    """A task that the cluster has: where it is, since when, and which of its steps it has answered."""

    task: Task
    attempt: int
    started: str
    node: str = ""
    label: str = ""
    answered: set[str] = field(default_factory=set)
    errors: list[Record] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    faults: list[QvlError] = field(default_factory=list)


class Cluster:
    """A Ray cluster that this process has joined (:func:`qvlfp8.cluster.connect.connect`)."""

    spread = True
    devices: frozenset[Device] = frozenset({"cpu", "cuda"})

    def __init__(
        self,
        plan: Plan,
        *,
        nodes: Sequence[connect.Node],
        store: Store,
        shared: SharedStore,
        environments: Mapping[str, Environment],
        locks: Mapping[LockKey, Lock],
        resources: Sequence[ResourceRow],
        setting: Setting,
        progress: Progress,
        retries: Retries | None = None,
        jobs: int | None = None,
    ) -> None:
        """Take what tasks need.

        Args:
            plan: of all that is to be carried out.
            nodes: those that were checked.
            store: this driver's own, held by it.
            shared: that of all nodes.
            environments: by id.
            locks: of the environments.
            resources: rows of matrix.yaml that say what steps take.
            setting: what is the same for every task.
            progress: is told of every step.
            retries: how often what ended in an error is tried again.
            jobs: the most tasks at a time [default: what the cluster has room for].
        """
        self._plan = plan
        self._nodes = [node.resources for node in nodes]
        self._store = store
        self._environments = environments
        self._locks = {key: LockText.of(lock) for key, lock in locks.items()}
        self._resources = resources
        self._setting = setting
        self._progress = progress
        self._retries = retries or Retries()
        self._finished = Finished(store, shared)
        self._homes: dict[str, str] = {}
        self._sent: dict[ray_tasks.Handed, _Sent] = {}
        self._line = Line()
        self._over: list[str] = []
        self._attempts: dict[str, tuple[Attempt, ...]] = {}
        self._jobs = jobs
        self._given_up = giver_up(
            plan,
            store,
            setting.inside,
            environments=environments,
            locks=locks,
            attempts=self._attempts,
        )
        self.faults: list[QvlError] = []

    def record(self, step: Step) -> Record | None:
        """As :meth:`qvlfp8.cluster.finished.Finished.record`."""
        return self._finished.record(step)

    def built(self, _step: Step) -> bool:
        """Every node builds what it needs."""
        return True

    def intact(self, step: Step, record: Record | None) -> bool:
        """As :meth:`qvlfp8.cluster.finished.Finished.intact`."""
        return self._finished.intact(step, record)

    def lacking(self, step: Step) -> str:
        """What a step asks for that no node has."""
        if step.stage in {"build", "model"}:
            return ""
        if step.environment and (step.environment, step.device) not in self._locks:
            return (
                f"{step.environment} has no lock for a GPU (nox -s lock -- {step.environment}.{step.device})"
            )
        return lacking(self._demand(step), self._nodes)

    def open(self) -> None:
        """Make what tasks are handed to."""
        self._tasks = ray_tasks.RayTasks(self._locks)

    def start(self, task: Task) -> None:
        """Hand a task over when there may be room; a step whose needs have not passed is skipped."""
        ready = []
        for step in task.steps:
            because = self._blocked(step)
            if because:
                self._progress.skip(step, because)
            else:
                ready.append(step)
        if ready:
            self._line.add(replace(task, steps=tuple(ready)), 1)
        else:
            self._over.append(task.name)

    def _blocked(self, step: Step) -> str:
        for need in step.needs:
            needed = self._plan.steps[need]
            record = self._store.record(needed.stage, need) if needed.stage != "build" else None
            if needed.stage != "build" and (record is None or record.status != "pass"):
                return f"{needed.stage} of {needed.subject} has not passed"
        return ""

    def ended(self) -> list[str]:
        """Take in what the nodes say until a task has ended, for good."""
        done, self._over = self._over, []
        while not done:
            self._send()
            for handed in self._ready():
                done += self._take(handed)
        return done

    def close(self) -> None:
        """Nothing is left to do: the cluster is left with :func:`qvlfp8.cluster.connect.disconnect`."""

    def stop(self) -> None:
        """Cancel what runs, and wait until it has ended."""
        self._line.clear()
        ray_tasks.cancel(list(self._sent))

    def _demand(self, step: Step) -> Demand:
        return demand_of(step, self._resources)

    def _room(self) -> int:
        """How many tasks the cluster may have."""
        if self._jobs:
            return self._jobs
        return _AHEAD * max(1, int(sum(node.get("CPU", 0.0) for node in self._nodes)))

    def _send(self) -> None:
        while len(self._sent) < self._room() and (next_one := self._line.take()):
            self._hand_over(*next_one)

    def _hand_over(self, task: Task, attempt: int) -> None:
        order = order_for(
            task,
            self._plan,
            environments=self._environments,
            attempts=self._attempts,
            setting=self._setting,
        )
        demand = together([self._demand(step) for step in task.steps])
        handed = self._tasks.hand_over(order, demand, home=self._home_of(task))
        self._sent[handed] = _Sent(task=task, attempt=attempt, started=now())

    def _home_of(self, task: Task) -> str | None:
        """The node that has what a task needs: its environment, or the checkpoint that it looks at."""
        first = task.steps[0]
        keys = [first.environment, *first.needs]
        return next((self._homes[key] for key in keys if key in self._homes), None)

    def _ready(self) -> Sequence[ray_tasks.Handed]:
        """Tasks that have something to say, or have ended."""
        if self._sent:
            return ray_tasks.ready(tuple(self._sent), _WAIT_S)
        time.sleep(min(_WAIT_S, self._line.pause_s()))
        return ()

    def _take(self, handed: ray_tasks.Handed) -> list[str]:
        """Take in one thing that a task says; the names of tasks that have ended by it."""
        sent = self._sent[handed]
        event = ray_tasks.said(handed)
        if isinstance(event, ray_tasks.Over):
            return self._end(handed, sent, event.fault)
        match event["event"]:
            case "begin":
                sent.node, sent.label = event["node"], f"{sent.task.label} on {event['node']}"
                self._remember(sent.task, event["id"])
                self._progress.task(sent.label, running=True)
            case "record":
                self._keep(sent, Record.model_validate_json(event["record"]), event["log"])
            case "skip":
                sent.skipped[event["digest"]] = event["because"]
            case "fault":
                sent.faults.append(error_of(event))
            case "refused":
                raise ClusterError(event["because"], mend="install the same qvlfp8 on every node")
        return []

    def _remember(self, task: Task, node: str) -> None:
        for step in task.steps:
            for key in (step.environment, step.digest):
                if key:
                    self._homes[key] = node

    def _keep(self, sent: _Sent, record: Record, log: bytes | None) -> None:
        """Take a record into the driver's own store, with its log."""
        self._finished.keep(record, log)
        sent.answered.add(record.digest)
        if is_retried(record):
            sent.errors.append(record)
        else:
            self._progress.step(record)

    def _end(self, handed: ray_tasks.Handed, sent: _Sent, fault: Fault | None) -> list[str]:
        """A task is no longer running: all of it is answered, or what ended in an error is tried again."""
        del self._sent[handed]
        if sent.label:
            self._progress.task(sent.label, running=False)
        failed = {record.digest: record for record in sent.errors if record.stage != "build"}
        builds = [record for record in sent.errors if record.stage == "build"]
        for step in sent.task.steps:
            if step.digest not in sent.answered and step.digest not in sent.skipped:
                if (untold := self._finished.untold(step)) is not None:
                    self._progress.step(untold)
                    continue
                self._given_up.give_up(step, fault or self._cause(sent), started=sent.started)
                if (record := self._store.record(step.stage, step.digest)) is not None:
                    failed[step.digest] = record
        # What was only skipped because its environment could not be built is tried again with it.
        broken = dict.fromkeys(sent.skipped, builds[0]) if builds else {}
        if self._try_again(sent, {**broken, **failed}):
            return []
        for record in (*builds, *failed.values()):
            self._progress.step(record)
        for step in sent.task.steps:
            if step.digest in sent.skipped:
                self._progress.skip(step, sent.skipped[step.digest])
        self.faults += sent.faults
        return [sent.task.name]

    def _try_again(self, sent: _Sent, failed: Mapping[str, Record]) -> bool:
        """Put the steps that ended in an error off for a while, if they may be tried once more."""
        delay = self._retries.delay_s(sent.attempt)
        if not failed or delay is None:
            return False
        steps = tuple(step for step in sent.task.steps if step.digest in failed)
        for step in steps:
            record = failed[step.digest]
            self._attempts[step.digest] = (*self._attempts.get(step.digest, ()), attempt_of(record))
            self._progress.retry(record, attempt=sent.attempt + 1, of=1 + self._retries.count, delay_s=delay)
        self._line.add(replace(sent.task, steps=steps), sent.attempt + 1, delay_s=delay)
        return True

    def _cause(self, sent: _Sent) -> Fault:
        """Why steps have no result though their task ended."""
        if sent.faults:
            return fault_errors.fault_of(sent.faults[0])
        return Fault(
            kind="no-result", message=f"the task ended on {sent.node or 'its node'} without a result"
        )
