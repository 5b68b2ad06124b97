"""This machine's processes that descend from the session: whose they are, what they do, and their end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["driver", "guard", "worker", "job", "installer", "ray worker"]
"""``guard`` is what the engine puts around a command; ``installer`` is uv, and what it starts."""

_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, kw_only=True)
class Process:
    """One that lives. ``session`` is the id that all processes of one command of an engine share."""

    pid: int
    parent: int
    session: int
    kind: Kind


def adopt_orphans() -> None:
    """Make this process the parent of what its descendants leave behind, so that it can be found."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def descendants(of: int | None = None) -> list[Process]:
    """All that live below a process [default: this one]; a zombie does not."""
    children: dict[int, list[tuple[int, int]]] = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
            if fields[0] not in {"Z", "X"}:
                children.setdefault(int(fields[1]), []).append((int(entry.name), int(fields[3])))
    found: list[Process] = []
    left: list[tuple[int, Kind | None]] = [(of or os.getpid(), None)]
    while left:
        parent, above = left.pop()
        for pid, session in children.get(parent, ()):
            words = command_line(pid).decode(errors="replace").split("\0")
            kind = _kind(words, above)
            found.append(Process(pid=pid, parent=parent, session=session, kind=kind))
            left.append((pid, kind))
    return found


def command_line(pid: int) -> bytes:
    """A process's, its words ended by NULs; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def alive(pid: int) -> bool:
    """Whether a process is there; a zombie is not."""
    return bool(command_line(pid))


def _kind(command: list[str], above: Kind | None) -> Kind:
    if any(word.endswith("engine/guard.py") for word in command):
        return "guard"
    if any(word.endswith("worker/__main__.py") for word in command):
        return "job" if above in {"worker", "job"} else "worker"
    if command and command[0].startswith("ray::entry"):
        return "ray worker"
    if command and Path(command[0]).name == "uv":
        return "installer"
    if above in {"installer", "worker"}:
        return "installer" if above == "installer" else "job"
    return "driver"


def kill(pid: int, number: int = signal.SIGKILL) -> bool:
    """Send a signal; False if it was gone already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def reap(but: Iterable[int] = ()) -> None:
    """Collect adopted processes that have ended."""
    kept = set(but)
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) not in kept:
            with contextlib.suppress(ChildProcessError, OSError):
                os.waitpid(int(entry.name), os.WNOHANG)


def wait_until(condition: Callable[[], bool], seconds: float, every: float = 0.01) -> bool:
    """Wait for a condition; False if it did not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True
