"""What differs between two runs: improved, regressed, new, gone, stale. Pure; :mod:`qvlfp8.runs` reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from qvlfp8.cells import STAGES, Stage

Kind = Literal["regressed", "error", "stale", "gone", "changed", "improved", "new"]
"""How a stage differs, worst first.

- ``regressed``: it passed and now fails.
- ``error``: it could not be executed: the machine's fault, which says nothing of the checkpoint.
- ``stale``: there is nothing but a record of something else than what is asked now.
- ``gone``: it was executed; now there is no record, or an earlier stage keeps it from being executed.
- ``changed``: it fails as before, of another cause; or shows, or does not, what is expected to be flaky.
"""

KINDS: tuple[Kind, ...] = get_args(Kind)

Ended = Literal["pass", "fail", "error", "blocked"]
"""How a stage ended in a run."""


class Key(NamedTuple):
    """What an outcome is of: a checkpoint or a cell, a stage, and the accelerator (empty: a CPU)."""

    subject: str
    stage: Stage
    accelerator: str = ""

    def __str__(self) -> str:
        where = f" ({self.accelerator})" if self.accelerator else ""
        return f"{self.subject} · {self.stage}{where}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run says of one stage."""

    status: Ended
    findings: tuple[str, ...] = ()
    because: str = ""
    stale: str = ""
    """Why its record is not current in its own run; empty for a current one."""
    repeat: str = ""
    """The command that executes it again."""

    @property
    def settled(self) -> bool:
        """Whether it says something of the checkpoint."""
        return self.status in {"pass", "fail"}

    def __str__(self) -> str:
        named = f" ({', '.join(self.findings)})" if self.findings else ""
        return f"{self.status}{named}{' (stale)' if self.stale else ''}"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One stage that differs, with what both runs say of it."""

    kind: Kind
    key: Key
    before: Outcome | None
    after: Outcome | None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two runs held against each other; changes by kind, worst first."""

    changes: tuple[Change, ...]
    unchanged: int
    still_stale: int
    """Of the unchanged ones, those that are current in neither run."""

    def of(self, kind: Kind) -> tuple[Change, ...]:
        """The changes of one kind."""
        return tuple(change for change in self.changes if change.kind == kind)

    @property
    def counts(self) -> dict[Kind, int]:
        """How many changes of each kind there are, none left out."""
        return {kind: len(self.of(kind)) for kind in KINDS}


Flaky = Callable[[Key], Set[str]]
"""The findings that may show, or not, without that meaning anything."""


def compare(
    before: Mapping[Key, Outcome],
    after: Mapping[Key, Outcome],
    flaky: Flaky = lambda _: frozenset(),
) -> Difference:
    """Hold two runs against each other."""
    changes = [change for key in {*before, *after} if (change := _change(key, before, after, flaky))]
    order = {stage: index for index, stage in enumerate(STAGES)}
    changes.sort(key=lambda c: (KINDS.index(c.kind), c.key.subject, order[c.key.stage], c.key.accelerator))
    changed = {change.key for change in changes}
    same = [outcome for key, outcome in after.items() if key in before and key not in changed]
    return Difference(
        changes=tuple(changes),
        unchanged=len(same),
        still_stale=sum(bool(outcome.stale) for outcome in same),
    )


def _change(
    key: Key, before: Mapping[Key, Outcome], after: Mapping[Key, Outcome], flaky: Flaky
) -> Change | None:
    old, new = before.get(key), after.get(key)
    found = _kind(old, new)
    if found is None:
        return None
    kind, note = found
    if kind in {"regressed", "improved", "changed"} and old and new:
        other = set(old.findings) ^ set(new.findings)
        if other and other <= flaky(key):
            kind, note = "changed", "expected to be flaky"
    return Change(kind=kind, key=key, before=old, after=new, note=note)


def _kind(old: Outcome | None, new: Outcome | None) -> tuple[Kind, str] | None:
    """How one stage differs, and what is to be said of it; None if it does not."""
    if new is None or new.status == "blocked":
        # Neither an error nor what a failure blocked said anything that could be lost.
        why = new.because if new else ""
        return ("gone", why) if old and old.settled else None
    # What is current in neither run is compared all the same: what both say, they say of one time.
    if new.stale and (old is None or not old.stale):
        return "stale", new.stale
    if new.status == "error":
        return None if old and old.status == "error" else ("error", new.because)
    if old is None or not old.settled:
        return "new", f"before: {old}" if old else ""
    if old.status != new.status:
        return ("regressed" if new.status == "fail" else "improved"), new.because
    if set(old.findings) != set(new.findings):
        return "changed", new.because
    return None
