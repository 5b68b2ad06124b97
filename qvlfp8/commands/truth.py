"""``qvlfp8 truth``: plant faults in good checkpoints, and see whether the stages catch them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from qvlfp8.commands.matrix import execute
from qvlfp8.engine import Batch, Engine, Job
from qvlfp8.engine.choose import EngineName
from qvlfp8.errors import QvlError, UsageError
from qvlfp8.execute import TIME_LIMIT_S
from qvlfp8.host import devices
from qvlfp8.project import Project
from qvlfp8.report.progress import ConsoleProgress
from qvlfp8.store import writing
from qvlfp8.truth import session
from qvlfp8.truth.asking import WORKER, Asking, asking, cells_of
from qvlfp8.worker.protocol import RESULT


class MissedError(QvlError):
    """A fault was not caught, or a good checkpoint was accused."""


def run_truth(
    matrix: Path,
    store: Path | None,
    *,
    environment: str | None,
    per_task: int,
    engine: EngineName,
    verbose: bool,
) -> None:
    """Make the good checkpoints, break them one way at a time, run all, and print who caught what.

    Args:
        environment: id of a serve environment; None for vLLM's CPU build.
        per_task: questions of each task.

    Raises:
        MissedError: by the last line that is printed.
        QvlError: by class; what could be executed was, and is kept.
    """
    project = Project.open(matrix, store)
    cells = cells_of(project, environment)
    serve = cells[0].serve
    if serve.device not in devices():
        raise UsageError(
            f"{serve.id} needs a GPU, and there is none here",
            mend=f"bring it to one: `qvlfp8 bundle {serve.id} --truth`, then `qvlfp8 results import`",
        )
    with ExitStack() as stack:
        stack.enter_context(project.store.locked())
        progress = stack.enter_context(ConsoleProgress(Console(stderr=True), verbose=verbose))
        executed = execute(project, cells, progress, engine=engine)
        asked = asking(project, executed.plan, cells, project.locks(cells), per_task=per_task)
        if asked is None:
            raise QvlError("the good checkpoints could not be made", mend="see `qvlfp8 table`")
        work = project.store.root / "truth"
        with writing(work):
            _run(asked, executed.engine, work, progress)
    verdicts = asked.judge(_results(work, asked.runs))
    line, held = session.summary(verdicts)
    print(session.table(verdicts))
    print(line)
    if not held:
        raise MissedError(f"the oracle did not hold: {line}", mend=f"results and logs are in {work}")


def _run(asked: Asking, engine: Engine, work: Path, progress: ConsoleProgress) -> None:
    """Do the runs that have no result yet, in one batch."""
    names = {run.digest: run.subject.id for run in asked.runs}
    jobs = []
    for run in asked.runs:
        out = work / run.digest
        if (out / RESULT).exists():
            continue
        out.mkdir(parents=True, exist_ok=True)
        baseline = str(work / asked.baseline) if run.digest != asked.baseline else None
        job = run.job(str(asked.folders[run.subject.base]), baseline, str(out))
        reads = [asked.folders[run.subject.base], *([Path(baseline)] if baseline else [])]
        jobs.append(Job(id=job["id"], params=job["params"], out=out, reads=tuple(reads)))
    if not jobs:
        return
    done = 0

    def on_event(event: Mapping[str, Any]) -> None:
        nonlocal done
        if event["event"] == "end":
            done += 1
            progress.announce(f"{done}/{len(jobs)} {names[event['job']]}")

    label = f"{len(jobs)} runs of vLLM"
    progress.task(label, running=True)
    try:
        engine.run(
            (asked.environment, asked.lock),
            Batch(worker=WORKER, jobs=jobs, time_limit_s=TIME_LIMIT_S["generate"]),
            work / "log.txt",
            on_event,
        )
    except BaseException:
        engine.stop()
        raise
    finally:
        progress.task(label, running=False)


def _results(work: Path, runs: Iterable[session.Run]) -> dict[str, dict[str, Any]]:
    """The results that are below ``work``, by the digests of their runs."""
    found = {}
    for run in runs:
        path = work / run.digest / RESULT
        if path.exists():
            found[run.digest] = json.loads(path.read_text(encoding="utf-8"))
    return found
