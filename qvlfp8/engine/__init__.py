"""Where a step runs. An engine knows environments, processes, limits and logs, and nothing of recipes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    # Processes can be run where nothing is installed.
    from qvlfp8.environments import Environment
    from qvlfp8.locks import Lock


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job of a batch: an id, the worker's parameters (paths included), and an empty output folder.

    ``reads`` are the input folders that the parameters name: all that an engine with walls lets in.
    """

    id: str
    params: dict[str, Any]
    out: Path
    reads: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Jobs that one worker process answers. ``time_limit_s`` is for each job, not for all."""

    worker: str
    jobs: Sequence[Job]
    time_limit_s: float
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Exit:
    """How a process ended. ``code`` is negative for a signal, as in :mod:`subprocess`.

    ``out_of_memory``: the kernel ended it for using more memory than there is, or than it may.
    """

    code: int
    timed_out: bool = False
    out_of_memory: bool = False


Announce = Callable[[str], None]
"""Shows a line to the user: an external command before it runs."""


class Engine(Protocol):
    """Builds environments and runs batches in them."""

    name: str

    def build(self, environment: Environment, lock: Lock, log: Path) -> dict[str, Any]:
        """Make the environment if it is not there; returns facts about it.

        Raises:
            QvlError: it cannot be built; the class says why.
        """
        ...

    def built(self, environment: Environment, lock: Lock) -> bool:
        """Whether the environment is there, whole."""
        ...

    def facts(self, environment: tuple[Environment, Lock] | None) -> dict[str, str]:
        """What a record says of where its step ran: the engine's name, and the image if there is one."""
        ...

    def run(
        self,
        environment: tuple[Environment, Lock] | None,
        batch: Batch,
        log: Path,
        on_event: Callable[[dict[str, Any]], None],
    ) -> Exit:
        """Run a batch in an environment (None: qvlfp8's own Python) and report its events."""
        ...

    def stop(self) -> None:
        """End everything that this engine has running; may be called from another thread."""
        ...
