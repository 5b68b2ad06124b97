"""``qvlfp8 expect …``: what matrix.yaml expects."""

from __future__ import annotations

from typing import Annotated

import typer

from qvlfp8.cli.options import MATRIX, AllOption, MatrixOption, StoreOption

expect_app = typer.Typer(
    help="What matrix.yaml expects of cells.",
    rich_markup_mode=None,
)


@expect_app.command("update")
def expect_update(
    only: Annotated[
        list[str] | None,
        typer.Argument(metavar="[GLOB]...", help="Cells, as of --only [default: the default slice]."),
    ] = None,
    everything: AllOption = False,
    stage: Annotated[str | None, typer.Option("--stage", help="Only what this stage shows.")] = None,
    finding: Annotated[str | None, typer.Option("--finding", metavar="ID", help="Only this finding.")] = None,
    reason: Annotated[
        str | None, typer.Option("--reason", help="Why it shows; a finding that nobody expected needs it.")
    ] = None,
    link: Annotated[str | None, typer.Option("--link", metavar="URL", help="Of the issue.")] = None,
    flaky: Annotated[
        bool, typer.Option("--flaky", help="It may show or not; needs --link to the issue that says why.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would change.")] = False,
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
) -> None:
    """Make matrix.yaml expect what the records show: narrow or remove what no longer shows, add what does."""
    from qvlfp8.commands.expect import update_expectations

    update_expectations(
        matrix_file, store, only or [], everything=everything, stage=stage, finding=finding, reason=reason,
        link=link, flaky=flaky, dry_run=dry_run,
    )  # fmt: skip
