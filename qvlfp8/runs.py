"""Reading a run, for :mod:`qvlfp8.history`: a store, a results folder, or a git revision of the project.

Of each checkpoint or cell, stage and accelerator the record that is current speaks, else the newest. A run
that is a revision is held against its own matrix.yaml, recipes and locks, the others against the project's.
How far answers may be from BF16 is always the project's to say: both are measured by the same yardstick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from qvlfp8 import revision
from qvlfp8.cells import Stage
from qvlfp8.errors import FileFormatError, QvlError, UsageError
from qvlfp8.evidence import Evidence
from qvlfp8.history import Ended, Key, Outcome
from qvlfp8.kept import KEPT
from qvlfp8.plan import Plan, Step
from qvlfp8.project import Project
from qvlfp8.report.table import answers
from qvlfp8.results import Record
from qvlfp8.store import Store
from qvlfp8.survey import changed, survey

Why = Callable[[Record], str]
"""Why a record is not current; empty for one that is."""

NOT_ASKED = "no cell of matrix.yaml asks for it any more"


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run says, by what it is of; ``note`` is what its reader has to know, or empty."""

    name: str
    outcomes: Mapping[Key, Outcome]
    note: str = ""


def read_run(name: str, project: Project) -> Run:
    """Read the run that a folder or a revision is.

    Raises:
        UsageError: it is neither a store, nor a results folder, nor a revision.
        FileFormatError: a committed record is not valid.
    """
    folder = Path(name)
    if _is_folder(folder / "matrix.yaml", file=True):
        raise UsageError(f"{name or '.'}: the project's own folder", mend="name its results/, or its store")
    if _is_folder(folder / "steps"):
        records = list(Store(folder.resolve()).records())
        if not records:
            raise UsageError(
                f"{name}: no record in this store", mend="name one in which something was executed"
            )
        return Run(name=name, outcomes=_outcomes(records, _by_digest(project, records), project))
    if _is_folder(folder):
        plan = _plan(project)
        records = list(_committed(folder, plan))
        if not records:
            raise UsageError(
                f"{name}: neither a store nor a results folder",
                mend="name a folder with `steps/` in it, a results/ folder, or a git revision",
            )
        return Run(name=name, outcomes=_outcomes(records, _by_key(plan), project))
    with TemporaryDirectory(prefix="qvlfp8-") as place:
        root = Path(place)
        revision.extract(name, project.matrix.path.parent, root)
        of_then: Plan | None = None
        note = ""
        try:
            of_then = _plan(Project.open(root / "matrix.yaml"))
        except QvlError as error:
            problem = error.problem.replace(f"{root}/", "")
            note = f"{name}: nothing of it is called stale, for its plan cannot be made today: {problem}"
        why = _by_key(of_then) if of_then else _always_current
        try:
            records = list(_committed(root / "results", of_then))
        except FileFormatError as error:
            # The file lies in git's objects; where it was unpacked is gone with this block.
            raise FileFormatError(error.problem.replace(f"{root}/", f"{name}:"), mend=error.mend) from None
        return Run(name=name, outcomes=_outcomes(records, why, project), note=note)


def _committed(root: Path, plan: Plan | None) -> Iterator[Record]:
    """The records of a results folder, each held against the step of the plan whose key it has."""
    evidence = Evidence(root)
    steps = plan.steps.values() if plan else ()
    yield from (record for _, record in evidence.records(steps) if record.stage == "generate")
    yield from evidence.kept.records()


def _always_current(_record: Record) -> str:
    return ""


def _plan(project: Project) -> Plan:
    cells = project.cells(everything=True)
    return project.plan(cells, project.locks(cells))


def _by_digest(project: Project, records: Iterable[Record]) -> Why:
    """For a store, whose records are found by the digests of steps."""
    plan = _plan(project)
    stored = {record.digest: record for record in records}
    seen = survey(plan, lambda step: stored.get(step.digest))
    steps = _steps(plan)

    def why(record: Record) -> str:
        known = seen.get(record.digest)
        return known.because if known else _since(record, steps)

    return why


def _by_key(plan: Plan) -> Why:
    """For committed records, which are found by what was asked."""
    keys = {key for step in plan.steps.values() for key in step.evidence}
    steps = _steps(plan)

    def why(record: Record) -> str:
        return "" if record.evidence in keys else _since(record, steps)

    return why


def _steps(plan: Plan) -> dict[tuple[str, str], Step]:
    return {(step.stage, step.subject): step for step in plan.steps.values()}


def _since(record: Record, steps: Mapping[tuple[str, str], Step]) -> str:
    step = steps.get((record.stage, record.subject))
    return changed(record, step) if step else NOT_ASKED


def _is_folder(path: Path, *, file: bool = False) -> bool:
    """Whether it is a folder (or a file); what no path can be is neither."""
    try:
        return path.is_file() if file else path.is_dir()
    except (OSError, ValueError):
        return False


def _outcomes(records: Iterable[Record], why: Why, project: Project) -> dict[Key, Outcome]:
    speaking: dict[tuple[str, str, str], tuple[bool, tuple[str, str], Record, str]] = {}
    for record in records:
        stale = why(record)
        name = (record.stage, record.subject, record.host.accelerator or "")
        candidate = (not stale, (record.started, record.digest), record, stale)
        if name not in speaking or candidate[:2] > speaking[name][:2]:
            speaking[name] = candidate
    found: dict[Key, Outcome] = {}
    for (stage, subject, accelerator), (_, _, record, stale) in speaking.items():
        if stage in KEPT:
            key = Key(subject, cast("Stage", stage), accelerator)
            found[key] = Outcome(
                status=record.status,
                findings=tuple(finding.id for finding in record.causes),
                because=record.because(),
                stale=stale,
                repeat=record.repeat,
            )
        elif stage == "generate" and not subject.startswith("bf16/"):
            recipe, _, model, server = subject.split("/")
            control = speaking.get((stage, f"bf16/{model}/{server}", accelerator))
            baseline = control[2] if control else None
            # Held against a run that no longer stands, it does not stand either.
            outdated = stale or (control[3] if control else "")
            for view in answers(record, baseline, project.matrix.bounds_of(recipe)):
                found[Key(subject, view.stage, accelerator)] = Outcome(
                    status=cast("Ended", view.status),
                    findings=view.findings,
                    because=view.because,
                    stale=outdated,
                    repeat=record.repeat,
                )
    return found
