"""What is tried again, and when. Pure.

Only an ``error``, the machine's fault: a ``fail`` that was tried until it passed would be a lie.
"""

from __future__ import annotations

from dataclasses import dataclass

from qvlfp8.results import Attempt, Record


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How often what ended in an error is tried again, and the pause before the first time; each next is longer."""

    count: int = 2
    first_s: float = 5.0
    factor: float = 4.0

    def delay_s(self, tried: int) -> float | None:
        """The pause before the next try, after ``tried`` (1 and up) have ended in an error; None: it was the last."""
        return self.first_s * self.factor ** (tried - 1) if tried <= self.count else None


def is_retried(record: Record) -> bool:
    """Whether another try could end otherwise."""
    return record.status == "error"


def attempt_of(record: Record) -> Attempt:
    """A try that ended in an error, as the record of the next one tells it.

    Raises:
        ValueError: it did not end so.
    """
    if record.fault is None:
        raise ValueError(f"{record.stage} of {record.subject} ended as {record.status}")
    node = record.environment.get("node")
    return Attempt(started=record.started, seconds=record.seconds, fault=record.fault, where=node)
