"""What is killed: the drill's project, or the repository's own with real ModelOpt and real vLLM loaders."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from qvlfp8.project import Project
from tests.survive import kept, shared
from tests.survive.kept import Entry, Key
from tests.survive.project import ROOT, Drill

REAL_CELLS = "lm-fp8*/modelopt-0.47.0/seeing-untied/vllm-0.26.0"
_BORROWED = ROOT / ".qvlfp8" / "environments"


class Subject(Protocol):
    """What is run: a command that fills a store."""

    @property
    def name(self) -> str:
        """What kills are counted under."""
        ...

    @property
    def told(self) -> Path | None:
        """The pipe in which its workers say what they begin and end, if they do."""
        ...

    @property
    def tries_again(self) -> bool:
        """Whether one run begins a step again that had not finished."""
        ...

    def undisturbed(self, store: Path) -> list[str]:
        """The command line of a run whose records all others have to have."""
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

    def entries(self, store: Path) -> tuple[dict[Key, Entry], list[str]]:
        """What is kept for good, by step, and what is broken of it."""
        ...

    def not_whole(self, store: Path, found: Mapping[Key, Entry]) -> Iterator[str]:
        """The entries whose files are not those that their record names."""
        ...


class _InItsStore:
    """A run on this machine: all of it is in the driver's store."""

    tries_again = False

    def undisturbed(self, store: Path) -> list[str]:
        """The same command."""
        return self.command(store, again=False)

    def command(self, store: Path, *, again: bool) -> list[str]:
        """Of the subject."""
        raise NotImplementedError

    def entries(self, store: Path) -> tuple[dict[Key, Entry], list[str]]:
        """Those of the driver's store."""
        return kept.entries(store)

    def not_whole(self, store: Path, found: Mapping[Key, Entry]) -> Iterator[str]:
        """Those of the driver's store."""
        return kept.not_whole(store, found)


@dataclass(frozen=True)
class Drilled(_InItsStore):
    """The drill's project in an engine of this machine."""

    drill: Drill
    name: str

    @property
    def told(self) -> Path:
        """The drill workers' pipe."""
        return self.drill.pipe

    def command(self, store: Path, *, again: bool) -> list[str]:
        """`qvlfp8 matrix` of the copy."""
        return [*self.drill.command(store, engine=self.name), *(["--again"] if again else [])]

    def variables(self) -> dict[str, str]:
        """Its environment."""
        return self.drill.variables()

    def prepare(self, store: Path) -> None:
        """An empty store is ready."""


@dataclass(frozen=True)
class Clustered(Drilled):
    """The drill's project on a cluster: finished is what its shared store has, which drivers share."""

    address: str
    tries_again = True

    def undisturbed(self, store: Path) -> list[str]:
        """On this machine alone: the verdicts have to be the same."""
        return self.drill.command(store, engine="venv")

    def command(self, store: Path, *, again: bool) -> list[str]:
        """`qvlfp8 matrix --engine ray` of the copy; what ended in an error waits for 5 s, once."""
        options = ["--address", self.address, "--shared", shared.url(store), "--retries", "1"]
        return [*super().command(store, again=again), *options]

    def entries(self, store: Path) -> tuple[dict[Key, Entry], list[str]]:
        """Those of the shared store."""
        return shared.entries(store)

    def not_whole(self, store: Path, found: Mapping[Key, Entry]) -> Iterator[str]:
        """Those of the shared store."""
        return shared.not_whole(store, found)


@dataclass(frozen=True)
class Real(_InItsStore):
    """Some cells of the repository's matrix, on the environments that its own store has."""

    name = "venv, real workers"
    told = None

    @staticmethod
    def missing() -> str:
        """Which environment is not built; empty if all are."""
        project = Project.open(ROOT / "matrix.yaml")
        cells = project.cells(only=(REAL_CELLS,))
        for (name, device), lock in project.locks(cells).items():
            built = _BORROWED / f"{name}-{lock.digest[:12]}" / "complete.json"
            if device == "cpu" and not built.exists():
                return name
        return ""

    def command(self, store: Path, *, again: bool) -> list[str]:
        """`qvlfp8 matrix` of the repository."""
        options = ["--matrix", str(ROOT / "matrix.yaml"), "--store", str(store), "--only", REAL_CELLS]
        return [sys.executable, "-P", "-m", "qvlfp8", "matrix", *options, *(["--again"] if again else [])]

    def variables(self) -> dict[str, str]:
        """Its environment."""
        return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

    def prepare(self, store: Path) -> None:
        """Lend it the environments."""
        (store / "environments").symlink_to(_BORROWED.resolve(), target_is_directory=True)
