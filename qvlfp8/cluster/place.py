"""A Ray cluster as a place where tasks are carried out (:class:`qvlfp8.run.Place`).

The driver keeps no checkpoint: records and logs alone go into its own store, as they come. What is finished
is in the shared store, where a driver that is started again finds it.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qvlfp8 import fault_errors
from qvlfp8.cluster import connect
from qvlfp8.cluster.lost import error_of, fault_of
from qvlfp8.cluster.order import LockText, Setting, order_for
from qvlfp8.cluster.retry import Retries, attempt_of, is_retried
from qvlfp8.cluster.shared import SharedStore
from qvlfp8.environments import Device, Environment
from qvlfp8.errors import ClusterError, QvlError
from qvlfp8.execute import Executor, Site, digest_of_what_was_made, now
from qvlfp8.locks import Lock
from qvlfp8.plan import LockKey, Plan, Step
from qvlfp8.progress import Progress
from qvlfp8.resources import Demand, ResourceRow, demand_of, lacking, together
from qvlfp8.results import Attempt, Fault, Record
from qvlfp8.store import LOG, Store, writing
from qvlfp8.tasks import Task

if TYPE_CHECKING:
    from qvlfp8.engine import Batch, Exit

_WAIT_S = 1.0
"""How long the driver waits for the cluster before it looks at what else is due."""

_CANCEL_S = 20.0
"""How long tasks that were cancelled may take to end what they run."""

_AHEAD = 2
"""Tasks that are handed to Ray, for each that could run at once: it always has the next ones at hand."""


@dataclass(frozen=True, order=True)
class _Due:
    """A task that is to be tried again, by the monotonic clock."""

    at: float
    task: Task = field(compare=False)
    attempt: int = field(compare=False)


@dataclass(kw_only=True)
class _Sent:
    """A task that the cluster has: where it is, since when, and which of its steps it has answered."""

    task: Task
    attempt: int
    started: str
    held: Any
    """The order in Ray's object store, as long as it may be read."""
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
        self._shared = shared
        self._environments = environments
        self._locks = {key: LockText.of(lock) for key, lock in locks.items()}
        self._resources = resources
        self._setting = setting
        self._progress = progress
        self._retries = retries or Retries()
        self._finished = shared.entries()
        self._homes: dict[str, str] = {}
        self._sent: dict[Any, _Sent] = {}
        self._waiting: deque[tuple[Task, int]] = deque()
        self._over: list[str] = []
        self._due: list[_Due] = []
        self._attempts: dict[str, tuple[Attempt, ...]] = {}
        self._jobs = jobs
        self._executor = Executor(
            plan.steps,
            store=store,
            engine=_Elsewhere(setting.inside),
            environments=environments,
            locks=locks,
            # What is given up may be tried again: it is told once it is not.
            progress=Progress(),
            site=Site(facts={"node": "none: given up by the driver"}),
            attempts=self._attempts,
        )
        self.faults: list[QvlError] = []

    def record(self, step: Step) -> Record | None:
        """The step's record in the shared store, taken into this driver's own; None if it is not there."""
        if (step.stage, step.digest) not in self._finished:
            return None
        own = self._store.record(step.stage, step.digest)
        if own is not None and own.status != "error":
            return own
        scratch = self._store.scratch("fetch")
        with writing(scratch):
            entry = self._shared.entry(step.stage, step.digest)
            if entry is None:
                return None
            for name in entry.files.keys() & {"record.json", LOG}:
                self._shared.get(step.stage, step.digest, scratch, only=name)
            record = Record.model_validate_json((scratch / "record.json").read_bytes())
        self._store.commit(scratch, record)
        return self._store.record(step.stage, step.digest)

    def built(self, _step: Step) -> bool:
        """Every node builds what it needs."""
        return True

    def intact(self, step: Step, record: Record | None) -> bool:
        """Whether nodes reach what a step made; what only this driver's store has is put there."""
        if step.stage == "build" or record is None or record.made is None:
            return True
        entry = self._shared.entry(step.stage, step.digest)
        if entry is not None and entry.made == record.made:
            return True
        folder = self._store.entry(step.stage, step.digest)
        if digest_of_what_was_made(folder) != record.made:
            return False
        self._shared.put(step.stage, step.digest, folder, record.made)
        return True

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
        """Make the remote function."""
        import ray

        self._remote = ray.remote(max_retries=0, num_returns="streaming")(_entry())

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
            self._waiting.append((replace(task, steps=tuple(ready)), 1))
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
            for generator in self._ready():
                done += self._take(generator)
        return done

    def close(self) -> None:
        """Nothing is left to do: the cluster is left with :func:`qvlfp8.cluster.connect.disconnect`."""

    def stop(self) -> None:
        """Cancel what runs, and wait until it has ended."""
        import ray

        self._waiting.clear()
        self._due.clear()
        left: list[Any] = list(self._sent)
        for generator in left:
            ray.cancel(generator, force=False, recursive=True)
        until = time.monotonic() + _CANCEL_S
        while left and time.monotonic() < until:
            ready: list[Any] = ray.wait(left, num_returns=1, timeout=_WAIT_S)[0]
            for generator in ready:
                try:
                    ray.get(next(generator))
                except (StopIteration, ray.exceptions.RayError):
                    left.remove(generator)
        for generator in left:
            ray.cancel(generator, force=True, recursive=True)

    def _demand(self, step: Step) -> Demand:
        return demand_of(step, self._resources)

    def _room(self) -> int:
        """How many tasks the cluster may have."""
        if self._jobs:
            return self._jobs
        return _AHEAD * max(1, int(sum(node.get("CPU", 0.0) for node in self._nodes)))

    def _send(self) -> None:
        while self._due and self._due[0].at <= time.monotonic():
            due = heapq.heappop(self._due)
            self._waiting.append((due.task, due.attempt))
        while self._waiting and len(self._sent) < self._room():
            self._hand_over(*self._waiting.popleft())

    def _hand_over(self, task: Task, attempt: int) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        order = order_for(
            task,
            self._plan,
            environments=self._environments,
            locks=self._locks,
            attempts=self._attempts,
            setting=self._setting,
        )
        options: dict[str, Any] = dict(together([self._demand(step) for step in task.steps]).ray)
        if home := self._home_of(task):
            # Preferred, and not waited for.
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(
                node_id=home, soft=True, _spill_on_unavailable=True
            )
        held = ray.put(order)
        generator = self._remote.options(**options).remote(connect.identity(), [held])
        self._sent[generator] = _Sent(task=task, attempt=attempt, started=now(), held=held)

    def _home_of(self, task: Task) -> str | None:
        """The node that has what a task needs: its environment, or the checkpoint that it looks at."""
        first = task.steps[0]
        keys = [first.environment, *first.needs]
        return next((self._homes[key] for key in keys if key in self._homes), None)

    def _ready(self) -> Iterator[Any]:
        """Generators that have something to say, or have ended."""
        import ray

        if not self._sent:
            pause = self._due[0].at - time.monotonic() if self._due else 0.0
            time.sleep(min(_WAIT_S, max(0.0, pause)))
            return
        sent = list(self._sent)
        ready, rest = ray.wait(sent, num_returns=len(sent), timeout=0, fetch_local=False)
        if not ready:
            ready, _ = ray.wait(rest, num_returns=1, timeout=_WAIT_S, fetch_local=False)
        yield from ready

    def _take(self, generator: Any) -> list[str]:
        """Take in one thing that a node says; the names of tasks that have ended by it."""
        import ray

        sent = self._sent[generator]
        try:
            event = ray.get(next(generator))
        except StopIteration:
            return self._end(generator, sent, None)
        except ray.exceptions.RayError as error:
            return self._end(generator, sent, fault_of(error))
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
        scratch = self._store.scratch(record.stage)
        if record.log:
            with writing(scratch):
                if log is not None:
                    (scratch / LOG).write_bytes(log)
                elif not is_retried(record):
                    self._shared.get(record.stage, record.digest, scratch, only=LOG)
        self._store.commit(scratch, record)
        sent.answered.add(record.digest)
        if is_retried(record):
            sent.errors.append(record)
        else:
            self._progress.step(record)

    def _end(self, generator: Any, sent: _Sent, fault: Fault | None) -> list[str]:
        """A task is no longer running: all of it is answered, or what ended in an error is tried again."""
        del self._sent[generator]
        if sent.label:
            self._progress.task(sent.label, running=False)
        failed = {record.digest: record for record in sent.errors if record.stage != "build"}
        builds = [record for record in sent.errors if record.stage == "build"]
        for step in sent.task.steps:
            if step.digest not in sent.answered and step.digest not in sent.skipped:
                if (untold := self._untold(step)) is not None:
                    self._progress.step(untold)
                    continue
                self._executor.give_up(step, fault or self._cause(sent), started=sent.started)
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

    def _untold(self, step: Step) -> Record | None:
        """The record of a step whose node was lost after it had kept it, before it told of it; else None."""
        key = (step.stage, step.digest)
        # What was there before was asked for again.
        if key in self._finished or step.stage == "build" or self._shared.entry(*key) is None:
            return None
        self._finished |= {key}
        return self.record(step)

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
        later = time.monotonic() + delay
        heapq.heappush(self._due, _Due(later, replace(sent.task, steps=steps), sent.attempt + 1))
        return True

    def _cause(self, sent: _Sent) -> Fault:
        """Why steps have no result though their task ended."""
        if sent.faults:
            return fault_errors.fault_of(sent.faults[0])
        return Fault(
            kind="no-result", message=f"the task ended on {sent.node or 'its node'} without a result"
        )


