"""vLLM's loader in the serve environments that are built, asked one checkpoint at a time."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from qvlfp8.locks import find_lock
from qvlfp8.project import Project
from tests.contract_cases import Made

ROOT = Path(__file__).parents[2]
SERVER = Path(__file__).with_name("loader_server.py")


class Loader:
    """vLLM's loader in its own environment, asked one checkpoint at a time."""

    def __init__(self, folder: Path, log: Path) -> None:
        variables = {"VLLM_CACHE_ROOT": str(folder / "cache" / "vllm"), "OMP_NUM_THREADS": "1"}
        self._log = log.open("w")
        self._process = subprocess.Popen(
            [str(folder / "bin" / "python"), "-P", str(SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **variables},
        )
        self.facts = self._answer()
        assert "fault" not in self.facts, self.facts["fault"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the loader ended: see {self._log.name}"
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, made: Made, architectures: Sequence[Any] | None = None) -> dict[str, Any]:
        """What preflight measures; ``architectures`` as the contract's worker takes them."""
        assert self._process.stdin is not None
        case = {"files": made.files, "tensors": made.tensors, "architectures": architectures}
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()


def built() -> dict[str, Path]:
    """The plain serve environments that are there, by id."""
    project = Project.open(ROOT / "matrix.yaml")
    found = {}
    for environment in project.matrix.file.serve:
        if environment.recordable:
            lock = find_lock(project.matrix, environment)
            folder = project.store.environments / f"{environment.id}-{lock.digest[:12]}"
            if (folder / "complete.json").exists():
                found[environment.id] = folder
    return found
