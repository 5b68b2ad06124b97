"""A cell's page: every stage with what was measured, by what, on what, and how to repeat it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pydantic_core import from_json, to_json

from qvlfp8.cells import GENERATED, OF_CHECKPOINT, Stage
from qvlfp8.observed import named_version
from qvlfp8.plan import repeat_command
from qvlfp8.report.table import StageView, difference
from qvlfp8.results import Record, Status
from qvlfp8.site import chart
from qvlfp8.site.data import Site, SiteCell, record_name
from qvlfp8.site.exam_view import NOT_ASKED, Asked, ExamShown
from qvlfp8.site.matrix_view import producer
from qvlfp8.site.measured import Table, Value, values_of
from qvlfp8.site.mends import Mends, mends_of
from qvlfp8.site.untrusted import line, plain
from qvlfp8.worker.vllm_patches import PATCHES

__all__ = [
    "Answer",
    "CellPage",
    "Common",
    "Execution",
    "RowShown",
    "StageShown",
    "TaskRow",
    "make_page",
    "show_row",
]


@dataclass(frozen=True, kw_only=True)
class StageShown:
    """One stage: how it ended, why, and what it measured."""

    stage: Stage
    status: Status
    because: str
    findings: tuple[tuple[str, str], ...]
    """Id and what was seen, of each that fails it."""
    notes: tuple[str, ...]
    values: tuple[Value, ...]
    tasks: tuple[TaskRow, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """A task of the exam: shares of right answers, and of answers that are BF16's."""

    task: str
    asked: int
    accuracy: str
    bf16: str
    agreement: str


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Stages that one record answers, and that record's circumstances."""

    title: str
    stages: tuple[StageShown, ...]
    facts: tuple[Value, ...]
    log: str
    log_title: str
    repeat: str
    record: str | None
    """File name of the record's copy."""
    earlier: bool = False
    stale: bool = False


@dataclass(frozen=True)
class Common:
    """What several pages show alike: what resolve says of environments, and what is one checkpoint's alone.

    ``of_checkpoint`` is to be cleared before the pages of another checkpoint.
    """

    resolved: dict[tuple[str, ...], Execution] = field(default_factory=dict)
    of_checkpoint: dict[Stage, Execution] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RowShown:
    """What the pages of one row have in common.

    ``pages`` are its cells that have one, oldest vLLM first. ``columns``: by a cell's id, its column of the
    chart, from 0; without an entry its page has no chart.
    """

    pages: tuple[SiteCell, ...]
    chart: chart.Chart | None
    columns: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A picture that was shown, and three answers."""

    picture: str
    prompt: str
    right: str
    baseline: str
    answer: str

    @property
    def is_right(self) -> bool:
        """Whether the checkpoint's answer is the right one."""
        return self.answer == self.right


@dataclass(frozen=True, kw_only=True)
class CellPage:
    """All of the page."""

    cell: SiteCell
    producer: str
    version: str
    executions: tuple[Execution, ...]
    difference: str
    answers: tuple[Answer, ...]
    right: int
    asked: int
    """Of the pictures shown to it, those that it answered rightly, and all."""
    row: RowShown
    baseline: str | None
    """File name of the unquantized model's record."""
    repeat: str
    mends: Mends
    kv_cache: str
    """What type vLLM kept keys and values in; empty where it was not run."""
    because: str
    """Of a cell that was not run: why not."""


def make_page(
    site: Site,
    cell: SiteCell,
    row: RowShown,
    exam: ExamShown,
    common: Common | None = None,
) -> CellPage:
    """One cell's page.

    Args:
        site: what it belongs to.
        cell: one that was executed.
        row: its row.
        exam: what can be drawn.
        common: takes what it has in common with other pages, and gives it to them.
    """
    asked = exam.shown.get(cell.cell.id, NOT_ASKED)
    return CellPage(
        cell=cell,
        producer=producer(cell.cell),
        version=named_version(cell.cell.serve),
        executions=tuple(_executions(site, cell, Common() if common is None else common)),
        difference=line(difference(cell.view) or ""),
        answers=tuple(_answers(asked, exam)),
        right=asked.right,
        asked=asked.pictures,
        row=row,
        baseline=record_name(cell.baseline) if cell.baseline else None,
        repeat=f"nox -s matrix -- --only '{cell.cell.id}'",
        mends=mends_of(cell),
        kv_cache=_kv_cache(cell.records["load"]) if "load" in cell.records else "",
        because=_why_not(cell),
    )


