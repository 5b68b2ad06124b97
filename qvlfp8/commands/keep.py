"""``qvlfp8 results keep``: records of a store's steps that need no GPU, as lines in ``results/``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from qvlfp8.errors import UsageError
from qvlfp8.kept import KEPT, Line, file_of, judged_today, line_of, means_the_same, to_text
from qvlfp8.plan import Plan, Step
from qvlfp8.project import Project
from qvlfp8.store import writing
from qvlfp8.survey import survey

Key = tuple[str, str]
"""Subject and stage, by which lines are sorted."""


def keep_results(matrix: Path, store: Path | None) -> None:
    """Write what the store has executed, and is current, into ``results/``; other lines stay as they are.

    A line whose cell is not in matrix.yaml any more is removed.

    Raises:
        UsageError: the store has no such record, and there is no line.
        FileFormatError: a line that is there is not valid.
        StoreWriteError: ``results/`` cannot be written.
    """
    project = Project.open(matrix, store)
    cells = project.cells(everything=True)
    plan = project.plan(cells, project.locks(cells))
    steps: dict[Key, Step] = {(s.subject, s.stage): s for s in plan.steps.values() if s.stage in KEPT}
    before: dict[Key, Line] = {(line.subject, line.stage): line for _, line in project.evidence.kept.lines()}
    executed = _executed(project, plan)
    if not executed and not before:
        raise UsageError(
            f"{project.store.root}: nothing to keep: no step was executed",
            mend="`qvlfp8 matrix` executes cells; `--store` names another store",
        )
    after = merged(before, executed, steps)
    _write(project.evidence.root, before.values(), after.values())
    new = after.keys() - before.keys()
    other = [key for key in after.keys() & before.keys() if after[key] != before[key]]
    gone = before.keys() - after.keys()
    counts = f"{len(new)} new, {len(other)} changed, {len(gone)} removed"
    print(f"{len(after)} records in {project.evidence.root}: {counts}")


def merged(
    before: Mapping[Key, Line], executed: Mapping[Key, Line], steps: Mapping[Key, Step]
) -> dict[Key, Line]:
    """The lines to keep, sorted: what was executed now, else what was kept, of the steps that there are."""
    found: dict[Key, Line] = {}
    for key in sorted({*before, *executed} & steps.keys()):
        old, new = before.get(key), executed.get(key)
        if old is not None and (new is None or means_the_same(old, new)):
            found[key] = judged_today(old, steps[key])
        elif new is not None:
            found[key] = new
    return found


def _executed(project: Project, plan: Plan) -> dict[Key, Line]:
    seen = survey(plan, lambda step: project.store.record(step.stage, step.digest))
    return {
        (step.subject, step.stage): line_of(record, step)
        for step in plan.steps.values()
        if step.stage in KEPT and (record := seen[step.digest].final) is not None
    }


def _write(root: Path, before: Iterable[Line], after: Iterable[Line]) -> None:
    texts = {file_of(line): "" for line in before}
    for line in after:
        texts[file_of(line)] = texts.get(file_of(line), "") + to_text(line)
    for name, text in texts.items():
        path = root / name
        with writing(path):
            if not text:
                path.unlink()
            elif not path.exists() or path.read_text(encoding="utf-8") != text:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
