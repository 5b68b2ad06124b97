"""`results/README.md`: what was run on GPUs, with the pictures and answers that prove each mark."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qvlfp8.cells import GENERATED
from qvlfp8.plan import Plan
from qvlfp8.project import Project
from qvlfp8.report import proof
from qvlfp8.report.render import to_markdown
from qvlfp8.report.table import CellView, view_cells
from qvlfp8.results import Record
from qvlfp8.survey import Seen, survey

if TYPE_CHECKING:
    from qvlfp8.reference.exam import Question

SHOWN = 3
"""Questions shown for each cell, each with two pictures."""


def write_pages(project: Project) -> Path:
    """Write the page and its pictures; returns the page's path. Needs numpy, which draws the pictures.

    Raises:
        LockError, FileFormatError: as for a project's views.
    """
    from qvlfp8.reference.exam import make_exam

    root = project.evidence.root
    subjects = {record.subject for _, record in project.evidence.records()}
    cells = [cell for cell in project.matrix.cells if cell.id in subjects]
    plan = project.plan(cells, project.locks(cells))
    views = [view for view in project.views(plan) if _was_run(view)]
    exam = project.matrix.file.exam
    sections = [_section(project, plan, view) for view in views]
    used = {row.question for rows, _ in sections for row in rows}
    shutil.rmtree(root / "pictures", ignore_errors=True)
    prompts = draw_pictures(root / "pictures", make_exam(exam.seed, exam.per_task), used)
    parts = [_HEAD.format(seed=exam.seed, per_task=exam.per_task), to_markdown(views), "# What was seen", ""]
    for view, (rows, facts) in zip(views, sections, strict=True):
        parts += [f"## {view.cell.id}", "", *facts, ""]
        if rows:
            parts += [proof.as_markdown(rows, prompts, "pictures"), ""]
    parts += _elsewhere(project, plan, views)
    parts += _truth([record for _, record in project.evidence.records() if record.stage == "truth"])
    page = root / "README.md"
    page.write_text("\n".join(parts), encoding="utf-8")
    return page


_HEAD = """\
<!-- Made by `qvlfp8 results report`; do not edit. -->

Each record is one run of vLLM on a GPU: `ACCELERATOR/VLLM/CHECKPOINT.json` names the GPU, driver, versions,
digests, every question and every answer. All were asked the same exam (seed {seed}, {per_task} questions a
task, those of sight with two pictures each), and are held against the unquantized model in the same vLLM.
What `inspect` and `preflight` say of the same checkpoints needs no GPU: it is kept in `checkpoints/` and
`loaders/`, and `nox -s matrix` executes it anew.
`ACCELERATOR/README.md` says how the runs were made.
"""


def _truth(records: Sequence[Record]) -> list[str]:
    """A section for each environment in which the oracle was tested."""
    parts = ["# The oracle, tested", "", _TRUTH, ""] if records else []
    for record in records:
        parts += [
            f"## {record.subject}: {record.measured['summary']}",
            "",
            f"{record.host.accelerator}, {record.started}",
            "",
            "| planted | in | | by | measured |",
            "|---|---|---|---|---|",
        ]
        parts += [
            f"| {verdict['subject']}: {verdict['description']} | {verdict['in']} | {verdict['mark']} "
            f"| {', '.join(verdict['caught_by'])} | {verdict['error'] or verdict['measured']} |"
            for verdict in record.measured["verdicts"]
        ]
        parts.append("")
    return parts


_TRUTH = """\
`qvlfp8 truth` plants one fault at a time in a good checkpoint and asks the stages, which do not know of it.
The good ones must pass. A fault is harmless if it leaves the checkpoint as near to BF16 as it was; it counts
neither way."""


def _elsewhere(project: Project, plan: Plan, views: Sequence[CellView]) -> list[str]:
    """Runs of the same cells on other accelerators than those shown, and where their marks differ."""
    shown = {view.cell.id: view for view in views}
    here = survey(plan, project.lookup)
    rows = []
    for name in project.evidence.accelerators:
        seen = survey(plan, project.evidence.at(name).record)
        others = [view for view in view_cells(plan, seen, project.matrix.bounds) if _was_run(view)]
        others = [view for view in others if view.cell.id in shown]
        others = [view for view in others if _accelerator(view) != _accelerator(shown[view.cell.id])]
        for server in dict.fromkeys(view.cell.server for view in others):
            runs = [view for view in others if view.cell.server == server]
            differ = [
                view.cell.id for view in runs if judged_marks(view) != judged_marks(shown[view.cell.id])
            ]
            same = [view for view in runs if _checkpoint(seen, plan, view) == _checkpoint(here, plan, view)]
            rows.append(
                f"| {_accelerator(runs[0])} | {server} | {len(runs)} | {len(same)} "
                f"| {', '.join(differ) or 'none'} |"
            )
    head = [
        "# On another GPU",
        "",
        _ELSEWHERE,
        "",
        "| GPU | vLLM | cells | of the same bytes | marks that differ |",
        "|---|---|---|---|---|",
    ]
    return [*head, *rows, ""] if rows else []


_ELSEWHERE = """\
The marks above are those of one GPU for each vLLM. These cells were run on another one as well, each held
against the unquantized model there. A mark is the status and the findings of load, text, image, fidelity. The
same recipe on another processor may calibrate to other bytes: each record names its checkpoint's digest."""


