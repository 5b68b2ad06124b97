"""Rounds of kills: a store is filled by a driver that is killed again and again, and then compared."""

from __future__ import annotations

import random
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from tests.survive import attempt as attempts
from tests.survive import kept, kills, processes
from tests.survive.attempt import Attempt
from tests.survive.containers import Containers
from tests.survive.journal import Journal
from tests.survive.kept import Entry, Key
from tests.survive.watch import Watch

_AWAY_S = 10.0
"""How long a dead driver's processes may live on."""
_LIMIT_S = 900.0
"""For one run of the driver: it hangs if it takes longer."""


class Subject(Protocol):
    """What is run: a command that fills a store."""

    @property
    def told(self) -> Path | None:
        """The pipe in which its workers say what they begin and end, if they do."""
        ...

    def command(self, store: Path, *, again: bool) -> list[str]:
        """The driver's command line; ``again``: it is to do what is finished as well."""
        ...

    def variables(self) -> dict[str, str]:
        """Its environment variables."""
        ...

    def prepare(self, store: Path) -> None:
        """Make a fresh store ready."""
        ...


@dataclass(kw_only=True)
class Tally:
    """What happened in all rounds."""

    kills: int = 0
    rounds: int = 0
    runs: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    spread: Counter[tuple[str, str]] = field(default_factory=Counter)
    longest_end_s: float = 0.0

    @property
    def line(self) -> str:
        """The line that a session ends with."""
        return f"{self.kills} kills, {len(self.lost)} lost, {len(self.doubled)} doubled"

    def add(self, other: Tally) -> None:
        """Count what another session found as well."""
        self.kills += other.kills
        self.rounds += other.rounds
        self.runs += other.runs
        self.lost += other.lost
        self.doubled += other.doubled
        self.orphans += other.orphans
        self.spread += other.spread
        self.longest_end_s = max(self.longest_end_s, other.longest_end_s)

    @property
    def good(self) -> bool:
        """Whether nothing went wrong."""
        return not (self.lost or self.doubled or self.orphans)


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """A run that nobody disturbed: its records, its exit code, and how long it took."""

    entries: Mapping[Key, Entry]
    code: int
    seconds: float
    start: float


class Session:
    """Kills one subject until there have been enough kills, or time is up."""

    def __init__(
        self,
        subject: Subject,
        root: Path,
        *,
        seed: int,
        say: Callable[[str], None],
        tally: Tally,
        containers: Containers | None = None,
    ) -> None:
        self._subject = subject
        self._root = root
        self._dice = random.Random(seed)  # noqa: S311  (repeatable, not secret)
        self._say = say
        self._containers = containers
        self._journal = Journal(subject.told) if subject.told else None
        self._sessions: set[int] = set()
        self._hosts: set[str] = set()
        self.tally = tally

    def run(self, *, kills: int, deadline: float, until_found: bool = False) -> None:
        """Kill until there were so many kills in all.

        Args:
            kills: how many there are then.
            deadline: of time.monotonic(): no more kills after it.
            until_found: end with the first loss or doubling.

        Raises:
            RuntimeError: the undisturbed run did not end, or left an error on record.
        """
        undisturbed = self._undisturbed(self._fresh("undisturbed"))
        self._say(f"undisturbed: {len(undisturbed.entries)} records in {undisturbed.seconds:.1f} s")
        while self.tally.kills < kills and time.monotonic() < deadline:
            one = _Round(self, undisturbed, kills, deadline, until_found=until_found)
            one.run()
            if one.found:
                return

    @property
    def _log(self) -> Path:
        return self._root / "log.txt"

    def _fresh(self, name: str) -> Path:
        store = self._root / name
        shutil.rmtree(store, ignore_errors=True)
        store.mkdir()
        self._subject.prepare(store)
        return store

    def _undisturbed(self, store: Path, tries: int = 3) -> Undisturbed:
        running = self.start(store)
        while not running.over:
            for event in running.watch.wait(0.05):
                running.note(event)
            running.children()
        seconds = time.monotonic() - running.started
        self.end(running)
        found, broken = kept.entries(store)
        if broken or not found:
            raise RuntimeError(f"the undisturbed run left {broken or 'nothing'}; see {self._log}")
        errors = [entry.record.because() for entry in found.values() if not entry.final]
        if errors and tries > 1:
            # A machine at its limits keeps a baseline too late, for one; as a user does, run it again.
            again = self._undisturbed(store, tries - 1)
            return replace(again, seconds=seconds, start=running.had_store - running.started)
        if errors:
            raise RuntimeError(f"the undisturbed run had a fault: {errors[0]}; see {self._log}")
        return Undisturbed(
            entries=found, code=running.driver.returncode, seconds=seconds,
            start=running.had_store - running.started,
        )  # fmt: skip

    def start(self, store: Path, *, again: bool = False) -> Attempt:
        """Start a driver on a store."""
        self.tally.runs += 1
        watch = Watch(store)

        def make(driver: subprocess.Popen[bytes]) -> Attempt:
            if self._containers:
                self._containers.own(driver.pid)
            return Attempt(
                store=store, driver=driver, watch=watch, journal=self._journal,
                earlier=frozenset(self._sessions), earlier_hosts=frozenset(self._hosts),
            )  # fmt: skip

        return attempts.start(
            self._subject.command(store, again=again), self._subject.variables(), log=self._log, make=make
        )

    def end(self, running: Attempt) -> None:
        """Put an attempt's ends together, once its driver has ended."""
        running.driver.wait()
        running.listen()
        running.watch.close()
        self._sessions |= running.sessions
        if self._containers:
            self._hosts |= {told.host for told in running.begun if told.host != socket.gethostname()}
            self._hosts |= {container[:12] for container in self._containers.running()}

    def away(self, sessions: Iterable[int], what: str) -> None:
        """See to it that a dead driver's processes end, and say so if they do not end by themselves."""
        gone_by = set(sessions)
        started = time.monotonic()

        def left() -> list[processes.Process]:
            return [p for p in processes.descendants() if p.session in gone_by]

        processes.wait_until(lambda: not left(), _AWAY_S)
        self.tally.longest_end_s = max(self.tally.longest_end_s, time.monotonic() - started)
        for process in left():
            self.tally.orphans.append(f"{process.kind} {process.pid} outlived its driver ({what})")
            processes.kill(process.pid)
        processes.reap()


