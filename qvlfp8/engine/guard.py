"""A process around each command of an engine, that ends the command when the engine's own process is gone.

``python -I -S guard.py DESCRIPTOR COMMAND…``: standard library alone, so that it starts in milliseconds.
It leads the session in which the command runs. ``DESCRIPTOR`` is the reading end of a pipe whose other end
only the engine's process holds (in a container: standard input, which the daemon closes when that process is
gone). Whatever the engine's process dies of, the pipe ends, and so does every process of the session. A
signal on the parent's death would reach one process alone, and only if it has asked for it by then; it comes
with the end of a thread, too. What else the engine lets it inherit stays open until the session is empty: the
store's lock, so that no other run begins in between.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import sys
from collections.abc import Iterator

NOT_STARTED = 127
"""Exit code of a command that cannot be executed, as shells have it."""

NOBODY_WAITS = 1
"""Exit code of a command that was ended because its engine was gone."""


def end_session(leader: int) -> None:
    """Kill every process of the session that ``leader`` started, whatever its process group.

    A worker's jobs have groups of their own so that each can be ended alone; the session holds them all.
    """
    for pid in members(leader):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def members(leader: int) -> Iterator[int]:
    """The processes of a session that live."""
    for name in os.listdir("/proc"):  # noqa: PTH208  (pathlib would take as long as all the rest)
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as stream:  # noqa: PTH123
                stat = stream.read()
        except OSError:
            continue
        # The second field, the name in brackets, may hold spaces; session is the fourth after it.
        fields = stat.rpartition(")")[2].split()
        if int(fields[3]) == leader and fields[0] not in {"Z", "X"}:
            yield int(name)


def main(arguments: list[str]) -> None:
    """Run a command, and end as it ends: with its exit code, or by its signal."""
    alive, command = int(arguments[0]), arguments[1:]
    with contextlib.suppress(PermissionError):  # it leads one already
        os.setsid()
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    child = os.fork()
    if child == 0:
        _become(command)
    # What asks politely (a container's end) is for the command to answer.
    signal.signal(signal.SIGTERM, lambda number, _frame: _pass_on(child, number))
    # Else the command's output would not end with the command.
    _let_go(1, 2)
    status = _wait(child, alive, woken)
    _empty(os.getpid())
    if status is None:
        os._exit(NOBODY_WAITS)
    if os.WIFSIGNALED(status):
        _end_by(os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


def _become(command: list[str]) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Python ignores them, and so would the command.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    # What was inherited for the guard is the guard's to hold.
    _let_go(0)
    os.closerange(3, 1 << 16)
    try:
        os.execvp(command[0], command)  # noqa: S606  (an argument list, as the engine gave it)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    os._exit(NOT_STARTED)


def _pass_on(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)


def _let_go(*descriptors: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)


def _wait(child: int, alive: int, woken: int) -> int | None:
    """The command's wait status; None if whoever started it is gone."""
    while True:
        ready, _, _ = select.select([alive, woken], [], [])
        if woken in ready:
            os.read(woken, 1024)
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid == child:
                return status
        if alive in ready:
            return None


def _empty(leader: int) -> None:
    """End all of the session but this process, which leads it, until nothing of it is left."""
    while left := [pid for pid in members(leader) if pid != leader]:
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        select.select([], [], [], 0.002)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _end_by(number: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    # Not every signal ends a process here that ended another one there.
    os._exit(128 + number)


if __name__ == "__main__":
    main(sys.argv[1:])
