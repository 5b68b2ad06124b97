"""Processes: started in a session of their own, with a time limit, and ended with all their children.

A guard leads each session (:mod:`qvlfp8.engine.guarded`), which ends it should this process be killed.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import select
import shlex
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qvlfp8.disk import writing
from qvlfp8.engine import Announce, Exit
from qvlfp8.engine.guarded import Guarded, start
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
        with opened as stream, contextlib.ExitStack() as ours:
            with self._guard:
                if self._stopped:
                    raise Stopped
                with _starting(command[0]), contextlib.ExitStack() as theirs:
                    output, written = _pipe(ours, theirs) if on_line else (None, stream.fileno())
                    guarded = start(
                        [_found(command[0], environment), *command[1:]],
                        {**environment, MARK: mark},
                        output=written,
                        errors=stream.fileno(),
                        held=self._held(),
                    )
                family = Family(leader=guarded.leader, mark=mark)
                self._running.add(family)
            try:
                timed_out = _follow(guarded, family, output, on_line, time_limit_s)
            finally:
                if guarded.status is None:
                    family.end()
                guarded.close()
                with self._guard:
                    self._running.discard(family)
        with writing(log):
            scrub(log)
        if self._stopped:
            raise Stopped
        return Exit(
            code=guarded.code,
            timed_out=timed_out,
            out_of_memory=guarded.code == -signal.SIGKILL and not timed_out and killed.struck(),
        )

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


def _found(program: str, environment: Mapping[str, str]) -> str:
    """The program's path.

    Raises:
        FileNotFoundError: there is none.
    """
    path = shutil.which(program, path=environment.get("PATH"))
    if path is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), program)
    return path


def _pipe(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe's ends, closed by whose each is."""
    reads, writes = os.pipe()
    ours.callback(os.close, reads)
    theirs.callback(os.close, writes)
    return reads, writes


def _follow(
    guarded: Guarded,
    family: Family,
    output: int | None,
    on_line: Callable[[str], None] | None,
    limit_s: float | None,
) -> bool:
    """Pass on what a command says until nothing of it is left; whether it was ended at its limit."""
    deadline = None if limit_s is None else time.monotonic() + limit_s
    timed_out = False
    lines = _Lines(on_line) if on_line else None
    ready = select.poll()
    ready.register(guarded.fileno(), select.POLLIN)
    if output is not None:
        os.set_blocking(output, False)
        ready.register(output, select.POLLIN)
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        found = {descriptor for descriptor, _ in ready.poll(None if left is None else left * 1e3)}
        if deadline is not None and time.monotonic() >= deadline:
            timed_out, deadline = True, None
            family.end()
        if output in found and lines is not None and not lines.take(output):
            ready.unregister(output)
        if guarded.fileno() in found:
            break
    guarded.wait()
    if guarded.status is None:
        # The guard was killed. A child that lives on would hold the output open.
        family.end()
    if output is not None and lines is not None:
        lines.end(output)
    return timed_out


class _Lines:
    """Makes lines of what a descriptor that does not block gives."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._decoder = io.IncrementalNewlineDecoder(
            codecs.getincrementaldecoder("utf-8")("replace"), translate=True
        )
        self._begun = ""

    def take(self, descriptor: int) -> bool:
        """Pass on the lines that are whole; False if no more will come."""
        content = os.read(descriptor, 1 << 16)
        self._pass_on(self._decoder.decode(content))
        return bool(content)

    def end(self, descriptor: int) -> None:
        """Pass on what is left, a line without its end as well."""
        with contextlib.suppress(BlockingIOError):
            while self.take(descriptor):
                pass
        self._pass_on(self._decoder.decode(b"", final=True))
        if self._begun:
            self._on_line(self._begun)

    def _pass_on(self, text: str) -> None:
        *whole, self._begun = (self._begun + text).split("\n")
        for line in whole:
            self._on_line(f"{line}\n")


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
