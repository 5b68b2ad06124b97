"""``qvlfp8 bundle``."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from qvlfp8.bundle.archives import Tree, size, write_bundle
from qvlfp8.bundle.jobs import generate_batches, truth_batch, work_tree
from qvlfp8.bundle.packages import Rule, files_of, for_one_gpu, read_bundles, read_have, sort_lock
from qvlfp8.cells import Cell
from qvlfp8.engine.process import Processes
from qvlfp8.engine.uv import Uv
from qvlfp8.environments import Environment, ServeEnvironment
from qvlfp8.errors import UsageError
from qvlfp8.locks import BUNDLE_HOST, read_lock
from qvlfp8.plan import Plan, Step
from qvlfp8.project import Project
from qvlfp8.truth import TRUTH_PER_TASK
from qvlfp8.truth.asking import asking, cells_of

BUNDLES = "bundles.yaml"


def make_bundle(
    matrix: Path,
    store: Path | None,
    names: Sequence[str],
    *,
    have: Path,
    out: Path,
    split: str | None,
    only: Sequence[str],
    everything: bool,
    jobs: bool,
    truth: bool,
    packages: bool,
    time_limit: float,
) -> None:
    """Write what a GPU host without network needs to run these environments' cells.

    Args:
        names: ids of environments; those that quantize are brought without jobs.
        have: what ``pip list --format=freeze`` said on the host.
        split: the most that a piece may hold (``58M``), None for one whole.
        only: of the environments' cells those that match; ``everything``: not only the default slice.
        jobs: bring what is to be run as well; without, the environments only.
        truth: of the jobs, bring the truth runs too.
        packages: bring the environments; without, only what is to be run in those brought before.
        time_limit: for each job, in seconds.

    Raises:
        QvlError: by class; ``out`` is then not there, or not whole.
    """
    console = Console(stderr=True)

    def show(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    project = Project.open(matrix, store)
    file = read_bundles(matrix.parent / BUNDLES)
    try:
        host = read_have(have.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{have}: cannot be read: {error}", mend="name the host's list (--have)") from None
    environments = [_environment(project, name) for name in names]
    limit = None if split is None else size(split)
    processes = Processes(lambda command: show(f"$ {command}"))
    try:
        with tempfile.TemporaryDirectory(prefix="qvlfp8-bundle-", dir=out.absolute().parent) as folder:
            scratch = Path(folder)
            uv = Uv(processes, torch=project.matrix.file.locks.torch)
            brought = environments if packages else []
            trees = [_tree(project, e, file.rule(e.id), host, uv, scratch / e.id) for e in brought]
            if jobs:
                parts = [_generation(project, names, only, everything=everything, limit_s=time_limit)]
                if truth:
                    serving = [e for e in environments if e.kind == "serve"]
                    parts += [_truth(project, e, limit_s=time_limit) for e in serving]
                trees.append(_work(parts, scratch))
            for piece in write_bundle(out, trees, split=limit):
                total = sum(path.stat().st_size for path in piece.rglob("*") if path.is_file())
                print(f"{piece}  {total / 1e6:.1f} MB")
    finally:
        processes.stop()


def _environment(project: Project, name: str) -> Environment:
    known = {e.id: e for e in project.matrix.environments if e.kind == "quantize" or e.device == "cuda"}
    if name not in known:
        raise UsageError(f"no environment {name!r} for a GPU", mend=f"name one of {', '.join(known)}")
    return known[name]


def _tree(
    project: Project,
    environment: Environment,
    rule: Rule,
    host: dict[str, str],
    uv: Uv,
    scratch: Path,
) -> Tree:
    lock = read_lock(project.matrix, environment, "bundle")
    packages = sort_lock(lock.path.read_text(encoding="utf-8"), host, rule)
    scratch.mkdir()
    requirements = scratch / "requirements.txt"
    requirements.write_text(packages.requirements, encoding="utf-8")
    uv.unpack(
        requirements, scratch / "site",
        python=BUNDLE_HOST.python, platform=BUNDLE_HOST.platform, log=scratch / "log.txt",
    )  # fmt: skip
    files = files_of(scratch / "site", rule)
    if rule.compute_capability is not None:
        smaller = scratch / "smaller"
        smaller.mkdir()
        files = for_one_gpu(files, rule.compute_capability, smaller)
    spec: dict[str, Any] = {
        "python": BUNDLE_HOST.python,
        "lock": lock.digest,
        "brought": dict(packages.brought),
        "host": dict(packages.host),
        "left_out": sorted(name for item in rule.without for name in (*item.packages, *item.files)),
        "variables": rule.variables,
    }
    return Tree(name=environment.id, files=files, environment=spec)


Work = tuple[dict[str, dict[str, Any]], dict[str, Path]]
"""Batches by name, and the files that they read by their places in the bundle."""


def _work(parts: Sequence[Work], scratch: Path) -> Tree:
    batches = {name: batch for part, _ in parts for name, batch in part.items()}
    files = {place: file for _, part in parts for place, file in part.items()}
    if not batches:
        raise UsageError(
            "no cell of these environments has a checkpoint to run",
            mend="`qvlfp8 matrix` makes the checkpoints; --no-jobs brings the environments only",
        )
    return work_tree(batches, files, scratch)


def _truth(project: Project, environment: ServeEnvironment, *, limit_s: float) -> Work:
    cells = cells_of(project, environment.id)
    locks = project.locks(cells, gpu="bundle")
    asked = asking(project, project.plan(cells, locks), cells, locks, per_task=TRUTH_PER_TASK)
    if asked is None:
        raise UsageError(
            f"the good checkpoints for {environment.id} are not made yet",
            mend="`qvlfp8 matrix` makes them",
        )
    return truth_batch(asked, limit_s)


def _generation(
    project: Project, names: Sequence[str], only: Sequence[str], *, everything: bool, limit_s: float
) -> Work:
    cells = [cell for cell in project.cells(only=only, everything=everything) if cell.serve.id in names]
    plan = project.plan(cells, project.locks(cells, gpu="bundle"))
    steps = [step for cell in cells if (step := _run_of(project, plan, cell)) is not None]

    def folder_of(step: Step) -> Path:
        name = "model" if step.stage == "model" else "checkpoint"
        return project.store.entry(step.stage, step.digest) / name

    return generate_batches(plan, steps, folder_of, limit_s)


def _run_of(project: Project, plan: Plan, cell: Cell) -> Step | None:
    """The cell's run of vLLM, if what it and its baseline read has been made."""
    if "load" not in plan.stages[cell.id]:
        return None
    needs = (plan.step(cell, "quantize"), *(plan.steps[n] for n in plan.baseline(cell).needs))
    for need in needs:
        if need.stage != "build":
            record = project.store.record(need.stage, need.digest)
            if record is None or record.status != "pass":
                return None
    return plan.step(cell, "load")


def run_bundle(folder: Path, options: Sequence[str]) -> int:
    """Run a bundle on this machine, as its ``start.sh`` does; returns the exit code."""
    from qvlfp8.worker import run_bundle as runner

    if not (folder / runner.ARCHIVES).is_dir() and not (folder / runner.JOBS).is_dir():
        print(f"{folder}: not a bundle: it has neither archives nor jobs", file=sys.stderr)
        return UsageError.exit_code
    return runner.main(options, folder.resolve())
