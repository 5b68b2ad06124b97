"""``qvlfp8 plan``."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from qvlfp8.cells import Cell, select
from qvlfp8.github import github_plan
from qvlfp8.json_lines import Listed, Named, json_stream
from qvlfp8.plan import Plan
from qvlfp8.project import Project


def show_plan(
    matrix: Path, store: Path | None, *, only: Sequence[str], everything: bool, as_json: bool
) -> None:
    """Print the plan."""
    project = Project.open(matrix, store)
    cells = project.cells(only=only, everything=everything)
    plan = project.plan(cells, project.locks(cells))
    cached = project.finished(plan)
    without = (cell for cell, _ in project.matrix.excluded)
    asked = {cell.id for cell in select(without, only=only, everything=everything)}
    excluded = [(cell.id, reason) for cell, reason in project.matrix.excluded if cell.id in asked]
    left_out = [*excluded, *_not_asked(project, cells, only)]
    if as_json:
        sys.stdout.writelines(json_stream(_plan_json(plan, cached, left_out)))
        return
    said = {name: f"{step.stage} ✓" if name in cached else step.stage for name, step in plan.steps.items()}
    lines = [f"{cell.id}  {' · '.join([said[step] for step in plan.digests_of(cell)])}\n" for cell in cells]
    sys.stdout.write("".join(lines))
    for name, reason in excluded:
        print(f"- {name}  left out: {reason}")
    counts = Counter(reason for _, reason in left_out[len(excluded) :])
    rest = "".join(f"; {number} cells {reason}" for reason, number in counts.items())
    print(f"{len(cells)} cells, {len(plan.steps)} steps ({len(cached)} cached, marked ✓){rest}")


def show_github(matrix: Path, store: Path | None, *, only: Sequence[str], everything: bool) -> None:
    """Print the job matrix on one line, and on standard error which images are left out, and why."""
    project = Project.open(matrix, store)
    cells = project.cells(only=only, everything=everything)
    made = github_plan(project.plan(cells, project.locks(cells)), project.matrix.file.runners)
    for out in made.left_out:
        print(f"- {out.image}  left out: {out.reason}", file=sys.stderr)
    print(made.text())


def _not_asked(project: Project, cells: Sequence[Cell], only: Sequence[str]) -> list[tuple[str, str]]:
    chosen = {cell.id for cell in cells}
    why = "not named by --only" if only else "not in the default slice (--all)"
    return [(cell.id, why) for cell in project.matrix.cells if cell.id not in chosen]


def _plan_json(plan: Plan, cached: set[str], left_out: list[tuple[str, str]]) -> dict[str, object]:
    return {
        "version": 1,
        "cells": Listed({"id": cell.id, "steps": list(plan.digests_of(cell))} for cell in plan.cells),
        "steps": Named(
            (
                name,
                {
                    "stage": step.stage,
                    "subject": step.subject,
                    "needs": step.needs,
                    "cached": name in cached,
                },
            )
            for name, step in plan.steps.items()
        ),
        "left_out": Listed({"id": name, "reason": reason} for name, reason in left_out),
    }
