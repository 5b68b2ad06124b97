"""What a run tells its watcher."""

from __future__ import annotations

from qvlfp8.plan import Step
from qvlfp8.results import Record


class Progress:
    """Takes what a run tells; the base class says nothing."""

    def begin(self, total: int) -> None:
        """The number of steps to come."""

    def task(self, name: str, *, running: bool) -> None:
        """A build or batch has started or ended."""

    def amount(self, name: str, what: str, *, done: int, total: int) -> None:
        """A running build or batch has done so much of what it is at."""

    def step(self, record: Record) -> None:
        """A step has been executed and kept."""

    def skip(self, step: Step, because: str) -> None:
        """A step cannot be executed in this run."""

    def retry(self, record: Record, *, attempt: int, of: int, delay_s: float) -> None:
        """A step ended in an error; after a pause it is tried again, as number ``attempt``."""
