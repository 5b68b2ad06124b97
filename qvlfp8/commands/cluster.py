"""`--engine ray`: a plan's steps on a Ray cluster, instead of this machine alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qvlfp8.cells import Cell
from qvlfp8.cluster.connect import check_nodes, connect, disconnect
from qvlfp8.cluster.order import Inside, Setting
from qvlfp8.cluster.place import Cluster
from qvlfp8.cluster.retry import Retries
from qvlfp8.cluster.shared import SharedStore, default_url
from qvlfp8.errors import QvlError
from qvlfp8.execute import TIME_LIMIT_S
from qvlfp8.plan import Plan, Step
from qvlfp8.project import Project
from qvlfp8.report.progress import ConsoleProgress
from qvlfp8.results import Record
from qvlfp8.run import Runner


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """What `--engine ray` asks for beside what every engine does."""

    address: str | None = None
    """Of the cluster's head; None: one of this machine alone is started, and ended."""
    shared: str | None = None
    """URL of the store that all nodes reach; None: a folder in this driver's own."""
    inside: Inside = "venv"
    node_store: str | None = None
    retries: int = Retries.count

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> ClusterOptions:
        """From the options of the command line that were given, by their names there."""
        options = {name.removeprefix("--").replace("-", "_"): value for name, value in given.items()}
        if "node_store" in options:
            options["node_store"] = str(options["node_store"].resolve())
        return cls(**options)


def execute_on_cluster(
    project: Project,
    cells: Sequence[Cell],
    progress: ConsoleProgress,
    options: ClusterOptions,
    *,
    again: bool,
    evidence: bool,
    jobs: int | None,
) -> tuple[Plan, list[QvlError], Mapping[str, str]]:
    """Execute what cells need and is not executed yet; the store is locked by the caller.

    Args:
        project: with the driver's own store.
        cells: what is wanted.
        progress: shows the whole cluster's.
        options: which cluster, and how.
        again: execute what has a record as well.
        evidence: whether a committed record of another machine stands for a run.
        jobs: the most tasks at a time [default: what the cluster has room for].

    Returns:
        The plan; what kept steps from being executed; and what steps ask for that no node has, by digest.

    Raises:
        ClusterError: no cluster, or a node that cannot be used.
        SharedStoreError: the shared store cannot be used.
        StoreWriteError: the driver's own store cannot be written.
    """
    locks = project.locks(cells)
    plan = project.plan(cells, locks)
    shared = SharedStore(options.shared or default_url(project.store.root))
    setting = Setting(
        shared=shared.url,
        inside=options.inside,
        node_store=options.node_store,
        settings=project.matrix.file.locks,
        limits=TIME_LIMIT_S,
    )
    connect(options.address, announce=progress.announce)
    try:
        place = Cluster(
            plan,
            nodes=check_nodes(shared, setting, announce=progress.announce),
            store=project.store,
            shared=shared,
            environments=project.environments,
            locks=locks,
            resources=project.matrix.file.resources,
            setting=setting,
            progress=progress,
            retries=Retries(count=options.retries),
            jobs=jobs,
        )

        def lookup(step: Step) -> Record | None:
            finished = place.record(step)
            return finished or (project.executed(step) if evidence else project.own(step))

        runner = Runner(plan, place, progress=progress, lookup=lookup, again=again)
        runner.run()
        return plan, place.faults, runner.lacking
    finally:
        disconnect()
