"""When to kill, and whom: drawn from a seed, aimed at times and at what happens in the store."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tests.survive.watch import Event

Target = Literal["driver", "guard", "worker", "job", "installer", "container", "ray worker", "raylet", "node"]
"""Of a cluster: a process of Ray's that carries a step out, a node's raylet, or all that runs on a node."""


@dataclass(frozen=True, kw_only=True)
class Habits:
    """What kills are aimed at, by weight; and how often at the driver, when it does something itself."""

    events: Mapping[Event, int]
    at_driver: float


ON_THIS_MACHINE = Habits(
    events={
        "locked": 2, "sweep": 2, "scratch": 3, "record": 6, "commit": 6, "replace": 2, "environment": 3,
        "built": 2, "view": 1,
    },
    at_driver=0.6,
)  # fmt: skip
IN_CONTAINERS = Habits(
    events={"locked": 1, "sweep": 1, "scratch": 6, "record": 4, "commit": 4, "replace": 1, "view": 1},
    at_driver=0.3,
)
ON_A_CLUSTER = Habits(
    # A driver that has to be started again takes ten times as long there.
    events={"locked": 1, "record": 2, "commit": 3, "uploading": 4, "uploaded": 8, "replace": 1, "view": 1},
    at_driver=0.15,
)
_OF_THE_DRIVER = frozenset({"locked", "sweep", "record", "commit", "replace", "built", "view"})
"""What the driver itself does: others do not care for a kill right then."""

_CARRIERS: frozenset[Target] = frozenset({"ray worker", "raylet", "node"})
"""What tells a cluster's driver of a step."""

_TARGETS: Mapping[Target, int] = {
    "driver": 8, "guard": 4, "worker": 7, "job": 9, "installer": 5, "container": 8, "ray worker": 12,
    "raylet": 4, "node": 6,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When: so many seconds after the start, or after something has happened so many times."""

    delay: float
    event: Event | None = None
    times: int = 1


def draw_moment(dice: random.Random, habits: Habits, *, start: float, length: float) -> Moment:
    """A moment of a run.

    Args:
        dice: where chance comes from.
        habits: of the engine.
        start: seconds until a run has the store.
        length: seconds that an undisturbed run takes.
    """
    way = dice.random()
    if way < 0.1:
        return Moment(delay=dice.uniform(0, start))
    if way < 0.4:
        return Moment(delay=dice.uniform(0, 0.6 * length))
    event = dice.choices(list(habits.events), list(habits.events.values()))[0]
    delay = dice.choice([0.0, 0.0, dice.uniform(0, 0.003), dice.uniform(0, 0.03)])
    times = 1 if event in {"locked", "view"} else dice.choice([1, 1, 1, 2, 3, 5])
    return Moment(delay=delay, event=event, times=times)


def draw_target(dice: random.Random, habits: Habits, moment: Moment, there: set[Target]) -> Target:
    """Whom to kill, of those that are there; the driver always is."""
    if moment.event in _OF_THE_DRIVER and dice.random() < habits.at_driver:
        return "driver"
    possible = [target for target in _TARGETS if target in there | {"driver"}]
    if moment.event == "uploaded" and there & _CARRIERS and dice.random() < 0.6:
        # What is kept, and perhaps not told of yet.
        possible = [target for target in possible if target in _CARRIERS]
    return dice.choices(possible, [_TARGETS[target] for target in possible])[0]
