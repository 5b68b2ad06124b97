"""Tasks as Ray has them: handed over, heard, cancelled. What they say is for :mod:`qvlfp8.cluster.place`."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qvlfp8.cluster import connect
from qvlfp8.cluster.lost import fault_of
from qvlfp8.cluster.order import LockText, Order, lock_keys
from qvlfp8.plan import LockKey
from qvlfp8.resources import Demand
from qvlfp8.results import Fault

Handed = Any
"""A task that Ray has: a generator of what it says."""

_CANCEL_S = 20.0
"""How long tasks that were cancelled may take to end what they run."""

_LOOK_S = 1.0
"""How often one looks meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Over:
    """A task has ended; ``fault`` says why, if Ray lost it or it raised."""

    fault: Fault | None = None


class RayTasks:
    """The tasks of one run."""

    def __init__(self, locks: Mapping[LockKey, LockText]) -> None:
        """Make the remote function.

        Args:
            locks: of the environments.
        """
        import ray

        self._locks = locks
        self._shared: dict[LockKey, Any] = {}
        """Locks in Ray's object store, as long as they may be read: put there once for all tasks."""
        self._remote = ray.remote(max_retries=0, num_returns="streaming")(_entry())

    def hand_over(self, order: Order, demand: Demand, *, home: str | None) -> Handed:
        """Have an order carried out.

        Args:
            order: what to do.
            demand: what it takes.
            home: the node that is preferred, by Ray's id; it is not waited for.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        options: dict[str, Any] = dict(demand.ray)
        if home:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(
                node_id=home, soft=True, _spill_on_unavailable=True
            )
        locks = [self._lock(key) for key in lock_keys(order) if key in self._locks]
        # Bytes, which travel with the task itself, as long as there are few of them.
        return self._remote.options(**options).remote(connect.identity(), pickle.dumps(order), locks)

    def _lock(self, key: LockKey) -> Any:
        import ray

        if key not in self._shared:
            self._shared[key] = ray.put({key: self._locks[key]})
        return self._shared[key]


def ready(handed: Sequence[Handed], wait_s: float) -> Sequence[Handed]:
    """Those that have something to say, or have ended; none, if nothing happens within the time."""
    import ray

    found, rest = ray.wait(list(handed), num_returns=len(handed), timeout=0, fetch_local=False)
    if not found:
        found, _ = ray.wait(rest, num_returns=1, timeout=wait_s, fetch_local=False)
    return found


def said(handed: Handed) -> Mapping[str, Any] | Over:
    """The next thing that a task says (:data:`qvlfp8.cluster.node.Event`), or that it has ended."""
    import ray

    try:
        event: Mapping[str, Any] = ray.get(next(handed))
    except StopIteration:
        return Over()
    except ray.exceptions.RayError as error:
        return Over(fault=fault_of(error))
    return event


def cancel(handed: Sequence[Handed]) -> None:
    """Cancel tasks and wait until they have ended what they run; the rest is ended by force."""
    import ray

    left = list(handed)
    for task in left:
        ray.cancel(task, force=False, recursive=True)
    until = time.monotonic() + _CANCEL_S
    while left and time.monotonic() < until:
        for task in ray.wait(left, num_returns=1, timeout=_LOOK_S)[0]:
            if isinstance(said(task), Over):
                left.remove(task)
    for task in left:
        ray.cancel(task, force=True, recursive=True)


def _entry() -> Callable[[Mapping[str, str], bytes, list[Any]], Iterator[dict[str, Any]]]:
    """What a Ray worker runs. Sent by value, so that it arrives where there is no, or another, qvlfp8."""

    def entry(expected: Mapping[str, str], order: bytes, locks: list[Any]) -> Iterator[dict[str, Any]]:
        import pickle

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
        # Only now: neither bytes nor what is inside a list is opened before this runs.
        found = ray.get(locks) if locks else []
        told = pickle.loads(order)  # noqa: S301  (the driver's, as all that Ray carries)
        yield from carry_out(told, {key: lock[key] for lock in found for key in lock})

    return entry
