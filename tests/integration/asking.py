"""Ask stages about checkpoint folders that no plan knows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from qvlfp8.engine import Batch, Exit, Job
from qvlfp8.engine.venv import VenvEngine
from qvlfp8.judge import Verdict, judge
from qvlfp8.project import Project
from qvlfp8.results import RecordedStage
from qvlfp8.store import Store
from tests.integration.loader import Host

LIMIT_S = 120


class Asker:
    """Runs inspect or a vLLM's preflight over a set of checkpoint folders, in one batch each."""

    def __init__(self, shipped: Project, folders: Mapping[str, Path], root: Path) -> None:
        self._folders = folders
        self._root = root
        locks = shipped.matrix.file.locks
        self._engine = VenvEngine(
            Store(shipped.store.root), python=locks.python, torch=locks.torch, announce=lambda _: None
        )

    def inspect(self) -> dict[str, Verdict]:
        """Name of a folder -> what inspect says of it."""

        def carry_out(batch: Batch) -> None:
            self._engine.run(None, batch, self._root / "inspect.log", lambda _event: None)

        return self._ask("inspect", "inspect", carry_out)

    def preflight(self, serve: str, host: Host | None) -> dict[str, Verdict]:
        """Name of a folder -> what the preflight of a serve environment says of it."""
        assert host is not None, "run `nox -s matrix` first"
        return self._ask("preflight", serve, host.preflight)

    def _ask(
        self, stage: RecordedStage, where: str, carry_out: Callable[[Batch], None]
    ) -> dict[str, Verdict]:
        jobs = []
        for name, folder in self._folders.items():
            out = self._root / where / name.replace(" ", "-")
            out.mkdir(parents=True)
            jobs.append(Job(id=name, params={"checkpoint": str(folder), "recipe": None}, out=out))
        carry_out(Batch(worker=stage, jobs=jobs, time_limit_s=LIMIT_S, threads=1))
        return {
            job.id: judge(stage, json.loads((job.out / "result.json").read_text()), Exit(code=0), LIMIT_S)
            for job in jobs
        }
