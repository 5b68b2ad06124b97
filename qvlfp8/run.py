"""Carrying out a plan: its tasks in an order in which each comes after what it needs.

Nothing is done twice (the store has it), nothing finished is lost (:mod:`qvlfp8.execute`), and what cannot
be done does not stop the rest.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Protocol

from qvlfp8.engine import Engine
from qvlfp8.environments import Device, Environment
from qvlfp8.errors import QvlError
from qvlfp8.execute import TIME_LIMIT_S, Executor, Site, digest_of_what_was_made
from qvlfp8.host import default_jobs, this_host
from qvlfp8.locks import Lock
from qvlfp8.plan import LockKey, Plan, Step
from qvlfp8.progress import Progress
from qvlfp8.results import Record
from qvlfp8.store import Store
from qvlfp8.survey import Lookup, survey
from qvlfp8.tasks import Task, make_tasks, order_of
from qvlfp8.wanted import wanted
from qvlfp8.worker.run_bundle import gpus_here


class Place(Protocol):
    """Where tasks are carried out: this machine, or a cluster."""

    devices: frozenset[Device]
    """What steps can run on there."""
    spread: bool
    """Whether every step is a task of its own (:func:`qvlfp8.tasks.make_tasks`)."""
    faults: list[QvlError]
    """What kept steps from being executed, in the order in which it happened."""

    def built(self, step: Step) -> bool:
        """Whether a build's environment is there, or need not be made by a task of its own."""
        ...

    def intact(self, step: Step, record: Record | None) -> bool:
        """Whether what a step made is still there, byte for byte."""
        ...

    def lacking(self, step: Step) -> str:
        """What a step asks for that no machine there has; empty if it can be executed."""
        ...

    def open(self) -> None:
        """Get ready for tasks."""
        ...

    def start(self, task: Task) -> None:
        """Begin a task; returns at once."""
        ...

    def ended(self) -> list[str]:
        """Wait until a task has ended; the names of those that have since the last call.

        Raises:
            StoreWriteError: nothing more can be kept.
        """
        ...

    def close(self) -> None:
        """No more tasks will come, and none is running."""
        ...

    def stop(self) -> None:
        """End all that is running, and start no more."""
        ...


class Here:
    """This machine: a thread a task, in one store, with one engine."""

    spread = False

    def __init__(
        self,
        plan: Plan,
        *,
        store: Store,
        engine: Engine,
        environments: Mapping[str, Environment],
        locks: Mapping[LockKey, Lock],
        progress: Progress,
        devices: frozenset[Device] = frozenset({"cpu"}),
        jobs: int | None = None,
        limits: Mapping[str, float] = TIME_LIMIT_S,
    ) -> None:
        """As for :class:`qvlfp8.execute.Executor`; ``jobs`` tasks at a time [default: by CPUs and memory]."""
        self.devices = devices
        self._store = store
        self._progress = progress
        gpus = gpus_here() if "cuda" in devices else []
        self._executor = Executor(
            plan.steps,
            store=store,
            engine=engine,
            environments=environments,
            locks=locks,
            progress=progress,
            site=Site(gpus=tuple(gpus)),
            limits=limits,
        )
        self.faults = self._executor.faults
        self._jobs = jobs
        self._running: dict[Future[None], str] = {}

    def built(self, step: Step) -> bool:
        """Whether a build's environment is there and on record; a run may be killed between the two."""
        record = self._store.record("build", step.digest)
        return self._executor.built(step) and record is not None and record.status == "pass"

    def intact(self, step: Step, record: Record | None) -> bool:
        """Whether what a step made is still in the store, byte for byte."""
        if step.stage == "build" or record is None or record.made is None:
            return True
        return digest_of_what_was_made(self._store.entry(step.stage, step.digest)) == record.made

    def lacking(self, _step: Step) -> str:
        """Nothing: :attr:`devices` says it all."""
        return ""

    def open(self) -> None:
        """Make the pool of threads."""
        self._pool = ThreadPoolExecutor(max_workers=self._jobs or default_jobs(this_host()))

    def start(self, task: Task) -> None:
        """Begin a task in a thread, when one is free."""
        self._running[self._pool.submit(self._carry_out, task)] = task.name

    def ended(self) -> list[str]:
        """As for :meth:`Place.ended`."""
        done, _ = wait(self._running, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
        return [self._running.pop(future) for future in done]

    def close(self) -> None:
        """Give the threads back."""
        self._pool.shutdown()

    def stop(self) -> None:
        """End all that is running."""
        self._executor.stop()
        self._pool.shutdown(cancel_futures=True)

    def _carry_out(self, task: Task) -> None:
        self._progress.task(task.label, running=True)
        try:
            self._executor.carry_out(task)
        finally:
            self._progress.task(task.label, running=False)


class Runner:
    """Carries out one plan in one place."""

    def __init__(
        self,
        plan: Plan,
        place: Place,
        *,
        progress: Progress,
        lookup: Lookup,
        again: bool = False,
    ) -> None:
        """Take what is to be carried out.

        Args:
            plan: all of it.
            place: where.
            progress: is told of it.
            lookup: finds the records that spare executing a step.
            again: execute what has a record as well, models excepted.
        """
        self._plan = plan
        self._place = place
        self._progress = progress
        self._lookup = lookup
        self._again = again
        self.lacking = {step.digest: lack for step in plan.steps.values() if (lack := place.lacking(step))}
        """What steps ask for that the place has not got, by digest: they are not executed."""

    def wanted(self) -> tuple[Step, ...]:
        """The steps to execute: those without a final record that nothing failed before; builds for them."""
        return wanted(
            self._plan,
            survey(self._plan, self._lookup),
            devices=self._place.devices,
            again=self._again,
            intact=self._place.intact,
            built=self._place.built,
            lacking=self.lacking,
        )

    def run(self) -> None:
        """Execute what is wanted. Ends early only for a disk that refuses, or KeyboardInterrupt.

        Raises:
            StoreWriteError: nothing more can be kept.
        """
        steps = self.wanted()
        tasks = {task.name: task for task in make_tasks(self._plan, steps, spread=self._place.spread)}
        self._progress.begin(len(steps))
        order = order_of(tuple(tasks.values()))
        if not tasks:
            return
        self._place.open()
        try:
            while order.is_active():
                for name in order.get_ready():
                    self._place.start(tasks[name])
                order.done(*self._place.ended())
        except BaseException:
            # A second Ctrl-C must not interrupt the ending of what the first one ends.
            if threading.current_thread() is threading.main_thread():
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_IGN)
            self._place.stop()
            raise
        self._place.close()
