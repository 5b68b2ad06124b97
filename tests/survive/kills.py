"""When to kill, and whom: drawn from a seed, aimed at times and at what happens in the store."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tests.survive.watch import Event

Target = Literal["driver", "guard", "worker", "job", "installer", "container"]

_EVENTS: Mapping[Event, int] = {
    "locked": 2, "sweep": 2, "scratch": 3, "record": 6, "commit": 6, "replace": 2, "environment": 3,
    "built": 2, "view": 1,
}  # fmt: skip
_OF_THE_DRIVER = frozenset({"locked", "sweep", "record", "commit", "replace", "built", "view"})
"""What the driver itself does: others do not care for a kill right then."""

_TARGETS: Mapping[Target, int] = {
    "driver": 8, "guard": 4, "worker": 7, "job": 9, "installer": 5, "container": 8
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When: so many seconds after the start, or after something has happened so many times."""

    delay: float
    event: Event | None = None
    times: int = 1


def draw_moment(dice: random.Random, *, start: float, length: float) -> Moment:
    """A moment of a run.

    Args:
        dice: where chance comes from.
        start: seconds until a run has the store.
        length: seconds that an undisturbed run takes.
    """
    way = dice.random()
    if way < 0.1:
        return Moment(delay=dice.uniform(0, start))
    if way < 0.4:
        return Moment(delay=dice.uniform(0, 0.6 * length))
    event = dice.choices(list(_EVENTS), list(_EVENTS.values()))[0]
    delay = dice.choice([0.0, 0.0, dice.uniform(0, 0.003), dice.uniform(0, 0.03)])
    times = 1 if event in {"locked", "view"} else dice.choice([1, 1, 1, 2, 3, 5])
    return Moment(delay=delay, event=event, times=times)


def draw_target(dice: random.Random, moment: Moment, there: set[Target]) -> Target:
    """Whom to kill, of those that are there; the driver always is."""
    if moment.event in _OF_THE_DRIVER and dice.random() < 0.6:
        return "driver"
    possible = [target for target in _TARGETS if target in there | {"driver"}]
    return dice.choices(possible, [_TARGETS[target] for target in possible])[0]
