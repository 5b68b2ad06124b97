"""What the records at hand show: which finding, at which stage, of which vLLM."""

from __future__ import annotations

from collections.abc import Iterator

from qvlfp8.cells import OF_CHECKPOINT
from qvlfp8.environments import ServeEnvironment
from qvlfp8.project import Project
from qvlfp8.report.table import view_cells
from qvlfp8.results import Record
from qvlfp8.scoring import score_load
from qvlfp8.survey import survey

__all__ = ["Observed", "named_version", "notes", "observed"]


def named_version(serve: ServeEnvironment) -> str:
    """As the table's columns are called: ``0.32.0-cpu``, ``0.10.2-unpinned``."""
    return serve.id.removeprefix("vllm-")


Observed = tuple[str | None, str, tuple[str, ...], set[str]]
"""vLLM (None: the checkpoint alone), stage, the record (or lock) that says it, the findings."""


def observed(project: Project, *, committed_only: bool = False) -> Iterator[Observed]:
    """Every stage of every cell that a current record answers: here, and on each GPU of ``results/``.

    ``committed_only`` leaves out what was executed here: the same for everybody.
    """
    cells = project.cells(everything=True)
    plan = project.plan(cells, project.locks(cells))
    here = [] if committed_only else [project.lookup]
    lookups = [*here, *(project.evidence.at(name).record for name in project.evidence.accelerators)]
    for lookup in lookups:
        seen = survey(plan, lookup)
        for view in view_cells(plan, seen, project.matrix.bounds):
            version = named_version(view.cell.serve)
            for stage in view.stages:
                record = seen[stage.digest].record if stage.digest else None
                if record is None or stage.status not in {"pass", "fail"}:
                    continue
                key = (stage.digest, record.host.accelerator or "")
                found = {*stage.findings, *notes(stage.stage, record)}
                yield None if stage.stage in OF_CHECKPOINT else version, stage.stage, key, found
    for cell in cells:
        for step in plan.unresolved(cell):
            found = {"does-not-resolve"}
            if step.environment == cell.serve.id:
                yield named_version(cell.serve), "resolve", ("lock", step.digest), found
            else:
                yield None, "resolve", ("lock", step.digest), found


def notes(stage: str, record: Record) -> Iterator[str]:
    """Findings that fail nothing, which the table does not show."""
    if record.stage != "generate":
        yield from (finding.id for finding in record.findings)
    elif stage == "load" and record.status == "pass":
        yield from (finding.id for finding in score_load(record.measured).findings)