class _Elsewhere:
    """Stands for the engine that nodes have, where the driver speaks for a step that no node answered."""

    def __init__(self, name: str) -> None:
        self.name = name

    def facts(self, _environment: object) -> dict[str, str]:
        """The engine's name."""
        return {"engine": self.name}

    def build(self, *_: object, **__: object) -> dict[str, Any]:
        """Not here."""
        raise NotImplementedError

    def built(self, *_: object) -> bool:
        """Nothing is built here."""
        return False

    def run(self, _where: object, _batch: Batch, _log: object, _on_event: object) -> Exit:
        """Not here."""
        raise NotImplementedError

    def stop(self) -> None:
        """Nothing runs here."""


def _entry() -> Callable[[Mapping[str, str], list[Any]], Iterator[dict[str, Any]]]:
    """What a Ray worker runs. Sent by value, so that it arrives where there is no, or another, qvlfp8."""

    def entry(expected: Mapping[str, str], order: list[Any]) -> Iterator[dict[str, Any]]:
        import ray

        try:
            from qvlfp8.cluster.connect import identity
            from qvlfp8.cluster.node import carry_out
        except ImportError as error:
            yield {"event": "refused", "because": f"a node cannot run qvlfp8: {error}"}
            return
        own = identity()
        if own != expected:
            name = next(name for name in expected if own.get(name) != expected[name])
            yield {
                "event": "refused",
                "because": f"a node that joined has {name} {own.get(name)}, and this driver {expected[name]}",
            }
            return
        # Only now: what is inside a list is not opened before this runs.
        yield from carry_out(ray.get(order[0]))

    return entry
