"""What drill workers say of themselves: which step was begun, by whom, and whether it ended."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Told:
    """One line: a job ``began`` its step, or ended it; its process, session and host (or container); when
    (seconds since the epoch)."""

    began: bool
    stage: str
    step: str
    pid: int
    session: int
    host: str
    at: float


class Journal:
    """The reading end of the workers' pipe."""

    def __init__(self, pipe: Path) -> None:
        # Open for writing as well, so that workers that come and go never close it.
        self._descriptor = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
        self._rest = b""

    def close(self) -> None:
        """Read no more."""
        os.close(self._descriptor)

    def read(self) -> list[Told]:
        """All that was told since the last time."""
        while True:
            try:
                self._rest += os.read(self._descriptor, 1 << 16)
            except BlockingIOError:
                break
        *lines, self._rest = self._rest.split(b"\n")
        return [_parse(line.decode()) for line in lines]


def _parse(line: str) -> Told:
    what, stage, step, pid, session, host, at = line.split()
    return Told(
        began=what == "begin", stage=stage, step=step, pid=int(pid), session=int(session), host=host,
        at=float(at),
    )  # fmt: skip
