"""``qvlfp8 bundle`` and ``run-bundle``: to a GPU host without network, and there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvlfp8.cli.options import MATRIX, AllOption, MatrixOption, OnlyOption, StoreOption


def bundle(
    environments: Annotated[
        list[str],
        typer.Argument(help="Environments, such as vllm-0.26.0; of one that quantizes only its packages."),
    ],
    have: Annotated[
        Path, typer.Option("--have", help="What `pip list --format=freeze` said on the GPU host.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Where the bundle goes; must not exist yet.")],
    split: Annotated[
        str | None, typer.Option("--split", metavar="SIZE", help="The most of a piece, such as 58M.")
    ] = None,
    only: OnlyOption = None,
    everything: AllOption = False,
    jobs: Annotated[bool, typer.Option("--jobs/--no-jobs", help="Bring what is to be run as well.")] = True,
    packages: Annotated[
        bool, typer.Option("--packages/--no-packages", help="Bring the environments' packages.")
    ] = True,
    truth: Annotated[
        bool, typer.Option("--truth", help="Bring the runs of `qvlfp8 truth` for these environments as well.")
    ] = False,
    time_limit: Annotated[float, typer.Option("--time-limit", min=1, help="Seconds, for each job.")] = 300.0,
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
) -> None:
    """Pack what a GPU host without network needs to run the cells of serve environments."""
    from qvlfp8.commands.bundle import make_bundle

    make_bundle(
        matrix_file, store, environments, have=have, out=out, split=split, only=only or [],
        everything=everything, jobs=jobs, truth=truth, packages=packages, time_limit=time_limit,
    )  # fmt: skip


def run_bundle(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="The bundle's folder, its pieces laid over each other.")],
) -> int:
    """Run a bundle here, as its start.sh does; `--help` after the folder lists its options."""
    from qvlfp8.commands.bundle import run_bundle as run

    return run(folder, context.args)
