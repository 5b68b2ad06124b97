"""``qvlfp8 contract …``: what each vLLM does with a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from qvlfp8.cli.options import MATRIX, MatrixOption, StoreOption

contract_app = typer.Typer(
    help="What each vLLM does with a checkpoint, recorded from its loader: what `explain` knows.",
    rich_markup_mode=None,
)

EnvironmentsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[ENVIRONMENT]...", help="Serve environments [default: all].")
]
ContractsOption = Annotated[
    Path | None, typer.Option("--contracts", help="Where contracts are [default: in the package].")
]
OnlyShownOption = Annotated[
    Literal["probes", "samples"] | None,
    typer.Option("--only", help="The probes of Qwen2.5-VL, or the samples of other kinds [default: both]."),
]


@contract_app.command("record")
def contract_record(
    environments: EnvironmentsArgument = None,
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
    contracts: ContractsOption = None,
    only: OnlyShownOption = None,
) -> None:
    """Show the probes to the loader of each environment, and write its contract. Minutes for each."""
    from qvlfp8.commands.contract import Shown, run_record

    run_record(matrix_file, store, environments or [], contracts, Shown(only) if only else None)


@contract_app.command("check")
def contract_check(
    environments: EnvironmentsArgument = None,
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
    contracts: ContractsOption = None,
    only: OnlyShownOption = None,
) -> None:
    """Show the probes again, and fail where vLLM does otherwise than its contract says."""
    from qvlfp8.commands.contract import Shown, run_check

    run_check(matrix_file, store, environments or [], contracts, Shown(only) if only else None)
