"""Processes: started in a session of their own, with a time limit, and ended with all their children."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from qvlfp8.engine import Announce, Exit
from qvlfp8.errors import WorkerError
from qvlfp8.store import writing


class Stopped(Exception):
    """The runner was told to stop: start nothing more."""


class Processes:
    """Runs commands and can end all that it has running."""

    def __init__(self, announce: Announce) -> None:
        self._announce = announce
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
            StoreWriteError: the log cannot be written.
            WorkerError: the command cannot be started.
        """
        self._announce(shlex.join(command))
        killed = OomKiller()
        with writing(log):
            opened = log.open("ab")
        with opened as stream:
            with self._guard:
                if self._stopped:
                    raise Stopped
                with _starting(command[0]):
                    process = subprocess.Popen(
                        command,
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
        return Exit(
            code=process.returncode,
            timed_out=timed_out.is_set(),
            out_of_memory=process.returncode == -signal.SIGKILL
            and not timed_out.is_set()
            and killed.struck(),
        )

    def stop(self) -> None:
        """End every running command with its children, and start no more."""
        with self._guard:
            self._stopped = True
            running = tuple(self._running)
        for leader in running:
            end_session(leader)


class OomKiller:
    """Whether the kernel has ended a process for want of memory since this was made.

    The kernel counts such ends for the whole machine, whichever limit was reached: together with a SIGKILL
    that nobody here sent, it is why.
    """

    def __init__(self) -> None:
        self._before = _oom_kills()

    def struck(self) -> bool:
        """Look again."""
        return _oom_kills() > self._before


def _oom_kills() -> int:
    """The kernel's count; 0 where it keeps none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0


@contextlib.contextmanager
def _starting(program: str) -> Iterator[None]:
    """Say in one sentence why a program cannot be started.

    Raises:
        WorkerError: no memory or no process is left, or it is not there.
    """
    try:
        yield
    except OSError as error:
        raise WorkerError(
            f"{program} cannot be started: {os.strerror(error.errno or 0).lower()}",
            mend="run fewer steps at once (--jobs 1), and see that it is there; run again",
        ) from error


def _deadline(leader: int, limit: float | None, timed_out: threading.Event) -> threading.Timer:
    def expire() -> None:
        timed_out.set()
        end_session(leader)

    timer = threading.Timer(limit if limit is not None else threading.TIMEOUT_MAX, expire)
    timer.daemon = True
    if limit is not None:
        timer.start()
    return timer


def end_session(leader: int) -> None:
    """Kill every process of the session that ``leader`` started, whatever its process group.

    A worker's jobs have groups of their own so that each can be ended alone; the session holds them all.
    """
    for pid in _members(leader):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _members(leader: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
        except OSError:
            continue
        # The second field, the name in brackets, may hold spaces; session is the fourth after it.
        session = int(stat.rpartition(")")[2].split()[3])
        if session == leader:
            yield int(entry.name)
