"""Faults of the machine as errors of the command line, and the other way: one class and mend a kind."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qvlfp8.errors import DaemonError, GpuRuntimeError, QvlError, StoreWriteError, WorkerError
from qvlfp8.machine_faults import FAULTS, Kind, kind_of
from qvlfp8.results import Fault

__all__ = ["error_of", "fault_of"]

_CLASSES: Mapping[Kind, type[QvlError]] = MappingProxyType(
    {"disk-refused": StoreWriteError, "daemon-gone": DaemonError}
)
"""The classes, and so exit codes, of kinds that have one of their own."""

_TRY_AGAIN = "run again: what ended in an error is tried again, the rest is kept"


def error_of(because: str, problem: str) -> QvlError:
    """The error to end with for a step that a fault ended; with the fault's own mend, if it has one.

    Args:
        because: the fault as a record prints it, ``kind: message``.
        problem: what to say.
    """
    kind = kind_of(because)
    if kind is None:
        return WorkerError(problem, mend=_TRY_AGAIN)
    return _CLASSES.get(kind, WorkerError)(problem, mend=FAULTS[kind].mend)


def fault_of(error: QvlError) -> Fault:
    """The fault that an engine's error puts on record: by its stable kind, else by its class."""
    kinds: dict[Kind, type[QvlError]] = {**_CLASSES, "no-gpu": GpuRuntimeError}
    kind = next((kind for kind, known in kinds.items() if isinstance(error, known)), None)
    return Fault(kind=kind or type(error).__name__, message=error.problem)
