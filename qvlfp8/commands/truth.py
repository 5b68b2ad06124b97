"""``qvlfp8 truth``: plant faults in good checkpoints, and see whether the stages catch them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from qvlfp8 import digest, source
from qvlfp8.cells import PLAIN, Cell
from qvlfp8.commands.matrix import execute
from qvlfp8.engine import Batch, Job
from qvlfp8.engine.venv import VenvEngine
from qvlfp8.errors import QvlError, UsageError
from qvlfp8.plan import Plan
from qvlfp8.project import Project
from qvlfp8.report.progress import ConsoleProgress
from qvlfp8.run import TIME_LIMIT_S
from qvlfp8.store import writing
from qvlfp8.truth import session
from qvlfp8.worker.protocol import RESULT

GOOD = ("lm-fp8", "lm-fp8-image-calib", "vlm-fp8")
"""The recipes whose checkpoints must raise no alarm; faults are planted in the first and the last."""


class MissedError(QvlError):
    """A fault was not caught, or a good checkpoint was accused."""


def run_truth(matrix: Path, store: Path | None, *, per_task: int, verbose: bool) -> None:
    """Make the good checkpoints, break them one way at a time, run all, and print who caught what.

    Raises:
        MissedError: by the last line that is printed.
        QvlError: by class; what could be executed was, and is kept.
    """
    project = Project.open(matrix, store)
    cells = _cells(project)
    with ExitStack() as stack:
        stack.enter_context(project.store.locked())
        progress = stack.enter_context(ConsoleProgress(Console(stderr=True), verbose=verbose))
        plan, engine = execute(project, cells, progress)
        good = _good(project, plan, cells)
        work = project.store.root / "truth" / _digest(project, plan, cells, per_task)[:16]
        with writing(work):
            work.mkdir(parents=True, exist_ok=True)
            subjects, spec = session.prepare(
                good,
                work,
                exam={"seed": project.matrix.file.exam.seed, "per_task": per_task},
                options={"device": "cpu", **PLAIN.options},
            )
        _run(project, cells[0], engine, spec, work, progress)
    bounds = {cell.recipe.id: project.matrix.bounds(cell) for cell in cells}
    verdicts = session.judge(subjects, session.read_results(work, subjects), bounds)
    line, held = session.summary(verdicts)
    print(session.table(verdicts))
    print(line)
    if not held:
        raise MissedError(f"the oracle did not hold: {line}", mend=f"results and logs are in {work}")


def _cells(project: Project) -> list[Cell]:
    """One cell a good recipe: newest ModelOpt, untied trained model, vLLM's CPU build."""
    found = []
    for recipe in GOOD:
        fitting = [
            cell
            for cell in project.matrix.cells
            if cell.recipe.id == recipe
            and cell.model.reference == "trained"
            and not cell.model.tie_word_embeddings
            and cell.serve.device == "cpu"
            and cell.variant.id == PLAIN.id
        ]
        if not fitting:
            raise UsageError(
                f"no cell of {recipe} has a trained model and a serve environment of device cpu",
                mend="add one to matrix.yaml",
            )
        found.append(fitting[-1])
    return found


def _good(project: Project, plan: Plan, cells: Sequence[Cell]) -> Mapping[str, Path]:
    model = next(step for step in plan.steps.values() if step.stage == "model")
    folders = {session.BASELINE: project.store.entry("model", model.digest) / "model"}
    for cell in cells:
        step = plan.step(cell, "quantize")
        folders[cell.recipe.id] = project.store.entry("quantize", step.digest) / "checkpoint"
    return folders


def _digest(project: Project, plan: Plan, cells: Sequence[Cell], per_task: int) -> str:
    """Of everything that can change what the runs say: then they are done again."""
    made = [project.lookup(plan.step(cell, "quantize")) for cell in cells]
    parts: list[Any] = [
        source.of_worker("generate"),
        source.of_modules("truth.faults"),
        [record.made for record in made if record],
        [plan.step(cell, "load").digest for cell in cells],
        project.matrix.file.exam.seed,
        per_task,
    ]
    return digest.of_json(parts)


def _run(
    project: Project,
    cell: Cell,
    engine: VenvEngine,
    spec: Mapping[str, Any],
    work: Path,
    progress: ConsoleProgress,
) -> None:
    """Run the jobs that have no result yet, in one batch."""
    jobs = [
        Job(id=job["id"], params=job["params"], out=Path(job["out"]))
        for job in spec["jobs"]
        if not (Path(job["out"]) / RESULT).exists()
    ]
    if not jobs:
        return
    done = 0

    def on_event(event: Mapping[str, Any]) -> None:
        nonlocal done
        if event["event"] == "end":
            done += 1
            progress.announce(f"{done}/{len(jobs)} {event['job']}")

    lock = project.locks([cell])[cell.serve.id, "cpu"]
    label = f"{len(jobs)} runs of vLLM"
    progress.task(label, running=True)
    try:
        engine.run(
            (cell.serve, lock),
            Batch(worker=spec["worker"], jobs=jobs, time_limit_s=TIME_LIMIT_S["generate"]),
            work / "log.txt",
            on_event,
        )
    except BaseException:
        engine.stop()
        raise
    finally:
        progress.task(label, running=False)
