"""The repository's GitHub workflows and actions, read as GitHub reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
ACTIONS = sorted((GITHUB / "actions").glob("*/action.yml"))


@dataclass(frozen=True)
class Line:
    """One `run:` of a workflow's job, or of an action."""

    where: str
    """``WORKFLOW/JOB/STEP`` or ``action/NAME/STEP``: the step's name or id, or its number from 0."""
    text: str
    env: dict[str, str]


def read(path: Path) -> dict[str, Any]:
    """A workflow or action; YAML 1.1 takes the key ``on`` for a truth, which is undone."""
    data: dict[Any, Any] = yaml.safe_load(path.read_text())
    if True in data:
        data["on"] = data.pop(True)
    return data


def jobs() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """``WORKFLOW/JOB``, the job, and its workflow, of every workflow."""
    for path in WORKFLOWS:
        workflow = read(path)
        for name, job in workflow["jobs"].items():
            yield f"{path.stem}/{name}", job, workflow


def steps() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every step of every job and action, under the name that :class:`Line` has."""
    for where, job, _ in jobs():
        yield from ((f"{where}/{_name(step, index)}", step) for index, step in enumerate(job["steps"]))
    for path in ACTIONS:
        found = read(path)["runs"]["steps"]
        where = f"action/{path.parent.name}"
        yield from ((f"{where}/{_name(step, index)}", step) for index, step in enumerate(found))


def _name(step: dict[str, Any], index: int) -> str:
    return str(step.get("id") or step.get("name") or index)


def lines() -> Iterator[Line]:
    """Every `run:` there is."""
    for where, step in steps():
        if "run" in step:
            yield Line(where, step["run"], step.get("env", {}))
