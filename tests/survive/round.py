"""One round: a store is filled by a driver that is killed again and again, and then compared."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from tests.survive import kept, kills, processes, shared
from tests.survive.attempt import Attempt
from tests.survive.kept import Entry, Key

if TYPE_CHECKING:
    from tests.survive.session import Session, Undisturbed

_LIMIT_S = 900.0
"""For one run of the driver: it hangs if it takes longer."""


class Round:
    """Fills one store."""

    def __init__(
        self, session: Session, undisturbed: Undisturbed, goal: int, deadline: float, *, until_found: bool
    ) -> None:
        """Take a fresh store.

        Args:
            session: whose round it is.
            undisturbed: what has to come of it.
            goal: kills in the session's tally after which there are no more.
            deadline: of time.monotonic(), likewise.
            until_found: end with the first loss or doubling.
        """
        self._until_found = until_found
        self._session = session
        self._subject = session.subject
        self._around = session.around
        self._tally = session.tally
        self._dice = session.dice
        self._undisturbed = undisturbed
        self._goal = goal
        self._deadline = deadline
        self._store = session.fresh("store")
        self._known: dict[Key, Entry] = {}
        self._own: dict[Key, Entry] = {}
        self._built: dict[str, int] = {}
        self._again = False

    @property
    def found(self) -> bool:
        """Whether something was found, and that is enough."""
        return self._until_found and bool(self._tally.lost or self._tally.doubled)

    def run(self) -> None:
        """Kill until the driver comes to its end, and compare what it left."""
        self._tally.rounds += 1
        self._around.fresh()
        while not self._complete(self._attempt()):
            if self.found:
                return
            if self._subject.tries_again and self._dice.random() < 0.15:
                self._move_to_another_machine()
        if self._dice.random() < 0.3 and not self._enough():
            # What is finished is done once more, as was asked for: its records are replaced, never missing.
            self._again = True
            self._attempt()
            self._again = False
            while not self._complete(self._attempt()):
                pass
        self._look("at the end")
        found, _ = self._subject.entries(self._store)
        self._lost(self._subject.not_whole(self._store, found), "at the end")
        self._lost(self._differing(found), "at the end")
        if self._subject.tries_again:
            self._lost(self._differing(self._own), "in the driver's store, at the end")
        self._nothing_to_do()
        self._leftovers()

    def _differing(self, found: dict[Key, Entry]) -> Iterator[str]:
        if self._subject.tries_again:
            found = kept.but_builds(found)
        return kept.differing(self._undisturbed.entries, found)

    def _move_to_another_machine(self) -> None:
        """The driver's own store is lost with the machine it was killed on; the shared one is not."""
        self._session.away(self._session.sessions, "before another machine's")
        for path in self._store.iterdir():
            if path.name != shared.FOLDER:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _complete(self, running: Attempt) -> bool:
        """Whether an attempt came to the end by itself, with nothing left to try again."""
        code = running.driver.returncode
        if code == -signal.SIGKILL:
            return False
        errors = [entry for entry in self._own.values() if not entry.final]
        if code != self._undisturbed.code and not errors:
            self._lost([f"it ended with exit code {code}, undisturbed with {self._undisturbed.code}"], "")
            return True
        return not errors

    def _attempt(self) -> Attempt:
        finished = kept.finished(self._known)
        running = self._session.start(self._store, self._subject.command(self._store, again=self._again))
        while not running.over and not self._enough():
            moment = kills.draw_moment(
                self._dice,
                self._around.habits,
                start=self._undisturbed.start,
                length=self._undisturbed.seconds,
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
        if not self._again:
            self._doubled(self._begun_again(running, finished))
        self._look(f"after {running.seen['commit']} commits")
        return running

    def _begun_again(self, running: Attempt, finished: set[Key]) -> Iterator[str]:
        """The steps that were begun though they were finished; or twice, where one run does not try again."""
        begun: set[str] = set()
        for told in running.begun:
            uploads = running.watch.uploads.get((told.stage, told.step), {}).values()
            if (told.stage, told.step) in finished:
                subject = self._known[told.stage, told.step].record.subject
                yield f"{told.stage} {subject}: it was finished, and was begun again"
            elif any(at < told.at for at in uploads):
                yield f"{told.stage} {told.step[:12]}: it was in the shared store, and was begun again"
            elif told.step in begun and not self._subject.tries_again:
                yield f"{told.stage} {told.step[:12]}: one run began it twice"
            begun.add(told.step)
        for (stage, step), times in running.watch.uploads.items():
            if len(times) > 1:
                yield f"{stage} {step[:12]}: it was put into the shared store {len(times)} times"

    def _enough(self) -> bool:
        return self._tally.kills >= self._goal or time.monotonic() > self._deadline

    def _kill(self, running: Attempt, moment: kills.Moment) -> None:
        children, others = running.children(), self._around.others()
        there: set[kills.Target] = {p.kind for p in children if p.kind != "driver"}
        target = kills.draw_target(self._dice, self._around.habits, moment, there | others.keys())
        if target in others:
            running.listen()
            doing = running.doing_at_all(children)
            done = self._around.kill(target, self._dice.choice(others[target]), self._dice)
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
            doing = running.doing_of(process, children)
            done = processes.kill(process.pid)
        if done:
            self._tally.spread[self._subject.name, target, doing] += 1
            self._session.say(
                f"{self._tally.kills}/{self._goal} {self._subject.name}, round {self._tally.rounds}: "
                f"{target}, {doing}"
            )

    def _look(self, when: str) -> None:
        """Compare what is kept with what was known of it."""
        found, broken = self._subject.entries(self._store)
        self._lost(broken, when)
        self._lost(kept.gone(self._known, found), when)
        if not self._again:
            self._doubled(kept.replaced(self._known, found))
        fresh = {key: entry for key, entry in found.items() if self._known.get(key) != entry}
        self._lost(self._subject.not_whole(self._store, fresh), when)
        self._known = found
        self._own = found
        if self._subject.tries_again:
            self._own, broken = kept.entries(self._store)
            self._lost(broken, when)
            told = {key for key, entry in kept.but_builds(self._own).items() if entry.final}
            self._lost(
                (f"{stage} {step[:12]}: told, but not kept" for stage, step in told - found.keys()), when
            )
        self._look_at_environments(when)

    def _look_at_environments(self, when: str) -> None:
        for folder in self._around.environments(self._store):
            complete, name = folder / "complete.json", str(folder)
            if not complete.exists():
                if name in self._built:
                    self._lost([f"environment {folder.name}: it was whole"], when)
                continue
            made = complete.stat().st_mtime_ns
            if self._built.setdefault(name, made) != made:
                self._doubled([f"environment {folder.name}: it was built again"])

    def _nothing_to_do(self) -> None:
        """Once more, undisturbed: nothing may be left to do, and nothing may change."""
        running = self._session.start(self._store, self._subject.command(self._store, again=False))
        running.driver.wait()
        self._session.end(running)
        self._doubled(f"{told.stage} {told.step[:12]}: a finished run did it again" for told in running.begun)
        if running.seen["commit"]:
            self._doubled([f"a finished run made {running.seen['commit']} records"])
        self._look("when there was nothing to do")

    def _leftovers(self) -> None:
        self._session.away(self._session.sessions, "at the end of a round")
        self._tally.orphans += self._around.left()
        kinds = {path.name.partition("-")[0] for path in self._store.glob("tmp/*")}
        self._tally.orphans += [f"tmp/ has a folder of {kind}" for kind in kinds - {"batch", "replaced"}]

    def _lost(self, what: Iterable[str], when: str) -> None:
        for text in what:
            self._tally.lost.append(f"{text} ({when}, round {self._tally.rounds})")
            self._session.say(f"LOST: {text} ({when})")

    def _doubled(self, what: Iterable[str]) -> None:
        for text in what:
            self._tally.doubled.append(f"{text} (round {self._tally.rounds})")
            self._session.say(f"DOUBLED: {text}")
