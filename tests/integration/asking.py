"""Ask stages about checkpoint folders that no plan knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from qvlfp8.cells import Cell
from qvlfp8.engine import Batch, Exit, Job
from qvlfp8.engine.venv import VenvEngine
from qvlfp8.environments import Environment
from qvlfp8.judge import Verdict, judge
from qvlfp8.project import Project
from qvlfp8.results import RecordedStage
from qvlfp8.store import Store


class Asker:
    """Runs inspect or a vLLM's preflight over a set of checkpoint folders, in one batch each."""

    def __init__(self, shipped: Project, folders: Mapping[str, Path], root: Path) -> None:
        self._project = shipped
        self._folders = folders
        self._root = root
        locks = shipped.matrix.file.locks
        self._engine = VenvEngine(
            Store(shipped.store.root), python=locks.python, torch=locks.torch, announce=lambda _: None
        )

    def built(self, cell: Cell) -> bool:
        """Whether the cell's serve environment is there."""
        return self._engine.built(cell.serve, self._project.locks([cell])[cell.serve.id, "cpu"])

    def ask(self, stage: RecordedStage, cell: Cell | None) -> dict[str, Verdict]:
        """Name of a folder -> what the stage says of it."""
        where = cell.serve.id if cell else "none"
        jobs = []
        for name, folder in self._folders.items():
            out = self._root / where / name.replace(" ", "-")
            out.mkdir(parents=True)
            jobs.append(Job(id=name, params={"checkpoint": str(folder), "recipe": None}, out=out))
        environment: Environment | None = cell.serve if cell else None
        lock = self._project.locks([cell])[cell.serve.id, "cpu"] if cell else None
        if environment and lock:
            assert self._engine.built(environment, lock), "run `nox -s matrix` first"
        self._engine.run(
            (environment, lock) if environment and lock else None,
            Batch(worker=stage, jobs=jobs, time_limit_s=120, threads=1),
            self._root / f"{where}.log",
            lambda _event: None,
        )
        return {
            job.id: judge(stage, json.loads((job.out / "result.json").read_text()), Exit(code=0), 120)
            for job in jobs
        }
