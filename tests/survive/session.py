"""Rounds of kills of one subject, until there have been enough or time is up."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.survive import attempt as attempts
from tests.survive import kept, processes
from tests.survive.attempt import Attempt
from tests.survive.journal import Journal
from tests.survive.kept import Entry, Key
from tests.survive.round import Round
from tests.survive.subjects import Subject
from tests.survive.surroundings import Surroundings, ThisMachine
from tests.survive.tally import Tally
from tests.survive.watch import Watch

_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """A run that nobody disturbed: its records, its exit code, and how long it took."""

    entries: Mapping[Key, Entry]
    code: int
    seconds: float
    start: float


class Session:
    """Kills one subject."""

    def __init__(
        self,
        subject: Subject,
        root: Path,
        *,
        seed: int,
        say: Callable[[str], None],
        tally: Tally,
        around: Surroundings | None = None,
    ) -> None:
        """Take what it works with.

        Args:
            subject: what is run.
            root: an empty folder for its stores and the drivers' log.
            seed: of all that is drawn.
            say: shows what happens.
            tally: takes it.
            around: where steps run [default: this machine].
        """
        self.subject = subject
        self.around = around or ThisMachine()
        self.dice = random.Random(seed)  # noqa: S311  (repeatable, not secret)
        self.say = say
        self.tally = tally
        self.sessions: set[int] = set()
        self._root = root
        self._journal = Journal(subject.told) if subject.told else None
        self._hosts: set[str] = set()

    def run(self, *, kills: int, deadline: float, until_found: bool = False) -> None:
        """Kill until the tally has so many kills in all.

        Args:
            kills: how many there are then.
            deadline: of time.monotonic(): no more kills after it.
            until_found: end with the first loss or doubling.

        Raises:
            RuntimeError: the undisturbed run did not end, or left an error on record.
        """
        undisturbed = self._undisturbed(briefly=until_found)
        while self.tally.kills < kills and time.monotonic() < deadline:
            one = Round(self, undisturbed, kills, deadline, until_found=until_found)
            one.run()
            if one.found:
                return

    def fresh(self, name: str) -> Path:
        """An empty store."""
        store = self._root / name
        shutil.rmtree(store, ignore_errors=True)
        store.mkdir()
        self.subject.prepare(store)
        return store

    def start(self, store: Path, command: Sequence[str]) -> Attempt:
        """Start a driver on a store."""
        self.tally.runs += 1
        self.around.ready()
        watch = Watch(store)

        def make(driver: subprocess.Popen[bytes]) -> Attempt:
            self.around.own(driver.pid)
            return Attempt(
                store=store, driver=driver, watch=watch, journal=self._journal, around=self.around,
                earlier=frozenset(self.sessions), earlier_hosts=frozenset(self._hosts),
            )  # fmt: skip

        return attempts.start(command, self.subject.variables(), log=self._log, make=make)

    def end(self, running: Attempt) -> None:
        """Put an attempt's ends together, once its driver has ended."""
        running.driver.wait()
        running.listen()
        running.watch.close()
        self.sessions |= running.sessions
        self._hosts |= {told.host for told in running.begun if told.host != socket.gethostname()}
        self._hosts |= self.around.hosts()

    def away(self, sessions: Iterable[int], what: str) -> None:
        """See to it that a dead driver's processes end, and say so if they do not end by themselves."""
        gone_by = set(sessions)
        started = time.monotonic()

        def left() -> list[processes.Process]:
            return [p for p in processes.descendants() if p.session in gone_by]

        processes.wait_until(lambda: not left(), self.around.away_s)
        self.tally.ended_after(self.subject.name, time.monotonic() - started)
        for process in left():
            self.tally.orphans.append(f"{process.kind} {process.pid} outlived its driver ({what})")
            processes.kill(process.pid)
        processes.reap()

    @property
    def _log(self) -> Path:
        return self._root / "log.txt"

    def _undisturbed(self, *, briefly: bool) -> Undisturbed:
        """Run the subject alone; ``briefly``: how long that takes where it is killed is estimated."""
        store = self.fresh("undisturbed")
        wanted = self._to_its_end(store, self.subject.undisturbed(store))
        self.say(f"undisturbed: {len(wanted.entries)} records in {wanted.seconds:.1f} s")
        command = self.subject.command(store, again=False)
        if command == self.subject.undisturbed(store):
            return wanted
        if briefly:
            return replace(
                wanted, entries=kept.but_builds(wanted.entries), seconds=3 * wanted.seconds,
                start=3 * wanted.start,
            )  # fmt: skip
        store = self.fresh("store")
        there = self._to_its_end(store, self.subject.command(store, again=False))
        wanted = replace(wanted, entries=kept.but_builds(wanted.entries))
        for text in kept.differing(wanted.entries, kept.but_builds(there.entries)):
            self.tally.lost.append(f"{text} (undisturbed)")
        self.say(f"undisturbed in {self.subject.name}: in {there.seconds:.1f} s")
        return replace(wanted, seconds=there.seconds, start=there.start)

    def _to_its_end(self, store: Path, command: Sequence[str]) -> Undisturbed:
        """Run a driver; once more after an error: a baseline kept too late, for one."""
        first: tuple[float, float] | None = None
        for _ in range(_TRIES):
            running = self.start(store, command)
            while not running.over:
                for event in running.watch.wait(0.05):
                    running.note(event)
                running.children()
            took = time.monotonic() - running.started
            first = first or (took, running.had_store - running.started)
            self.end(running)
            found, broken = kept.entries(store)
            if broken or not found:
                raise RuntimeError(f"the undisturbed run left {broken or 'nothing'}; see {self._log}")
            errors = [entry.record.because() for entry in found.values() if not entry.final]
            if not errors:
                seconds, start = first
                return Undisturbed(
                    entries=found, code=running.driver.returncode, seconds=seconds, start=start
                )
        raise RuntimeError(f"the undisturbed run had a fault: {errors[0]}; see {self._log}")
