"""``qvlfp8 publish`` and ``nightly-issue``: what others see of the records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvlfp8.cli.options import MATRIX, MatrixOption, StoreOption


def publish(
    out: Annotated[Path, typer.Option("--out", help="The site's folder; one of ours is replaced.")] = Path(
        "site"
    ),
    base: Annotated[
        str, typer.Option("--base", metavar="URL", help="Where it will stand, for the links of its feed.")
    ] = "",
    results: Annotated[
        Path | None,
        typer.Option("--results", help="Committed records [default: results/ beside the matrix]."),
    ] = None,
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
) -> None:
    """Write the static site: the matrix, each cell and finding, badges, feed and API. Executes nothing."""
    from qvlfp8.commands.publish import run_publish

    run_publish(matrix_file, store, results, out, base=base)


def nightly_issue(
    diff: Annotated[Path, typer.Argument(metavar="DIFF", help="What `qvlfp8 diff A B --json` printed.")],
    out: Annotated[Path, typer.Option("--out", help="The folder for title.txt and body.md.")],
    run: Annotated[str, typer.Option("--run", metavar="URL", help="The run that found the regressions.")],
) -> None:
    """Write the issue that a nightly run opens for regressions."""
    from qvlfp8.commands.nightly import write_issue

    write_issue(diff, out, run=run)
