"""One run of the driver: started, watched, and ended by itself or by a kill."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.survive import processes
from tests.survive.journal import Journal, Told
from tests.survive.kills import Moment
from tests.survive.processes import Process
from tests.survive.surroundings import Surroundings
from tests.survive.watch import Event, Watch

_JUST_S = 0.02
"""How long after a commit a kill counts as being right after it."""


@dataclass
class Attempt:
    """A driver that runs, and what has been seen of it."""

    store: Path
    driver: subprocess.Popen[bytes]
    watch: Watch
    journal: Journal | None
    around: Surroundings
    earlier: frozenset[int]
    """Sessions of earlier attempts: what they still say is not this one's."""
    earlier_hosts: frozenset[str]
    started: float = field(default_factory=time.monotonic)
    seen: Counter[Event] = field(default_factory=Counter)
    begun: list[Told] = field(default_factory=list)
    open: dict[int, Told] = field(default_factory=dict)
    sessions: set[int] = field(default_factory=set)
    committed: float = 0.0
    had_store: float = 0.0

    @property
    def over(self) -> bool:
        """Whether the driver has ended."""
        return self.driver.poll() is not None

    def come(self, moment: Moment) -> bool:
        """Wait for a moment; False if the driver ended first."""
        wanted = moment.times + (self.seen[moment.event] if moment.event else 0)
        deadline = self.started + moment.delay if moment.event is None else float("inf")
        while not self.over:
            left = min(0.05, max(0.0, deadline - time.monotonic()))
            for event in self.watch.wait(left):
                self.note(event)
                if moment.event is not None and self.seen[moment.event] >= wanted:
                    if moment.delay:
                        time.sleep(moment.delay)
                    return not self.over
            if time.monotonic() >= deadline:
                return not self.over
        return False

    def note(self, event: Event) -> None:
        """Count what happened in the store."""
        self.seen[event] += 1
        if event == "commit":
            self.committed = time.monotonic()
        if event == "locked" and not self.had_store:
            self.had_store = time.monotonic()

    def listen(self) -> None:
        """Take in what workers have said."""
        for event in self.watch.wait(0.0005):
            self.note(event)
        for told in self.journal.read() if self.journal else ():
            here = told.host == socket.gethostname()
            if (here and told.session in self.earlier) or (not here and told.host in self.earlier_hosts):
                continue
            if told.began:
                self.begun.append(told)
                self.open[told.pid] = told
            else:
                self.open.pop(told.pid, None)
        for told in tuple(self.open.values()):
            if told.host == socket.gethostname() and not Path(f"/proc/{told.pid}").exists():
                del self.open[told.pid]

    def children(self) -> list[Process]:
        """The processes of this attempt, the driver not among them."""
        found = self.around.processes(self.driver.pid)
        # What has just been forked is in this process's session yet, as a cluster's own processes are.
        own = {os.getsid(0)}
        self.sessions |= {process.session for process in found if process.kind != "ray worker"} - own
        return found

    def freeze(self) -> list[Process]:
        """Stop the driver where it is, so that what is seen of it is what a kill ends; its children."""
        processes.kill(self.driver.pid, signal.SIGSTOP)
        children = self.children()
        self.listen()
        return children

    def doing(self, children: Sequence[Process]) -> str:
        """What the driver is at."""
        if not self.seen["locked"]:
            return "starting"
        if any(self.store.glob("tmp/*/record.json")):
            return "writing a record"
        if time.monotonic() - self.committed < _JUST_S:
            return "right after a commit"
        if any(process.kind == "installer" for process in children):
            return "building an environment"
        if self.seen["sweep"] and not self.seen["scratch"] and not self.begun:
            return "sweeping, planning"
        if self.open:
            return f"running {min(told.stage for told in self.open.values())}"
        if self.seen["view"]:
            return "ending"
        if any(process.kind in {"worker", "guard"} for process in children):
            return "starting a worker"
        return "between steps" if self.seen["scratch"] else "planning"

    def doing_at_all(self, children: Sequence[Process]) -> str:
        """What goes on anywhere."""
        if self.open:
            return f"running {next(iter(self.open.values())).stage}"
        kinds = {process.kind for process in children}
        if "installer" in kinds:
            return "building an environment"
        if kinds & {"guard", "worker"}:
            return "starting a worker"
        return "between commands" if kinds else "starting"

    def doing_of(self, process: Process, children: Sequence[Process]) -> str:
        """What a process is at, and what it has started."""
        if process.kind == "ray worker":
            below = [child for child in children if child.parent == process.pid]
            sessions = {child.session for child in below}
            kept = {pid: told for pid, told in self.open.items() if told.session in sessions}
            return replace(self, open=kept).doing_at_all([process, *below])
        told = next((t for t in self.open.values() if process.session == t.session), None)
        if process.kind == "installer":
            return "building an environment"
        return f"running {told.stage}" if told else "starting a worker"


def start(
    command: Sequence[str],
    variables: Mapping[str, str],
    *,
    log: Path,
    make: Callable[[subprocess.Popen[bytes]], Attempt],
) -> Attempt:
    """Start the driver; what it says is appended to ``log``."""
    with log.open("ab") as stream:
        driver = subprocess.Popen(
            command, env=dict(variables), stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
            # Ray puts the driver's folder before what its workers import: it must hold no qvlfp8.
            start_new_session=True, cwd=log.parent,
        )  # fmt: skip
    return make(driver)
