"""What a bundle is to run: batches of steps, the files they read, and the workers' own source."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from qvlfp8 import source
from qvlfp8.bundle.archives import Tree
from qvlfp8.plan import Plan, Step
from qvlfp8.truth.asking import WORKER, Asking
from qvlfp8.worker.run_bundle import JOBS, OUT


def worker_files(workers: Iterable[str]) -> dict[str, Path]:
    """The package's own source that workers need, as they find it: ``qvlfp8/…`` -> file."""
    modules = source.closure(
        "source", "worker.__main__", "worker.protocol", *(f"worker.{w}" for w in workers)
    )
    parents = {
        ".".join(name.split(".")[:depth]) for name in modules for depth in range(1, name.count(".") + 1)
    }
    found = {"qvlfp8/__init__.py": source.PACKAGE / "__init__.py"}
    for name in sorted(modules | parents):
        path = source.PACKAGE.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        found[f"qvlfp8/{path.relative_to(source.PACKAGE).as_posix()}"] = path
    return found


def folder_files(folder: Path, at: str) -> dict[str, Path]:
    """Every file below a folder, as files of a bundle below ``at``."""
    return {
        f"{at}/{path.relative_to(folder).as_posix()}": path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def generate_batches(
    plan: Plan, steps: Iterable[Step], folder_of: Callable[[Step], Path], time_limit_s: float
) -> tuple[dict[str, dict[str, Any]], dict[str, Path]]:
    """Batches, one an environment, that answer ``generate`` steps, and the checkpoints that they read.

    Args:
        steps: in the plan's order; the baselines that they need are added.
        folder_of: where the files are that a ``model`` or ``quantize`` step made.
        time_limit_s: for each job.

    Returns:
        Batch name -> spec, and the files: path in the bundle -> file here.
    """
    asked = {need: plan.steps[need] for step in steps for need in (*step.needs, step.digest)}
    batches: dict[str, dict[str, Any]] = {}
    files: dict[str, Path] = {}
    for step in (step for step in plan.steps.values() if step.digest in asked and step.stage == "generate"):
        needs = [plan.steps[need] for need in step.needs]
        runs = [need for need in needs if need.stage == "generate"]
        # The unquantized model is the checkpoint of a baseline.
        made = next(need for need in needs if need.stage == ("quantize" if runs else "model"))
        checkpoint = f"checkpoints/{made.digest[:16]}"
        if f"{checkpoint}/config.json" not in files:
            files |= folder_files(folder_of(made), checkpoint)
        environment = step.environment or ""
        batch = batches.setdefault(
            environment,
            {"environment": environment, "worker": "generate", "time_limit_s": time_limit_s, "jobs": []},
        )
        baseline = f"{OUT}/{runs[0].digest}" if runs else None
        params = {**step.params, "checkpoint": checkpoint, "baseline": baseline}
        batch["jobs"].append(
            {"id": step.digest, "label": step.subject, "out": f"{OUT}/{step.digest}", "params": params}
        )
    return batches, files


def truth_batch(asked: Asking, time_limit_s: float) -> tuple[dict[str, dict[str, Any]], dict[str, Path]]:
    """The same for truth runs: one batch, and the good checkpoints; faults are planted on the host."""
    places = {name: f"checkpoints/{made[:16]}" for name, made in asked.made.items()}
    files: dict[str, Path] = {}
    for name, place in places.items():
        files |= folder_files(asked.folders[name], place)
    jobs = [
        run.job(
            places[run.subject.base],
            f"{OUT}/{asked.baseline}" if run.digest != asked.baseline else None,
            f"{OUT}/{run.digest}",
        )
        for run in asked.runs
    ]
    environment = asked.environment.id
    batch = {"environment": environment, "worker": WORKER, "time_limit_s": time_limit_s, "jobs": jobs}
    return {f"truth-{environment}": batch}, files


def work_tree(batches: Mapping[str, Mapping[str, Any]], files: Mapping[str, Path], scratch: Path) -> Tree:
    """What is to be run: batch specs (put into ``scratch``), the files they read, the workers' source."""
    found = dict(files)
    for name, batch in batches.items():
        path = scratch / f"{name}.json"
        path.write_text(json.dumps(batch, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        found[f"{JOBS}/{name}.json"] = path
    found |= worker_files({batch["worker"] for batch in batches.values()})
    return Tree(name="work", files=dict(sorted(found.items())))
