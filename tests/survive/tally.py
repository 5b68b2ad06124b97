"""What happened in a session: kills by engine, whom and what was going on; losses, doublings, leftovers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Tally:
    """What happened in all rounds."""

    rounds: int = 0
    runs: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    spread: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Kills by engine, who was killed, and what was going on."""
    longest_end_s: dict[str, float] = field(default_factory=dict)
    """By engine: how long a dead driver's processes lived on at most."""

    @property
    def kills(self) -> int:
        """How many there were."""
        return self.spread.total()

    @property
    def good(self) -> bool:
        """Whether nothing went wrong."""
        return not (self.lost or self.doubled or self.orphans)

    @property
    def line(self) -> str:
        """The line that a session ends with."""
        return f"{self.kills} kills, {len(self.lost)} lost, {len(self.doubled)} doubled"

    def add(self, other: Tally) -> None:
        """Count what another session found as well."""
        self.rounds += other.rounds
        self.runs += other.runs
        self.lost += other.lost
        self.doubled += other.doubled
        self.orphans += other.orphans
        self.spread += other.spread
        for engine, seconds in other.longest_end_s.items():
            self.ended_after(engine, seconds)

    def ended_after(self, engine: str, seconds: float) -> None:
        """A dead driver's processes were gone after so long."""
        self.longest_end_s[engine] = max(self.longest_end_s.get(engine, 0.0), seconds)


def by_circumstance(tally: Tally) -> Sequence[str]:
    """A line for each engine and who was killed there, with what was going on."""
    pairs = dict.fromkeys((engine, target) for engine, target, _ in sorted(tally.spread))
    lines = []
    for pair in pairs:
        doing = {what: number for (*of, what), number in tally.spread.most_common() if tuple(of) == pair}
        listed = ", ".join(f"{what} {number}" for what, number in doing.items())
        lines.append(f"{pair[0]}, {pair[1]}: {sum(doing.values())} ({listed})")
    return lines


def by_kind(tally: Tally) -> str:
    """One line: kills by engine, and in each by who was killed."""
    parts = []
    for engine in dict.fromkeys(engine for engine, _, _ in sorted(tally.spread)):
        kinds: Counter[str] = Counter()
        for (of, target, _), number in tally.spread.items():
            if of == engine:
                kinds[target] += number
        listed = ", ".join(f"{target} {number}" for target, number in kinds.most_common())
        parts.append(f"{engine} {kinds.total()} ({listed})")
    return "killed: " + "; ".join(parts)


def ends(tally: Tally) -> str:
    """How long a dead driver's processes lived on at most, by engine."""
    listed = ", ".join(f"{engine} {seconds:.1f} s" for engine, seconds in sorted(tally.longest_end_s.items()))
    return f"a dead driver's processes were gone after at most: {listed}; {len(tally.orphans)} left over"
