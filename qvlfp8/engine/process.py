"""Processes: started in a session of their own, with a time limit, and ended with all their children.

A guard leads each session (:mod:`qvlfp8.engine.guard`), which ends it should this process be killed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qvlfp8.disk import writing
from qvlfp8.engine import Announce, Exit, guard
from qvlfp8.errors import WorkerError
from qvlfp8.redaction import redact, scrub

MARK = "QVLFP8_STARTED_AS"
"""The variable by which what a command has started is known."""

_ROUNDS = 100


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
        self._running: set[Family] = set()
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
        self._announce(redact(shlex.join(command)))
        killed = OomKiller()
        mark = uuid.uuid4().hex
        with writing(log):
            opened = log.open("ab")
        with opened as stream:
            with self._guard:
                if self._stopped:
                    raise Stopped
                with _starting(command[0]):
                    process = subprocess.Popen(
                        self._guarded(command, environment),
                        pass_fds=(self._alive, *self._held()),
                        env={**environment, MARK: mark},
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE if on_line else stream,
                        stderr=stream,
                        start_new_session=True,
                        text=True,
                        errors="replace",
                    )
                family = Family(leader=process.pid, mark=mark)
                self._running.add(family)
            timed_out = threading.Event()
            timer = _deadline(family, time_limit_s, timed_out)
            # A child that outlives the leader holds its output open: nobody would come to its end.
            threading.Thread(target=_end_after, args=(family,), daemon=True).start()
            try:
                if on_line and process.stdout is not None:
                    for line in process.stdout:
                        on_line(line)
                process.wait()
            finally:
                timer.cancel()
                family.end()
                process.wait()
                if process.stdout is not None:
                    process.stdout.close()
                with self._guard:
                    self._running.discard(family)
        with writing(log):
            scrub(log)
        if self._stopped:
            raise Stopped
        return Exit(
            code=process.returncode,
            timed_out=timed_out.is_set(),
            out_of_memory=process.returncode == -signal.SIGKILL
            and not timed_out.is_set()
            and killed.struck(),
        )

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
        for family in running:
            family.end()


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


def _deadline(family: Family, limit: float | None, timed_out: threading.Event) -> threading.Timer:
    def expire() -> None:
        timed_out.set()
        family.end()

    timer = threading.Timer(limit if limit is not None else threading.TIMEOUT_MAX, expire)
    timer.daemon = True
    if limit is not None:
        timer.start()
    return timer


def _end_after(family: Family) -> None:
    """Wait for the leader's end, and end the rest; who called takes the leader's exit status."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, family.leader, os.WEXITED | os.WNOWAIT)
    family.end()


@dataclass(frozen=True, kw_only=True)
class Family:
    """A command's process and all that it has started, whatever their groups, sessions and parents.

    ``leader`` began a session of its own, and ``mark`` stands in the environment that all inherit.
    """

    leader: int
    mark: str

    def end(self) -> None:
        """Kill every one; those that were started meanwhile, too."""
        for _ in range(_ROUNDS):
            found = list(self._members())
            for pid in found:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            if not found:
                return

    def _members(self) -> Iterator[int]:
        mark = f"{MARK}={self.mark}".encode()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                # The second field, the name in brackets, may hold spaces.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] in {"Z", "X"}:
                    continue
                # A member of the session, or one that has left it and kept the environment.
                if int(fields[3]) == self.leader or mark in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)
            except OSError:
                continue
