"""On a node: carry one task out, and say what comes of it as it comes.

The steps run in that node's own engine and store. What they read is fetched from the shared store before,
and what they make is put there before the driver hears of it: what it was told of is never lost.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qvlfp8.cluster.node_store import NodeStore, default_root
from qvlfp8.cluster.order import Inside, LockText, Order
from qvlfp8.cluster.retry import is_retried
from qvlfp8.cluster.shared import SharedStore
from qvlfp8.engine import Engine
from qvlfp8.engine.choose import make_engine
from qvlfp8.environments import Locks
from qvlfp8.errors import QvlError
from qvlfp8.execute import Executor, Site
from qvlfp8.locks import Lock
from qvlfp8.plan import LockKey, Step
from qvlfp8.progress import Progress
from qvlfp8.results import Record
from qvlfp8.store import writing
from qvlfp8.tasks import Task
from qvlfp8.worker.run_bundle import gpus_here

Event = dict[str, Any]
"""``event`` is ``begin`` (with ``node``, ``id``), ``record`` (``record`` as JSON, ``log`` as bytes or None),
``skip`` (``digest``, ``because``) or ``fault`` (``kind``, ``problem``, ``mend``)."""

LOG_SENT_BYTES = 1_000_000
"""A longer log is left for the driver to fetch from the shared store."""

_LOOK_S = 0.2
"""How often a task looks whether it has been cancelled."""

_END_S = 30.0
"""How long it waits then for what it has ended."""


def carry_out(order: Order, locks: Mapping[LockKey, LockText]) -> Iterator[Event]:
    """Carry out an order with the locks of its environments; ends what it has running when cancelled."""
    said: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
    running = _Running(order, locks, said)
    thread = threading.Thread(target=running.work, daemon=True)
    yield {"event": "begin", "node": node_name(), "id": node_id()}
    thread.start()
    try:
        while True:
            try:
                event = said.get(timeout=_LOOK_S)
            except queue.Empty:
                continue
            if event is None:
                break
            yield event
    finally:
        running.stop()
        thread.join(_END_S)


def unprepared(
    inside: Inside, node_store: str | None, settings: Mapping[str, Any]
) -> tuple[str, str, str | None] | None:
    """What keeps this node from carrying orders out: the class of the error, what it says, and the mend.

    None if nothing does.

    Args:
        inside: the engine that orders name.
        node_store: as :class:`~qvlfp8.cluster.order.Setting` has it.
        settings: how locks are resolved, as JSON.
    """
    store = _store_at(node_store)
    try:
        with store.used():
            make_engine(inside, store, Locks.model_validate(settings), announce=lambda _line: None)
    except QvlError as error:
        return type(error).__name__, error.problem, error.mend
    return None


def _store_at(named: str | None) -> NodeStore:
    return NodeStore(Path(named) if named else default_root())


def node_name() -> str:
    """The node's name for people, and the begin of its id for Ray's."""
    return f"{socket.gethostname()} ({node_id()[:8]})"


def node_id() -> str:
    """Ray's id of this node."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


class _Running:
    """One order being carried out."""

    def __init__(
        self, order: Order, locks: Mapping[LockKey, LockText], said: queue.SimpleQueue[Event | None]
    ) -> None:
        self._order = order
        self._lock_texts = locks
        self._said = said
        self._guard = threading.Lock()
        self._engine: Engine | None = None
        self._stopped = False

    def work(self) -> None:
        """All of it; the last thing that is said is None."""
        try:
            self._work()
        except QvlError as error:
            self._fault(error)
        finally:
            self._said.put(None)

    def stop(self) -> None:
        """End what is running."""
        with self._guard:
            self._stopped = True
            engine = self._engine
        if engine is not None:
            engine.stop()

    def _work(self) -> None:
        order, setting = self._order, self._order.setting
        shared = SharedStore(setting.shared)
        store = _store_at(setting.node_store)
        with store.used():
            for step in order.steps.values():
                if step.stage in {"model", "quantize", "generate"} and step not in order.task.steps:
                    store.fetch(shared, step.stage, step.digest)
            engine = make_engine(setting.inside, store, setting.settings, announce=lambda _line: None)
            with self._guard:
                self._engine = engine
                stopped = self._stopped
            if stopped:
                return
            executor = self._executor(engine, store, shared)
            builds = [step for step in order.steps.values() if step.stage == "build"]
            for build in builds:
                # Other tasks on this node may want it as well; it is built once.
                with store.alone(f"build-{build.environment}"):
                    if not executor.built(build):
                        executor.carry_out(Task(name=build.digest, steps=(build,)))
            executor.carry_out(order.task)
            for error in executor.faults:
                self._fault(error)

    def _executor(self, engine: Engine, store: NodeStore, shared: SharedStore) -> Executor:
        import ray

        order = self._order
        on_gpu = any(step.device == "cuda" for step in order.task.steps)
        return Executor(
            order.steps,
            store=store,
            engine=engine,
            environments=order.environments,
            locks=self._locks(store),
            progress=_Told(self._said, store, shared),
            site=Site(
                gpus=_given(gpus_here()) if on_gpu else (),
                facts={"ray": ray.__version__, "node": node_name()},
            ),
            attempts=order.attempts,
            limits=order.setting.limits,
        )

    def _locks(self, store: NodeStore) -> dict[LockKey, Lock]:
        folder = store.root / "requirements"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            return {key: text.written(folder) for key, text in self._lock_texts.items()}

    def _fault(self, error: QvlError) -> None:
        self._said.put(
            {"event": "fault", "kind": type(error).__name__, "problem": error.problem, "mend": error.mend}
        )


class _Told(Progress):
    """Puts what is finished into the shared store, and then tells the driver."""

    def __init__(self, said: queue.SimpleQueue[Event | None], store: NodeStore, shared: SharedStore) -> None:
        self._said = said
        self._store = store
        self._shared = shared

    def step(self, record: Record) -> None:
        entry = self._store.entry(record.stage, record.digest)
        if record.stage != "build" and not is_retried(record):
            self._shared.put(record.stage, record.digest, entry, record.made)
        log = entry / (record.log or "-")
        sent = log.exists() and log.stat().st_size <= LOG_SENT_BYTES
        self._said.put(
            {
                "event": "record",
                "record": record.model_dump_json(exclude_none=True),
                "log": log.read_bytes() if sent else None,
            }
        )

    def skip(self, step: Step, because: str) -> None:
        self._said.put({"event": "skip", "digest": step.digest, "because": because})


def _given(gpus: list[dict[str, str]]) -> tuple[dict[str, str], ...]:
    """Of a node's GPUs those that Ray has given to this task."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(gpus)
    numbers = [int(number) for number in visible.split(",") if number.strip().isdigit()]
    return tuple(gpus[number] for number in numbers if number < len(gpus))