def _checkpoint(seen: Mapping[str, Seen], plan: Plan, view: CellView) -> str | None:
    """The digest of the checkpoint that a cell's run read."""
    record = seen[plan.step(view.cell, "load").digest].record
    return record.measured.get("checkpoint_digest") if record else None


def judged_marks(view: CellView) -> list[tuple[str, str, tuple[str, ...]]]:
    """What a run says of a cell; how fast it was is the machine's."""
    judged = (stage for stage in view.stages if stage.stage in GENERATED and stage.stage != "speed")
    return [(stage.stage, stage.status, stage.findings) for stage in judged]


def _was_run(view: CellView) -> bool:
    return _accelerator(view) is not None


def _accelerator(view: CellView) -> str | None:
    load = view.stage("load")
    return load.where.accelerator if load and load.where else None


def _section(project: Project, plan: Plan, view: CellView) -> tuple[Sequence[proof.Shown], list[str]]:
    record = project.lookup(plan.step(view.cell, "load"))
    baseline = project.lookup(plan.baseline(view.cell))
    if record is None or baseline is None:
        return (), []
    facts = [
        f"- {stage.stage}: {stage.status}" + (f" ({stage.because})" if stage.because else "")
        for stage in view.stages
        if stage.stage in (*GENERATED, "preflight")
    ]
    told = record.environment
    facts.insert(
        0,
        f"{record.host.accelerator}, driver {told.get('driver')}, vLLM {told.get('vllm')}, torch "
        f"{told.get('torch')}, transformers {told.get('transformers')}, {record.started}; checkpoint "
        f"`{str(record.measured.get('checkpoint_digest'))[:16]}`\n",
    )
    if not record.measured.get("answers") or not baseline.measured.get("answers"):
        return (), facts
    return proof.shown(record.measured, baseline.measured, SHOWN), facts


def prompts_of(questions: Iterable[Question], names: Collection[str]) -> dict[str, str]:
    """The prompts of the questions named that have two pictures."""
    return {
        question.id: question.prompt
        for question in questions
        if question.id in names and question.picture is not None and question.swapped is not None
    }


def draw_pictures(folder: Path, questions: Iterable[Question], names: Collection[str]) -> dict[str, str]:
    """Write both pictures of the questions named; returns their prompts."""
    questions = tuple(questions)
    folder.mkdir(parents=True, exist_ok=True)
    prompts = prompts_of(questions, names)
    for question in questions:
        if question.id in prompts:
            stem = question.id.replace("/", "-")
            for picture, name in ((question.picture, stem), (question.swapped, f"{stem}-other")):
                if picture is not None:
                    (folder / f"{name}.png").write_bytes(proof.png(picture))
    return prompts