def _why_not(cell: SiteCell) -> str:
    if cell.outcome not in {"never", "blocked"}:
        return ""
    view = next((view for view in cell.view.stages if view.status == "not run"), cell.view.decisive)
    return line(view.because)


def _kv_cache(record: Record) -> str:
    """In which type a run kept keys and values: what was asked for, and what vLLM says that it took."""
    asked = (record.measured.get("options") or {}).get("kv_cache_dtype")
    took = (record.measured.get("load") or {}).get("kv_cache_dtype")
    if asked is None:
        return ""
    if took is None:
        return line(f"asked for: {asked}; what vLLM took is not on record")
    kind = "FP8" if str(took).startswith("fp8") else "as the model computes" if took == "auto" else "other"
    return line(f"{kind} ({took}); asked for: {asked}")


def _answers(asked: Asked, exam: ExamShown) -> Iterator[Answer]:
    for row in asked.rows:
        yield Answer(
            picture=row.picture,
            prompt=exam.prompts[row.question],
            right=line(row.right, 120),
            baseline=line(row.baseline, 120),
            answer=line(row.answer, 120),
        )


def _executions(site: Site, cell: SiteCell, common: Common) -> Iterator[Execution]:
    """Stages in order; those that one run answers together."""
    run = [view for view in cell.view.stages if view.stage in GENERATED]
    for view in cell.view.stages:
        if view.stage == "resolve":
            # The locks of two environments, whatever was quantized between them.
            locks = (*site.plan.builds[cell.cell.id], cell.cell.serve.id, view.because)
            if locks not in common.resolved:
                common.resolved[locks] = _execution(site, cell, view.stage, [view])
            yield common.resolved[locks]
        elif view.stage in OF_CHECKPOINT:
            if view.stage not in common.of_checkpoint:
                common.of_checkpoint[view.stage] = _execution(site, cell, view.stage, [view])
            yield common.of_checkpoint[view.stage]
        elif view.stage not in GENERATED:
            yield _execution(site, cell, view.stage, [view])
    if run:
        yield _execution(site, cell, "run of vLLM", run)


def _execution(site: Site, cell: SiteCell, title: str, views: Sequence[StageView]) -> Execution:
    record = next((cell.records[view.stage] for view in views if view.stage in cell.records), None)
    log = site.log(record) if record else ""
    marks = (
        [line(str(text)) for text in (record.measured.get("log_marks") or ())] if record and not log else []
    )
    step = site.plan.step(cell.cell, views[0].stage) if views[0].stage != "resolve" else None
    repeat = (
        record.repeat if record else repeat_command(step) if step else f"nox -s lock -- {cell.cell.serve.id}"
    )
    return Execution(
        title=title,
        stages=tuple(_stage(cell, view) for view in views),
        facts=tuple(_facts(site, cell, record, views[0])),
        log=log or "\n".join(marks),
        log_title="The end of its log" if log else "Lines of its log that were kept",
        repeat=line(repeat, 300),
        record=record_name(record) if record else None,
        earlier=cell.earlier and views[0].stage in GENERATED,
        stale=views[0].status == "stale",
    )


def _stage(cell: SiteCell, view: StageView) -> StageShown:
    measured = dict(view.measured)
    return StageShown(
        stage=view.stage,
        status=view.status,
        because=line(view.because) if not view.causes else "",
        findings=tuple((cause.id, plain(cause.text, 1200)) for cause in view.causes),
        notes=tuple(name for stage, name in cell.notes if stage == view.stage),
        tasks=tuple(_tasks(measured.pop("tasks", None) or {})),
        values=tuple(values_of(view.stage, measured)),
    )


