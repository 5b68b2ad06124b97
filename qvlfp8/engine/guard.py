"""A process around each command of an engine, that ends the command when the engine's own process is gone.

It leads the session in which the command runs, and holds a descriptor whose other end only the engine's
process has. Whatever that process dies of, the descriptor ends, and so does all that the command has started.
A signal on the parent's death would reach one process alone, and only if it has asked for it by then; it
comes with the end of a thread, too. What else the engine lets the guard have stays open until nothing of the
command is left: the store's lock, so that no other run begins in between.

``python -I -S guard.py DESCRIPTOR COMMAND…`` guards one command. (In a container ``DESCRIPTOR`` is standard
input, which the daemon closes when the engine's process is gone.)

``python -I -S guard.py --serve DESCRIPTOR`` forks a guard for each command that an engine's process asks for
(:mod:`qvlfp8.engine.guarded`): starting Python for each would take longer than all the rest. It ends with the
process that it serves, and its guards live on without it.

Standard library alone, so that either starts in milliseconds and wherever there is a Python.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import sys
from collections.abc import Callable, Iterator, Mapping

NOT_STARTED = 127
"""Exit code of a command that cannot be executed, as shells have it."""

NOBODY_WAITS = 1
"""Exit code of a command that was ended because its engine was gone."""

SERVE = "--serve"

WORD = 8
"""Bytes of each number that an engine and a guard send each other: little-endian, signed."""

MOST_DESCRIPTORS = 250
"""As many as one message may carry; Linux takes 253."""

_PR_SET_CHILD_SUBREAPER = 36


def main(arguments: list[str]) -> None:
    """Guard one command, and end as it ends: with its exit code, or by its signal."""
    with contextlib.suppress(PermissionError):  # it leads one already
        os.setsid()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  (as below)
        with contextlib.suppress(OSError):  # the one that lists them
            os.set_inheritable(int(name), int(name) < 3)
    status = _guard(arguments[1:], os.environ, alive=int(arguments[0]), output=(1, 2), adopts=False)
    if status is None:
        os._exit(NOBODY_WAITS)
    if os.WIFSIGNALED(status):
        _end_by(os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


def serve(descriptor: int) -> None:
    """Fork a guard for each connection that is handed over, until nobody is left who could."""
    import json
    import socket

    adopt = _adopter()
    # What is typed at a terminal is for the engine to answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    woken = _woken_by_children()
    control = socket.socket(fileno=descriptor)

    def take(connection: socket.socket, size: int, most: int) -> tuple[bytes, list[int]]:
        """Bytes and descriptors; a command inherits nothing of what comes for its guard."""
        content, descriptors, _, _ = socket.recv_fds(connection, size, most)
        for taken in descriptors:
            # Python 3.11 does not pass on the flag with which they would come so.
            os.set_inheritable(taken, False)
        return content, descriptors

    def guard_one(connection: socket.socket) -> None:
        """Guard what is asked for: first a word with the guard's pid, last one with the wait status."""
        size, descriptors = take(connection, WORD, MOST_DESCRIPTORS)
        left, parts = int.from_bytes(size, "little"), [b""]
        while left:
            parts.append(connection.recv(left))
            if not parts[-1]:
                return
            left -= len(parts[-1])
        asked = json.loads(b"".join(parts))
        os.setsid()
        adopts = adopt()
        folder, output, errors, *_held = descriptors
        os.fchdir(folder)
        connection.sendall(os.getpid().to_bytes(WORD, "little"))
        status = _guard(
            asked["command"],
            asked["environment"],
            alive=connection.fileno(),
            output=(output, errors),
            adopts=adopts,
        )
        if status is not None:
            connection.sendall(status.to_bytes(WORD, "little", signed=True))

    while True:
        ready, _, _ = select.select([control.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, 1024)
            _childless()
        if control.fileno() not in ready:
            continue
        message, handed_over = take(control, 1, 1)
        if not message:
            return
        with socket.socket(fileno=handed_over[0]) as connection, contextlib.suppress(OSError):
            # No process is left: the connection ends without a word.
            if os.fork() == 0:
                # A guard must never come back into this loop, whatever happens.
                try:
                    control.close()
                    guard_one(connection)
                finally:
                    os._exit(0)


def _guard(
    command: list[str],
    environment: Mapping[str, str],
    *,
    alive: int,
    output: tuple[int, int],
    adopts: bool,
) -> int | None:
    """Run a command, and end what it leaves behind.

    Returns:
        Its wait status; None if the engine's process was gone before.
    """
    woken = _woken_by_children()
    child = _started(command, environment, output)
    # Else the command's output would not end with the command.
    if child is None:
        _let_go(*output)
        return NOT_STARTED << 8
    # What asks politely (a container's end) is for the command to answer.
    signal.signal(signal.SIGTERM, lambda number, _frame: _pass_on(child, number))
    _let_go(*output)
    status = _wait(child, alive, woken)
    _empty(os.getpid(), adopts=adopts)
    return status


def _adopter() -> Callable[[], bool]:
    """What makes the process that calls it the parent of all that its descendants leave behind.

    It answers whether it does: then nothing of a command is left once no child is.
    """
    try:
        # Here, where it is done once for many: it takes as long to import as all the rest.
        import ctypes

        prctl = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):
        return lambda: False
    return lambda: prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def _woken_by_children() -> int:
    """A descriptor that can be read when a child has ended."""
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return woken


