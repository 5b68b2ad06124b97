"""Where the steps of a driver run, and what there is to kill besides it: processes, containers, nodes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tests.survive import processes
from tests.survive.kills import ON_THIS_MACHINE, Habits, Target
from tests.survive.processes import Process


class Surroundings(Protocol):
    """What is the engine's own."""

    away_s: float
    """How long a dead driver's processes may live on."""
    habits: Habits
    """What kills are aimed at."""

    def own(self, driver: int) -> None:
        """A driver of this session was started, with that process id."""
        ...

    def ready(self) -> None:
        """What was lost is there again: a driver will be started."""
        ...

    def fresh(self) -> None:
        """Forget what was built and fetched: a round begins."""
        ...

    def processes(self, driver: int) -> list[Process]:
        """What runs for a driver, itself left out."""
        ...

    def others(self) -> Mapping[Target, Sequence[str]]:
        """What else there is to kill, by kind."""
        ...

    def kill(self, target: Target, which: str, dice: random.Random) -> bool:
        """Kill one of :meth:`others`; False if it had ended."""
        ...

    def hosts(self) -> set[str]:
        """Names of hosts other than this machine on which steps run."""
        ...

    def environments(self, store: Path) -> Iterator[Path]:
        """The folders of environments."""
        ...

    def left(self) -> list[str]:
        """What is there though nothing runs any more."""
        ...

    def close(self) -> None:
        """End what was started for the session."""
        ...


class ThisMachine:
    """Engine ``venv``: processes below the driver, and environments in its store."""

    away_s = 10.0
    habits = ON_THIS_MACHINE

    def own(self, driver: int) -> None:
        """Nothing to do."""

    def ready(self) -> None:
        """Nothing is ever lost."""

    def fresh(self) -> None:
        """All is in the driver's store."""

    def processes(self, driver: int) -> list[Process]:
        """Those below the driver that are not of its own session."""
        return [process for process in processes.descendants(driver) if process.session != driver]

    def others(self) -> Mapping[Target, Sequence[str]]:
        """Nothing."""
        return {}

    def kill(self, target: Target, which: str, dice: random.Random) -> bool:
        """Nothing is there to kill."""
        raise NotImplementedError

    def hosts(self) -> set[str]:
        """No other."""
        return set()

    def environments(self, store: Path) -> Iterator[Path]:
        """Those of the store."""
        return store.glob("environments/*")

    def left(self) -> list[str]:
        """Processes are waited for elsewhere."""
        return []

    def close(self) -> None:
        """Nothing was started."""
