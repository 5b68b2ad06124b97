"""What a project's truth runs are: which good checkpoints, in which serve environment, of which digests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvlfp8 import source
from qvlfp8.cells import PLAIN, Cell
from qvlfp8.checkpoint import CONFIG
from qvlfp8.environments import ServeEnvironment
from qvlfp8.errors import UsageError
from qvlfp8.locks import Lock
from qvlfp8.plan import LockKey, Plan, Step
from qvlfp8.project import Project
from qvlfp8.scoring import Bounds
from qvlfp8.truth import session

GOOD = ("lm-fp8", "lm-fp8-image-calib", "vlm-fp8")
"""The recipes whose checkpoints must raise no alarm; faults are planted in the first and the last."""

WORKER = "planted"


def cells_of(project: Project, environment: str | None = None) -> list[Cell]:
    """One cell a good recipe: newest ModelOpt, untied trained model, in a serve environment.

    Args:
        environment: its id; None for vLLM's CPU build.

    Raises:
        UsageError: a recipe has no such cell.
    """
    cells = find_cells(project, environment)
    if cells is None:
        where = environment or "a serve environment of device cpu"
        raise UsageError(
            f"{', '.join(GOOD)}: not all have a cell with a trained, untied model and {where}",
            mend="see `cells` in matrix.yaml",
        )
    return cells


def find_cells(project: Project, environment: str | None) -> list[Cell] | None:
    """The same, None where there is no such cell."""
    found = {
        cell.recipe.id: cell
        for cell in project.matrix.cells
        if cell.recipe.id in GOOD
        and cell.model.reference == "trained"
        and not cell.model.tie_word_embeddings
        and (cell.serve.device == "cpu" if environment is None else cell.serve.id == environment)
        and cell.variant.id == PLAIN.id
    }
    return [found[recipe] for recipe in GOOD] if len(found) == len(GOOD) else None


@dataclass(frozen=True, kw_only=True)
class Asking:
    """The truth runs in one serve environment: ``folders`` of the good checkpoints, ``runs``, ``bounds``.

    ``made`` are the digests of the checkpoints; they, the folders and the bounds are by recipe.
    """

    environment: ServeEnvironment
    lock: Lock
    folders: Mapping[str, Path]
    made: Mapping[str, str]
    runs: Sequence[session.Run]
    bounds: Mapping[str, Bounds]

    @property
    def baseline(self) -> str:
        """Digest of the BF16 model's run."""
        return next(run.digest for run in self.runs if run.subject.id == session.BASELINE)

    def judge(self, results: Mapping[str, Mapping[str, Any]]) -> list[session.Verdict]:
        """Judge from the results of runs, by their digests."""
        by_subject = {run.subject.id: results[run.digest] for run in self.runs if run.digest in results}
        return session.judge([run.subject for run in self.runs], by_subject, self.bounds)


def asking(
    project: Project,
    plan: Plan,
    cells: Sequence[Cell],
    locks: Mapping[LockKey, Lock],
    *,
    per_task: int,
) -> Asking | None:
    """What is asked of the good checkpoints of these cells; None if one is not made yet.

    Raises:
        UsageError: the environment has no lock for its GPU.
    """
    serve = cells[0].serve
    lock = locks.get((serve.id, serve.device))
    if lock is None:
        raise UsageError(f"{serve.id} has no lock for a GPU", mend=f"`qvlfp8 lock {serve.id}.cuda`")
    model = plan.steps[plan.baseline(cells[0]).needs[-1]]
    steps: dict[str, Step] = {session.BASELINE: model}
    steps |= {cell.recipe.id: plan.step(cell, "quantize") for cell in cells}
    made: dict[str, str] = {}
    folders: dict[str, Path] = {}
    for name, step in steps.items():
        record = project.executed(step)
        if record is None or record.made is None:
            return None
        made[name] = record.made
        folder = "model" if step.stage == "model" else "checkpoint"
        folders[name] = project.store.entry(step.stage, step.digest) / folder
    config = json.loads((folders[session.BASELINE] / CONFIG).read_text(encoding="utf-8"))
    return Asking(
        environment=serve,
        lock=lock,
        folders=folders,
        made=made,
        runs=session.runs(
            session.subjects(made, config),
            exam={"seed": project.matrix.file.exam.seed, "per_task": per_task},
            options={"device": serve.device, **PLAIN.options},
            on={"worker": source.of_worker(WORKER), "lock": lock.digest, "made": made},
        ),
        bounds={cell.recipe.id: project.matrix.bounds(cell) for cell in cells},
    )
