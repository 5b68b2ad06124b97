"""What the driver says for a step that no node answered: it stands in for the node, and executes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qvlfp8.environments import Environment
from qvlfp8.execute import Executor, Site
from qvlfp8.locks import Lock
from qvlfp8.plan import LockKey, Plan
from qvlfp8.progress import Progress
from qvlfp8.results import Attempt
from qvlfp8.store import Store

if TYPE_CHECKING:
    from qvlfp8.engine import Batch, Exit


def giver_up(
    plan: Plan,
    store: Store,
    inside: str,
    *,
    environments: Mapping[str, Environment],
    locks: Mapping[LockKey, Lock],
    attempts: Mapping[str, tuple[Attempt, ...]],
) -> Executor:
    """An executor whose :meth:`~qvlfp8.execute.Executor.give_up` keeps such steps' errors.

    Args:
        plan: of the steps.
        store: the driver's own.
        inside: the name of the engine that nodes have.
        environments: by id.
        locks: of the environments.
        attempts: earlier tries, by step; read when a step is given up.
    """
    return Executor(
        plan.steps,
        store=store,
        engine=_Elsewhere(inside),
        environments=environments,
        locks=locks,
        # What is given up may be tried again: it is told once it is not.
        progress=Progress(),
        site=Site(facts={"node": "none: given up by the driver"}),
        attempts=attempts,
    )


class _Elsewhere:
    """Stands for the engine that nodes have, where the driver speaks for a step that no node answered."""

    def __init__(self, name: str) -> None:
        self.name = name

    def facts(self, _environment: object) -> dict[str, str]:
        """The engine's name."""
        return {"engine": self.name}

    def build(self, *_: object, **__: object) -> dict[str, Any]:
        """Not here."""
        raise NotImplementedError

    def built(self, *_: object) -> bool:
        """Nothing is built here."""
        return False

    def run(self, _where: object, _batch: Batch, _log: object, _on_event: object) -> Exit:
        """Not here."""
        raise NotImplementedError

    def stop(self) -> None:
        """Nothing runs here."""
