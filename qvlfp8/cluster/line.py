"""The line of tasks that the cluster has not been given yet: some at once, some after a pause."""

from __future__ import annotations

import heapq
import time
from collections import deque
from dataclasses import dataclass, field

from qvlfp8.tasks import Task


@dataclass(frozen=True, order=True)
class _Due:
    """A task that is to be tried again, by the monotonic clock."""

    at: float
    task: Task = field(compare=False)
    attempt: int = field(compare=False)


class Line:
    """Tasks with the number of their try, 1 and up."""

    def __init__(self) -> None:
        self._now: deque[tuple[Task, int]] = deque()
        self._later: list[_Due] = []

    def add(self, task: Task, attempt: int, *, delay_s: float = 0.0) -> None:
        """Have a task wait for its turn, which comes after the pause."""
        if delay_s:
            heapq.heappush(self._later, _Due(time.monotonic() + delay_s, task, attempt))
        else:
            self._now.append((task, attempt))

    def take(self) -> tuple[Task, int] | None:
        """The task whose turn it is; None if it is no one's."""
        while self._later and self._later[0].at <= time.monotonic():
            due = heapq.heappop(self._later)
            self._now.append((due.task, due.attempt))
        return self._now.popleft() if self._now else None

    def pause_s(self) -> float:
        """How long it takes until the next pause is over; 0 if there is none."""
        return max(0.0, self._later[0].at - time.monotonic()) if self._later else 0.0

    def clear(self) -> None:
        """Forget all."""
        self._now.clear()
        self._later.clear()