class _Round:
    def __init__(
        self, session: Session, undisturbed: Undisturbed, goal: int, deadline: float, *, until_found: bool
    ) -> None:
        self._until_found = until_found
        self._session = session
        self._tally = session.tally
        self._dice = session._dice
        self._undisturbed = undisturbed
        self._goal = goal
        self._deadline = deadline
        self._store = session._fresh("store")
        self._known: dict[Key, Entry] = {}
        self._built: dict[str, int] = {}
        self._again = False

    @property
    def found(self) -> bool:
        """Whether something was found, and that is enough."""
        return self._until_found and bool(self._tally.lost or self._tally.doubled)

    def run(self) -> None:
        """Kill until the driver comes to its end, and compare what it left."""
        self._tally.rounds += 1
        while not self._complete(self._attempt()):
            if self.found:
                return
        if self._dice.random() < 0.3 and not self._enough():
            # What is finished is done once more, as was asked for: its records are replaced, never missing.
            self._again = True
            self._attempt()
            self._again = False
            while not self._complete(self._attempt()):
                pass
        self._look("at the end")
        found, _ = kept.entries(self._store)
        self._lost(kept.not_whole(self._store, found), "at the end")
        self._lost(kept.differing(self._undisturbed.entries, found), "at the end")
        self._nothing_to_do()
        self._leftovers()

    def _complete(self, running: Attempt) -> bool:
        """Whether an attempt came to the end by itself, with nothing left to try again."""
        code = running.driver.returncode
        if code == -signal.SIGKILL:
            return False
        errors = [entry for entry in self._known.values() if not entry.final]
        if code != self._undisturbed.code and not errors:
            self._lost([f"it ended with exit code {code}, undisturbed with {self._undisturbed.code}"], "")
            return True
        return not errors

    def _attempt(self) -> Attempt:
        finished = kept.finished(self._known)
        running = self._session.start(self._store, again=self._again)
        while not running.over and not self._enough():
            moment = kills.draw_moment(
                self._dice, start=self._undisturbed.start, length=self._undisturbed.seconds
            )
            if running.come(moment):
                self._kill(running, moment)
        while not running.over:
            for event in running.watch.wait(0.05):
                running.note(event)
            running.listen()
            if time.monotonic() - running.started > _LIMIT_S:
                self._lost([f"the driver hung for {_LIMIT_S:.0f} s"], "")
                processes.kill(running.driver.pid)
        killed = running.driver.returncode == -signal.SIGKILL
        # Half of the time the next driver starts at once, as an impatient user's does.
        if not killed or self._dice.random() < 0.5:
            self._session.away(running.sessions, "waited for")
        self._session.end(running)
        begun: set[str] = set()
        for told in running.begun:
            if (told.stage, told.step) in finished and not self._again:
                subject = self._known[told.stage, told.step].record.subject
                self._doubled([f"{told.stage} {subject}: it was finished, and was begun again"])
            elif told.step in begun:
                self._doubled([f"{told.stage} {told.step[:12]}: one run began it twice"])
            begun.add(told.step)
        self._look(f"after {running.seen['commit']} commits")
        return running

    def _enough(self) -> bool:
        return self._tally.kills >= self._goal or time.monotonic() > self._deadline

    def _kill(self, running: Attempt, moment: kills.Moment) -> None:
        children = running.children()
        containers = self._session._containers.running() if self._session._containers else []
        there: set[kills.Target] = {p.kind for p in children if p.kind != "driver"}
        target = kills.draw_target(self._dice, moment, there | ({"container"} if containers else set()))
        if target == "container":
            running.listen()
            doing = f"running {next(iter(running.open.values())).stage}" if running.open else "starting"
            done = self._session._containers is not None and self._session._containers.kill(
                self._dice.choice(containers), remove=self._dice.random() < 0.3
            )
        elif target == "driver":
            children = running.freeze()
            doing = running.doing(children)
            done = not running.over
            processes.kill(running.driver.pid)
            running.driver.wait()
            done = done and running.driver.returncode == -signal.SIGKILL
        else:
            process = self._dice.choice([p for p in children if p.kind == target])
            running.listen()
            doing = running.doing_of(process)
            done = processes.kill(process.pid)
        if done:
            self._tally.kills += 1
            self._tally.spread[target, doing] += 1
            self._session._say(
                f"{self._tally.kills}/{self._goal} round {self._tally.rounds}: {target}, {doing}"
            )

    def _look(self, when: str) -> None:
        """Compare the store with what was known of it."""
        found, broken = kept.entries(self._store)
        self._lost(broken, when)
        self._lost(kept.gone(self._known, found), when)
        if not self._again:
            self._doubled(kept.replaced(self._known, found))
        fresh = {key: entry for key, entry in found.items() if self._known.get(key) != entry}
        self._lost(kept.not_whole(self._store, fresh), when)
        self._known = found
        for folder in self._store.glob("environments/*"):
            complete = folder / "complete.json"
            if not complete.exists():
                if folder.name in self._built:
                    self._lost([f"environment {folder.name}: it was whole"], when)
                continue
            made = complete.stat().st_mtime_ns
            if self._built.setdefault(folder.name, made) != made:
                self._doubled([f"environment {folder.name}: it was built again"])

    def _nothing_to_do(self) -> None:
        """Once more, undisturbed: nothing may be left to do, and nothing may change."""
        running = self._session.start(self._store)
        running.driver.wait()
        self._session.end(running)
        self._doubled(f"{told.stage} {told.step[:12]}: a finished run did it again" for told in running.begun)
        if running.seen["commit"]:
            self._doubled([f"a finished run made {running.seen['commit']} records"])
        self._look("when there was nothing to do")

    def _leftovers(self) -> None:
        self._session.away(self._session._sessions, "at the end of a round")
        if self._session._containers:
            self._tally.orphans += [
                f"container {container[:12]} was left" for container in self._session._containers.left()
            ]
        kinds = {path.name.partition("-")[0] for path in self._store.glob("tmp/*")}
        self._tally.orphans += [f"tmp/ has a folder of {kind}" for kind in kinds - {"batch", "replaced"}]

    def _lost(self, what: Iterable[str], when: str) -> None:
        for text in what:
            self._tally.lost.append(f"{text} ({when}, round {self._tally.rounds})")
            self._session._say(f"LOST: {text} ({when})")

    def _doubled(self, what: Iterable[str]) -> None:
        for text in what:
            self._tally.doubled.append(f"{text} (round {self._tally.rounds})")
            self._session._say(f"DOUBLED: {text}")


def spread(tally: Tally) -> Sequence[str]:
    """How kills were spread: a line for each target, and what was going on."""
    targets = dict.fromkeys(target for target, _ in sorted(tally.spread))
    lines = []
    for target in targets:
        doing = {what: number for (of, what), number in tally.spread.most_common() if of == target}
        listed = ", ".join(f"{what} {number}" for what, number in doing.items())
        lines.append(f"{target}: {sum(doing.values())} ({listed})")
    return lines
