"""``qvlfp8 matrix``, ``plan``, ``table``, ``diff`` and ``truth``: cells, planned, executed and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from qvlfp8.cli.options import (
    MATRIX,
    AllOption,
    EngineOption,
    JobsOption,
    JsonOption,
    MatrixOption,
    OnlyOption,
    StoreOption,
    VerboseOption,
)
from qvlfp8.truth import TRUTH_PER_TASK


def matrix(
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
    only: OnlyOption = None,
    everything: AllOption = False,
    again: Annotated[bool, typer.Option("--again", help="Execute steps that have a record already.")] = False,
    without_evidence: Annotated[
        bool,
        typer.Option(
            "--without-evidence", help="Execute what only a committed record of another machine answers, too."
        ),
    ] = False,
    jobs: JobsOption = None,
    engine: Annotated[
        Literal["venv", "docker", "ray"],
        typer.Option(
            "--engine",
            help="Where steps run: environments made by uv, hardened containers, or a Ray cluster.",
        ),
    ] = "venv",
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="HOST:PORT",
            help="With --engine ray: the cluster's head, or `auto` [default: one of this machine alone].",
        ),
    ] = None,
    shared: Annotated[
        str | None,
        typer.Option(
            "--shared",
            metavar="URL",
            help="With --engine ray: the store that all nodes reach: s3://…, gs://…, or file://… on a shared "
            "disk [default: in --store].",
        ),
    ] = None,
    inside: Annotated[
        Literal["venv", "docker"] | None,
        typer.Option("--inside", help="With --engine ray: the engine of each node [default: venv]."),
    ] = None,
    node_store: Annotated[
        Path | None,
        typer.Option(
            "--node-store",
            help="With --engine ray: where nodes keep environments and what they fetched [default: "
            "$QVLFP8_NODE_STORE there, or ~/.cache/qvlfp8].",
        ),
    ] = None,
    retries: Annotated[
        int | None,
        typer.Option(
            "--retries",
            min=0,
            max=10,
            help="With --engine ray: how often a step that ended in an error is tried again [default: 2].",
        ),
    ] = None,
    verbose: VerboseOption = False,
) -> None:
    """Execute what is not executed yet, and print the compatibility matrix."""
    from qvlfp8.commands.matrix import run_matrix

    given = {
        "--address": address,
        "--shared": shared,
        "--inside": inside,
        "--node-store": node_store,
        "--retries": retries,
    }
    run_matrix(
        matrix_file,
        store,
        only=only or [],
        everything=everything,
        again=again,
        evidence=not without_evidence,
        jobs=jobs,
        engine=engine,
        verbose=verbose,
        of_cluster={name: value for name, value in given.items() if value is not None},
    )


def plan(
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
    only: OnlyOption = None,
    everything: AllOption = False,
    as_json: JsonOption = False,
    as_github: Annotated[
        bool,
        typer.Option("--github", help="Print GitHub's job matrix instead: a job for each image on a GPU."),
    ] = False,
) -> None:
    """List cells, their steps, what is cached, and what is left out and why. Executes nothing."""
    from qvlfp8.commands.plan import show_github, show_plan

    if as_github:
        show_github(matrix_file, store, only=only or [], everything=everything)
        return
    show_plan(matrix_file, store, only=only or [], everything=everything, as_json=as_json)


def table(
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
    only: OnlyOption = None,
    everything: AllOption = False,
    form: Annotated[
        Literal["terminal", "markdown", "json"], typer.Option("--format", help="How to print it.")
    ] = "terminal",
) -> None:
    """Print the compatibility matrix from the records there are. Executes nothing."""
    from qvlfp8.commands.matrix import show_table

    show_table(matrix_file, store, only=only or [], everything=everything, form=form)


def diff(
    before: Annotated[
        str, typer.Argument(metavar="A", help="A store, a results folder, or a git revision of this project.")
    ],
    after: Annotated[str, typer.Argument(metavar="B", help="The same, later.")],
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_json: JsonOption = False,
    matrix_file: MatrixOption = MATRIX,
) -> int:
    """Say what improved, regressed, is new, gone or stale in B; ends with 1 on a regression."""
    from qvlfp8.commands.diff import show_difference

    return show_difference(matrix_file, before, after, as_markdown=as_markdown, as_json=as_json)


def truth(
    environment: Annotated[
        str | None,
        typer.Option("--environment", help="A serve environment for a GPU, instead of vLLM's CPU build."),
    ] = None,
    per_task: Annotated[
        int, typer.Option("--per-task", min=1, help="Questions of each task that every checkpoint is asked.")
    ] = TRUTH_PER_TASK,
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
    engine: EngineOption = "venv",
    verbose: VerboseOption = False,
) -> None:
    """Plant faults in good checkpoints and see which stage catches each."""
    from qvlfp8.commands.truth import run_truth

    run_truth(matrix_file, store, environment=environment, per_task=per_task, engine=engine, verbose=verbose)
