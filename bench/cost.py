"""What a process cost: seconds of CPU and by the clock, and its peak of memory."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """What one process took: seconds of CPU and by the clock, MB (10^6 bytes) at its peak; how it ended."""

    cpu: float
    wall: float
    memory: float
    code: int
    traceback: bool
    out: bytes


def measure(command: Sequence[str | Path], cwd: Path, *, hung: float) -> Cost:
    """Run a process and measure it; it is ended after ``hung`` seconds.

    What it prints goes to the files ``stdout`` and ``stderr`` in ``cwd``. A child's peak counts its parent's
    size at the start: whoever calls this should be small.
    """
    began = time.monotonic()
    with (cwd / "stdout").open("wb") as stdout, (cwd / "stderr").open("wb") as stderr:
        child = subprocess.Popen(command, stdout=stdout, stderr=stderr, cwd=cwd)
    watch = threading.Timer(hung, child.kill)
    watch.start()
    _, status, usage = os.wait4(child.pid, 0)
    watch.cancel()
    child.returncode = os.waitstatus_to_exitcode(status)
    return Cost(
        cpu=usage.ru_utime + usage.ru_stime,
        wall=time.monotonic() - began,
        memory=usage.ru_maxrss * 1024 / 1e6,
        code=child.returncode,
        traceback=b"Traceback" in (cwd / "stderr").read_bytes(),
        out=(cwd / "stdout").read_bytes(),
    )
