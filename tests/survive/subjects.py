"""What is killed: the drill's project, or the repository's own with real ModelOpt and real vLLM loaders."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from qvlfp8.project import Project
from tests.survive.project import ROOT, Drill

REAL_CELLS = "lm-fp8*/modelopt-0.47.0/seeing-untied/vllm-0.26.0"
_BORROWED = ROOT / ".qvlfp8" / "environments"


@dataclass(frozen=True)
class Drilled:
    """The drill's project in one engine."""

    drill: Drill
    engine: str

    @property
    def told(self) -> Path:
        """The drill workers' pipe."""
        return self.drill.pipe

    def command(self, store: Path, *, again: bool) -> list[str]:
        """`qvlfp8 matrix` of the copy."""
        return [*self.drill.command(store, engine=self.engine), *(["--again"] if again else [])]

    def variables(self) -> dict[str, str]:
        """Its environment."""
        return self.drill.variables()

    def prepare(self, store: Path) -> None:
        """An empty store is ready."""


@dataclass(frozen=True)
class Real:
    """Some cells of the repository's matrix, on the environments that its own store has."""

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
