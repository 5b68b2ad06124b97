"""``qvlfp8 results``: records of runs that were made elsewhere."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from qvlfp8 import __version__, digest
from qvlfp8.engine import Exit
from qvlfp8.errors import QvlError, UsageError
from qvlfp8.evidence import Evidence
from qvlfp8.importing import Imported, expected_of, read_results
from qvlfp8.judge import judge
from qvlfp8.plan import Step
from qvlfp8.project import Project
from qvlfp8.report.evidence import write_pages
from qvlfp8.results import Record
from qvlfp8.run import TIME_LIMIT_S, repeat_command


class RejectedError(QvlError):
    """Some results were not taken in; the others were."""


def import_results(matrix: Path, store: Path | None, folder: Path) -> None:
    """Take in the results below ``folder``, the folder ``out`` of a bundle that was run.

    Raises:
        UsageError: there is no result.
        RejectedError: some do not belong to this project as it stands; what does is taken in.
    """
    project = Project.open(matrix, store)
    cells = project.cells(everything=True)
    plan = project.plan(cells, project.locks(cells))

    def made(step: Step) -> str | None:
        record = project.store.record(step.stage, step.digest)
        return record.made if record and record.status == "pass" else None

    taken, rejected = read_results(folder, expected_of(plan, made))
    if not taken and not rejected:
        raise UsageError(f"{folder}: no result in it", mend="name the folder `out` of a bundle that was run")
    evidence = Evidence(project.evidence.root)
    for result in taken:
        step = plan.steps[result.digest]
        record = _record(step, result)
        path = evidence.add(record)
        print(f"{'✓' if record.status == 'pass' else '!'} {record.subject}  {path}")
    for bad in rejected:
        print(f"✗ {bad.job[:12]}: {bad.reason}", file=sys.stderr)
    if rejected:
        raise RejectedError(f"{len(rejected)} results were not taken in, {len(taken)} were")


def _record(step: Step, imported: Imported) -> Record:
    result = imported.result
    verdict = judge("generate", result, Exit(code=0), TIME_LIMIT_S["generate"])
    log = imported.folder / "log.txt"
    return Record(
        stage="generate",
        subject=step.subject,
        digest=step.digest,
        status=verdict.status,
        inputs={**step.inputs, "params": dict(step.params), "needs": list(step.needs)},
        environment={**result.get("environment", {}), **imported.facts, "engine": "bundle"},
        host=imported.host,
        started=imported.started,
        seconds=result.get("seconds", 0.0),
        measured=result.get("measured") or {},
        findings=verdict.findings,
        fault=verdict.fault,
        repeat=repeat_command(step),
        evidence=step.evidence,
        log_digest=digest.of_file(log) if log.exists() else None,
        qvlfp8=__version__,
    )


def write_report(matrix: Path, store: Path | None) -> None:
    """Write ``results/README.md`` and the pictures that it shows."""
    project = Project.open(matrix, store)
    pictures = project.evidence.root / "pictures"
    shutil.rmtree(pictures, ignore_errors=True)
    page = write_pages(project)
    print(page)
