"""``qvlfp8 results …``: committed records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvlfp8.cli.options import MATRIX, MatrixOption, StoreOption

results_app = typer.Typer(
    help="Committed records, in results/.",
    rich_markup_mode=None,
)


@results_app.command("import")
def results_import(
    folder: Annotated[Path, typer.Argument(help="The folder `out` that a bundle's run left.")],
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
) -> None:
    """Take in what a bundle's run brought back, after checking its digests."""
    from qvlfp8.commands.results import import_results

    import_results(matrix_file, store, folder)


@results_app.command("merge")
def results_merge(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE...", help="Stores that machines filled.")],
    store: Annotated[Path, typer.Option("--store", help="The store that takes them in.")],
    fill: Annotated[
        list[Path] | None,
        typer.Option(
            "--fill",
            metavar="STORE",
            help="Stands in for what the others did not settle; may be repeated.",
        ),
    ] = None,
) -> None:
    """Copy the records of several stores into one, unless they contradict each other."""
    from qvlfp8.commands.results import merge_results

    merge_results(stores, fill=fill or [], store=store)


@results_app.command("keep")
def results_keep(
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
) -> None:
    """Keep what this machine has quantized, inspected and shown to vLLM's loader, as lines in results/."""
    from qvlfp8.commands.keep import keep_results

    keep_results(matrix_file, store)


@results_app.command("report")
def results_report(
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
) -> None:
    """Write results/README.md: every run's marks, and the pictures and answers that prove them."""
    from qvlfp8.commands.results import write_report

    write_report(matrix_file, store)
