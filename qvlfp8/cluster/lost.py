"""What became of a task that gave no answer: the machine's fault, by its cause. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qvlfp8 import errors
from qvlfp8.errors import QvlError, WorkerError
from qvlfp8.results import Fault

_KINDS = (
    ("OutOfMemoryError", "out-of-memory", "the node ran out of memory, and Ray ended the task"),
    ("OutOfDiskError", "disk-refused", "the node's disk is full"),
    ("ObjectStoreFullError", "object-store-full", "Ray's object store is full"),
    ("NodeDiedError", "node-lost", "the node was lost"),
    ("LocalRayletDiedError", "node-lost", "the node's raylet was lost"),
    ("WorkerCrashedError", "worker-lost", "the Ray worker process was lost"),
    ("OwnerDiedError", "node-lost", "the node was lost"),
    ("ObjectLostError", "node-lost", "the node was lost"),
    ("TaskCancelledError", "cancelled", "the task was cancelled"),
    ("TaskUnschedulableError", "unschedulable", "no node can take the task"),
)


def fault_of(error: Exception) -> Fault:
    """What became of a task that Ray lost, or in which our own code on the node raised."""
    names = {kind.__name__ for kind in type(error).__mro__}
    for name, kind, meaning in _KINDS:
        if name in names:
            return Fault(kind=kind, message=meaning)
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return Fault(kind=type(cause).__name__, message=lines[-1].strip()[:300] if lines else "no message")


def error_of(event: Mapping[str, Any]) -> QvlError:
    """The error that a node met, of its class."""
    kind = getattr(errors, event["kind"], None)
    fits = isinstance(kind, type) and issubclass(kind, QvlError)
    problem = event["problem"]
    return (kind if fits else WorkerError)(problem, mend=event["mend"])  # type: ignore[misc]
