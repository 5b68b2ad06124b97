"""Processes: started in a session of their own, with a time limit, and ended with all their children.

A guard leads each session (:mod:`qvlfp8.engine.guard`), which ends it should this process be killed.
"""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from qvlfp8.engine import Announce, Exit, guard
from qvlfp8.engine.guard import end_session


class Stopped(Exception):
    """The runner was told to stop: start nothing more."""


class Processes:
    """Runs commands and can end all that it has running."""

    def __init__(self, announce: Announce, held: Callable[[], Sequence[int]] = tuple) -> None:
        """Take what the commands have in common.

        Args:
            announce: shows each before it runs.
            held: descriptors that stay open as long as a command runs, even if this process does not live.
        """
        self._announce = announce
        self._held = held
        # Closed by the kernel when this process ends, however that is.
        self._alive, self._closes = os.pipe()
        self._running: set[int] = set()
        self._guard = threading.Lock()
        self._stopped = False

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        on_line: Callable[[str], None] | None = None,
        time_limit_s: float | None = None,
    ) -> Exit:
        """Run a command to its end; its standard error (and output, without ``on_line``) goes to ``log``.

        Raises:
            Stopped: :meth:`stop` was called before or during the run.
        """
        self._announce(shlex.join(command))
        with log.open("ab") as stream:
            with self._guard:
                if self._stopped:
                    raise Stopped
                process = subprocess.Popen(
                    self._guarded(command, environment),
                    pass_fds=(self._alive, *self._held()),
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE if on_line else stream,
                    stderr=stream,
                    start_new_session=True,
                    text=True,
                    errors="replace",
                )
                self._running.add(process.pid)
            timed_out = threading.Event()
            timer = _deadline(process.pid, time_limit_s, timed_out)
            try:
                if on_line and process.stdout is not None:
                    for line in process.stdout:
                        on_line(line)
                process.wait()
            finally:
                timer.cancel()
                end_session(process.pid)
                process.wait()
                if process.stdout is not None:
                    process.stdout.close()
                with self._guard:
                    self._running.discard(process.pid)
        if self._stopped:
            raise Stopped
        return Exit(code=process.returncode, timed_out=timed_out.is_set())

    def _guarded(self, command: Sequence[str], environment: Mapping[str, str]) -> list[str]:
        program = shutil.which(command[0], path=environment.get("PATH"))
        if program is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command[0])
        return [sys.executable, "-I", "-S", guard.__file__, str(self._alive), program, *command[1:]]

    def stop(self) -> None:
        """End every running command with its children, and start no more."""
        with self._guard:
            self._stopped = True
            running = tuple(self._running)
        for leader in running:
            end_session(leader)


def _deadline(leader: int, limit: float | None, timed_out: threading.Event) -> threading.Timer:
    def expire() -> None:
        timed_out.set()
        end_session(leader)

    timer = threading.Timer(limit if limit is not None else threading.TIMEOUT_MAX, expire)
    timer.daemon = True
    if limit is not None:
        timer.start()
    return timer
