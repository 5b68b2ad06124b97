"""A command under a guard (:mod:`qvlfp8.engine.guard`), as the engine's process sees it.

One process, which is started with the first command, forks the guards of all: with every command a Python of
its own would cost more than most of what else there is to a short step.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence

from qvlfp8.engine import guard


class Guarded:
    """A command that has been started. ``leader`` is its guard, which leads its session."""

    def __init__(self, connection: socket.socket, leader: int) -> None:
        self.leader = leader
        self.status: int | None = None
        """The command's wait status, once nothing of it is left; None: its guard was ended before."""
        self._connection = connection

    def fileno(self) -> int:
        """Can be read when the guard has ended, or is about to."""
        return self._connection.fileno()

    def wait(self) -> None:
        """Wait until the guard has ended; sets :attr:`status`."""
        said = _read(self._connection)
        self.status = int.from_bytes(said, "little", signed=True) if said else None

    @property
    def code(self) -> int:
        """How it ended, as in :mod:`subprocess`; what ends a guard that says nothing is a signal."""
        return -signal.SIGKILL if self.status is None else os.waitstatus_to_exitcode(self.status)

    def close(self) -> None:
        """Let go of it: a guard that still runs ends its command."""
        self._connection.close()


def start(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    output: int,
    errors: int,
    held: Sequence[int] = (),
) -> Guarded:
    """Start a command in a session of its own; it ends with this process, whatever this ends of.

    Args:
        command: with the path of its program.
        environment: all of its variables.
        output: where its standard output goes; it has no input.
        errors: where its standard error goes.
        held: descriptors that stay open until nothing of it is left, even if this process does not live.

    Raises:
        OSError: no process, memory or descriptor is left.
    """
    asked = json.dumps({"command": list(command), "environment": dict(environment)}).encode()
    folder = os.open(".", os.O_PATH | os.O_DIRECTORY)
    try:
        for attempt in range(2):
            connection = _guards.connect(anew=bool(attempt))
            try:
                size = len(asked).to_bytes(guard.WORD, "little")
                socket.send_fds(connection, [size], [folder, output, errors, *held])
                connection.sendall(asked)
                leader = _read(connection)
            except (BrokenPipeError, ConnectionResetError):
                leader = b""
            except BaseException:
                connection.close()
                raise
            if leader:
                return Guarded(connection, int.from_bytes(leader, "little"))
            # Nothing was started: the one that guards come from is gone, or could not fork.
            connection.close()
    finally:
        os.close(folder)
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _read(connection: socket.socket) -> bytes:
    """One word; empty if the other side has gone without one."""
    with contextlib.suppress(ConnectionResetError):
        return connection.recv(guard.WORD, socket.MSG_WAITALL)
    return b""


class _Guards:
    """The process that guards are forked from."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._owner = 0

    def connect(self, *, anew: bool) -> socket.socket:
        """A connection to a guard that has nothing to do yet.

        Args:
            anew: the process may have ended: start another.

        Raises:
            OSError: it cannot be started.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs, self._lock:
                if anew:
                    self._end()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    # One that has ended says so by what it leaves unanswered.
                    socket.send_fds(self._running(), [b"\0"], [theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        return ours

    def close(self) -> None:
        """End it; its guards live as long as their commands."""
        with self._lock:
            self._end()

    def _running(self) -> socket.socket:
        if self._control is None or self._owner != os.getpid():
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", guard.__file__, guard.SERVE, str(theirs.fileno())],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            self._control, self._owner = ours, os.getpid()
        return self._control

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None and self._owner == os.getpid():
            # It ends with the connection, unless it is stuck.
            self._process.kill()
            self._process.wait()
        self._process = None


_guards = _Guards()
atexit.register(_guards.close)
