"""``qvlfp8 results``: records of runs that were made elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from qvlfp8 import __version__, digest, merging, source
from qvlfp8.engine import Exit
from qvlfp8.errors import QvlError, UsageError
from qvlfp8.evidence import Evidence
from qvlfp8.execute import TIME_LIMIT_S
from qvlfp8.importing import Expected, Imported, Rejected, expected_of, read_results
from qvlfp8.judge import judge
from qvlfp8.locks import Lock
from qvlfp8.plan import LockKey, Plan, Step, repeat_command
from qvlfp8.project import Project
from qvlfp8.report.evidence import write_pages
from qvlfp8.results import Fault, Record
from qvlfp8.store import Store, end_of
from qvlfp8.truth import TRUTH_PER_TASK, session
from qvlfp8.truth.asking import WORKER, Asking, asking, find_cells


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
    locks = project.locks(cells, gpu="bundle")
    plan = project.plan(cells, locks)

    def made(step: Step) -> str | None:
        record = project.store.record(step.stage, step.digest)
        return record.made if record and record.status == "pass" else None

    truths = list(_truths(project, plan, locks))
    expected = expected_of(plan, made)
    for asked in truths:
        expected |= _expected_of_truth(asked)
    taken, rejected = read_results(folder, expected)
    if not taken and not rejected:
        raise UsageError(f"{folder}: no result in it", mend="name the folder `out` of a bundle that was run")
    total = len(taken) + len(rejected)
    results = {result.digest: result for result in taken}
    records = [_record(plan.steps[digest], results[digest]) for digest in results if digest in plan.steps]
    for asked in truths:
        if any(run.digest in results for run in asked.runs):
            records.append(_truth_record(asked, results))
    evidence = Evidence(project.evidence.root)
    for record in records:
        if record.status == "error":
            # The machine's fault says nothing of a checkpoint, and must not replace what was measured.
            rejected = (*rejected, Rejected(job=record.subject, reason=record.because()))
            continue
        path = evidence.add(record)
        print(f"{'✓' if record.status == 'pass' else '!'} {record.subject}  {path}")
    for bad in rejected:
        print(f"✗ {bad.job[:80]}: {bad.reason}", file=sys.stderr)
    if rejected:
        raise RejectedError(f"{len(rejected)} of {total} results were not taken in, the others were")


def _truths(project: Project, plan: Plan, locks: Mapping[LockKey, Lock]) -> Iterator[Asking]:
    """The truth runs of every GPU environment that has a lock, where the good checkpoints are made."""
    for serve in {cell.serve.id: cell.serve for cell in plan.cells}.values():
        if serve.device == "cuda" and (serve.id, "cuda") in locks:
            cells = find_cells(project, serve.id)
            asked = cells and asking(project, plan, cells, locks, per_task=TRUTH_PER_TASK)
            if asked:
                yield asked


def _expected_of_truth(asked: Asking) -> dict[str, Expected]:
    worker = source.of_worker(WORKER)
    return {
        run.digest: Expected(worker=worker, lock=asked.lock.digest, checkpoint=asked.made[run.subject.base])
        for run in asked.runs
    }


def _truth_record(asked: Asking, results: Mapping[str, Imported]) -> Record:
    """One record of all truth runs in an environment; an error if one of them was not done."""
    ran = [results[run.digest] for run in asked.runs if run.digest in results]
    first = min(ran, key=lambda result: result.started)
    verdicts = asked.judge({result.digest: result.result for result in ran})
    line, held = session.summary(verdicts)
    undone = [f"{verdict.subject.id}: {verdict.error}" for verdict in verdicts if verdict.error]
    return Record(
        stage="truth",
        subject=f"truth/{asked.environment.id}",
        digest=digest.of_json([run.digest for run in asked.runs]),
        status="error" if undone else "pass" if held else "fail",
        fault=Fault(kind="incomplete", message="; ".join(undone)) if undone else None,
        inputs={"worker": source.of_worker(WORKER), "lock": asked.lock.digest, "checkpoints": asked.made},
        environment={**first.result.get("environment", {}), **first.facts, "engine": "bundle"},
        host=first.host,
        started=first.started,
        seconds=round(sum(result.result.get("seconds", 0.0) for result in ran), 1),
        measured={"summary": line, "verdicts": [verdict.as_json() for verdict in verdicts]},
        repeat=f"qvlfp8 truth --environment {asked.environment.id}",
        qvlfp8=__version__,
    )


def _record(step: Step, imported: Imported) -> Record:
    result = imported.result
    log = imported.folder / "log.txt"
    verdict = judge("generate", result, Exit(code=0), TIME_LIMIT_S["generate"], log=end_of(log))
    return Record(
        stage="generate",
        subject=step.subject,
        digest=step.digest,
        status=verdict.status,
        inputs={
            **step.inputs,
            "params": dict(step.params),
            "asked": dict(step.asked),
            "needs": list(step.needs),
        },
        environment={**result.get("environment", {}), **imported.facts, "engine": "bundle"},
        host=imported.host,
        started=imported.started,
        seconds=result.get("seconds", 0.0),
        measured=result.get("measured") or {},
        findings=verdict.findings,
        fault=verdict.fault,
        repeat=repeat_command(step),
        evidence=step.evidence[0],
        log_digest=digest.of_file(log) if log.exists() else None,
        qvlfp8=__version__,
    )


def write_report(matrix: Path, store: Path | None) -> None:
    """Write ``results/README.md`` and the pictures that it shows."""
    print(write_pages(Project.open(matrix, store)))


def merge_results(stores: Sequence[Path], *, fill: Sequence[Path], store: Path) -> None:
    """Copy the entries of several stores into one.

    Raises:
        UsageError: a folder is no store.
        ContradictionError: two stores say different things of one step; nothing is copied.
        RejectedError: some entries are not whole; the others were copied.
        StoreBusyError, StoreWriteError: ``store`` cannot be written.
    """
    into = Store(store.resolve())
    with into.locked():
        merged = merging.merge(
            [Store(path.resolve()) for path in stores],
            fill=[Store(path.resolve()) for path in fill],
            into=into,
        )
        copied = merging.copy(merged.entries, into)
    print(f"{len(merged.entries)} records in {store}, {copied} of them copied now")
    for line in merged.rejected:
        print(f"✗ {line}", file=sys.stderr)
    if merged.rejected:
        raise RejectedError(f"{len(merged.rejected)} entries were not taken in, the others were")