def _started(command: list[str], environment: Mapping[str, str], output: tuple[int, int]) -> int | None:
    """The command's pid; None, said on its standard error, if it cannot be executed.

    What was inherited for the guard, or given to it, is the guard's to hold.
    """
    standard = (
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, output[0], 1),
        (os.POSIX_SPAWN_DUP2, output[1], 2),
    )
    try:
        return os.posix_spawnp(
            command[0],
            command,
            environment,
            file_actions=standard,
            # Python ignores two of them, and who serves the third; so would the command.
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT],
        )
    except OSError as error:
        os.write(output[1], f"{command[0]}: {error.strerror}\n".encode())
        return None


def _pass_on(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)


def _let_go(*descriptors: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


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


def _empty(leader: int, *, adopts: bool) -> None:
    """End all that a command has left, until nothing is.

    That is the session but this process, which leads it; and where this process ``adopts``, every
    descendant, whatever its session: without a child it has none, and need not look.
    """
    while not (_childless() and adopts):
        left = [pid for pid in _of_session_or_parent(leader) if pid != leader]
        if not left and not adopts:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        select.select([], [], [], 0.002)


def _childless() -> bool:
    """Collect the children that have ended; whether none lives."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


def members(leader: int) -> Iterator[int]:
    """The processes of a session that live."""
    return (pid for pid, _parent, session in _living() if session == leader)


def _of_session_or_parent(leader: int) -> Iterator[int]:
    return (pid for pid, parent, session in _living() if leader in {parent, session})


def _living() -> Iterator[tuple[int, int, int]]:
    """Each process that lives: its pid, its parent's, its session's."""
    for name in os.listdir("/proc"):  # noqa: PTH208  (pathlib would take as long as all the rest)
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as stream:  # noqa: PTH123
                stat = stream.read()
        except OSError:
            continue
        # The second field, the name in brackets, may hold spaces; what follows it are state, parent, group
        # and session.
        state, parent, _group, session = stat.rpartition(")")[2].split()[:4]
        if state not in {"Z", "X"}:
            yield int(name), int(parent), int(session)


def _end_by(number: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    # Not every signal ends a process here that ended another one there.
    os._exit(128 + number)


if __name__ == "__main__":
    if sys.argv[1] == SERVE:
        serve(int(sys.argv[2]))
    else:
        main(sys.argv[1:])
