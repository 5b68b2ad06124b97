"""The job matrix of the nightly run: a GitHub Actions job an image, with the cells that run in it. Pure.

An image is a serve environment that needs a GPU; rows under `runners` in matrix.yaml say on which runners it
is run. What needs no GPU is one other job's (`.github/workflows/nightly.yml`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from qvlfp8.cells import Cell, globs
from qvlfp8.errors import UsageError
from qvlfp8.matrix import RunnerRow
from qvlfp8.plan import Plan, Step
from qvlfp8.yamlfile import Strict

MOST_JOBS = 256
"""Of one matrix: GitHub's limit."""

MOST_BYTES = 2**20
"""Of the outputs of one job: GitHub's limit, which it counts in UTF-16."""


class GithubJob(Strict):
    """Build ``image`` and run ``cells`` in it, within ``minutes``, on a runner that has all ``labels``."""

    image: str
    """As `qvlfp8 build` takes it, such as ``vllm-0.26.0.cuda``."""
    labels: tuple[str, ...]
    minutes: int
    cells: tuple[str, ...]


class GithubLeftOut(Strict):
    """An image that nothing is run in, and why."""

    image: str
    reason: str


class GithubPlan(Strict):
    """What `qvlfp8 plan --github` prints; ``include`` is what a job's ``strategy.matrix.include`` takes."""

    version: Literal[1] = 1
    include: tuple[GithubJob, ...]
    left_out: tuple[GithubLeftOut, ...] = ()

    def text(self) -> str:
        """As JSON on one line, as it goes into ``$GITHUB_OUTPUT``."""
        return self.model_dump_json()


def github_plan(plan: Plan, runners: Sequence[RunnerRow]) -> GithubPlan:
    """One job for each image that a plan's cells are run in on a GPU.

    Args:
        plan: its cells, in the order in which jobs and their cells come.
        runners: matrix.yaml's; an image that no row names is left out.

    Raises:
        UsageError: more than GitHub takes: :data:`MOST_JOBS` jobs, or :data:`MOST_BYTES`.
    """
    images: dict[str, list[Cell]] = {}
    left_out: dict[str, str] = {}
    for cell in plan.cells:
        if plan.unresolved(cell):
            continue
        for build in _gpu_builds(plan, cell):
            images.setdefault(build.subject, []).append(cell)
            if build.unresolved:
                left_out[build.subject] = f"does not resolve: {build.unresolved}"
            elif build.inputs["lock"] is None:
                left_out[build.subject] = "it has no lock for a GPU"
    jobs: list[GithubJob] = []
    for image, cells in images.items():
        row = _row(cells[0].serve.id, runners)
        if image in left_out:
            continue
        if row is None:
            left_out[image] = "no row of `runners` names it"
            continue
        ids = tuple(cell.id for cell in cells)
        jobs.append(GithubJob(image=image, labels=row.labels, minutes=row.minutes, cells=ids))
    return _within_limits(
        GithubPlan(
            include=tuple(jobs),
            left_out=tuple(GithubLeftOut(image=image, reason=why) for image, why in left_out.items()),
        )
    )


def _gpu_builds(plan: Plan, cell: Cell) -> Iterable[Step]:
    return (step for step in plan.of_cell(cell) if step.stage == "build" and step.device == "cuda")


def _row(environment: str, runners: Sequence[RunnerRow]) -> RunnerRow | None:
    named = [row for row in runners if any(fnmatchcase(environment, glob) for glob in globs(row.serve))]
    return named[-1] if named else None


def _within_limits(made: GithubPlan) -> GithubPlan:
    mend = "ask for fewer cells (--only)"
    if len(made.include) > MOST_JOBS:
        raise UsageError(f"{len(made.include)} images; GitHub runs {MOST_JOBS} jobs of a matrix", mend=mend)
    if (size := len(made.text().encode("utf-16-le"))) > MOST_BYTES:
        raise UsageError(f"{size} bytes; GitHub takes {MOST_BYTES} of a job's outputs", mend=mend)
    return made