def _tasks(tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[TaskRow]:
    for name, numbers in tasks.items():
        yield TaskRow(
            task=name,
            asked=numbers["asked"],
            accuracy=_share(numbers["accuracy"]),
            bf16=_share(numbers["accuracy_bf16"]),
            agreement=_share(numbers["agreement"]),
        )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


_PACKAGES = ("vllm", "modelopt", "llmcompressor", "transformers", "torch", "python", "cuda")


def _facts(site: Site, cell: SiteCell, record: Record | None, view: StageView) -> Iterator[Value]:
    """Environment, lock, hardware, time."""
    if view.stage == "resolve":
        yield from (
            Value(name=f"lock of {name}", text=digest or "none") for name, digest in _locks(site, cell)
        )
        return
    if record is None:
        return
    told = record.environment
    packages = [f"{name} {told[name]}" for name in _PACKAGES if told.get(name)]
    if packages:
        yield Value(name="environment", text=line(", ".join(packages)))
    if lock := told.get("lock") or record.inputs.get("lock"):
        yield Value(name="lock", text=line(str(lock)))
    yield Value(name="hardware", text=line(_hardware(record)))
    if driver := told.get("driver"):
        yield Value(name="driver", text=line(str(driver)))
    yield Value(name="started", text=line(record.started))
    yield Value(name="duration", text=f"{record.seconds:.1f} s")
    if checkpoint := record.made or record.measured.get("checkpoint_digest"):
        yield Value(name="checkpoint", text=line(str(checkpoint)))
    yield Value(name="engine", text=line(str(told.get("engine", "unknown"))))
    if patches := [one for one in told.get("patches") or () if isinstance(one, Mapping)]:
        yield _patches(to_json(patches))


@lru_cache(maxsize=256)
def _patches(patches: bytes) -> Value:
    """What was changed in that vLLM so that it ran there, from JSON; kept records have the names alone."""
    told = from_json(patches)
    why = {patch.id: patch.why for patch in PATCHES}
    rows = [
        (line(name, 80), line(str(patch.get("why") or why.get(name, ""))))
        for patch in told
        if (name := str(patch.get("id", "")))
    ]
    return Value(
        name="changed in vLLM for it to run there", table=Table(columns=("patch", "why"), rows=tuple(rows))
    )


def _hardware(record: Record) -> str:
    host = record.host
    machine = f"{host.cpus} CPUs, {host.memory_gb:g} GB, {host.machine}, {host.system}"
    return f"{host.accelerator}; {machine}" if host.accelerator else machine


def _locks(site: Site, cell: SiteCell) -> Iterator[tuple[str, str]]:
    for digest in site.plan.builds[cell.cell.id]:
        step = site.plan.steps[digest]
        yield step.subject, str(step.inputs["lock"])


def show_row(site: Site, cells: Sequence[SiteCell]) -> RowShown:
    """A row: the cells of one checkpoint, run in one way, oldest vLLM first."""
    measured = [(cell, numbers) for cell in cells if (numbers := _fidelity(cell)) is not None]
    rows = [
        chart.Fidelity(
            column=named_version(cell.cell.serve),
            mean_kl=numbers["mean_kl"],
            p99_kl=numbers["p99_kl"],
            top1=numbers["top1_agreement"],
            not_finite=numbers["not_finite"],
        )
        for cell, numbers in measured
    ]
    return RowShown(
        pages=tuple(cell for cell in cells if cell.executed),
        # What may be measured is the recipe's, so the row's.
        chart=chart.draw(rows, site.project.matrix.bounds(cells[0].cell)) if rows else None,
        columns={cell.cell.id: number for number, (cell, _) in enumerate(measured)},
    )


def _fidelity(cell: SiteCell) -> Mapping[str, Any] | None:
    """What its stage fidelity measured; None where it did not."""
    view = cell.view.stage("fidelity")
    told = view is not None and view.status in {"pass", "fail"} and "mean_kl" in view.measured
    return view.measured if view is not None and told else None
