"""``qvlfp8 …``: thin commands; what they import, they import when they run.

A module a group of commands. Here they become one command line, in the order of its help.
"""

from __future__ import annotations

from typing import Annotated

import typer

from qvlfp8 import __version__
from qvlfp8.cli.bundles import bundle, run_bundle
from qvlfp8.cli.cells import diff, matrix, plan, table, truth
from qvlfp8.cli.checkpoints import diagnose, explain, quantize, repair
from qvlfp8.cli.contract import contract_app
from qvlfp8.cli.ending import run
from qvlfp8.cli.environments import base, build, images, lock
from qvlfp8.cli.expect import expect_app
from qvlfp8.cli.lookup import findings, recipes, schema
from qvlfp8.cli.publishing import nightly_issue, publish
from qvlfp8.cli.reference import reference_app
from qvlfp8.cli.results import results_app

app = typer.Typer(
    name="qvlfp8",
    help="Which FP8 checkpoint of a vision-language model loads, speaks, sees and stays right in which vLLM?",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"qvlfp8 {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    _show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


_FORWARDING = {"allow_extra_args": True, "ignore_unknown_options": True}

for _command in (
    matrix, plan, explain, repair, table, diff, quantize, lock, base, build, images, truth, bundle,
    run_bundle, nightly_issue, recipes, findings, diagnose, publish, schema,
):  # fmt: skip
    # What follows the folder is for the script that the bundle brings.
    app.command(context_settings=_FORWARDING if _command is run_bundle else None)(_command)
app.add_typer(reference_app, name="reference")
app.add_typer(contract_app, name="contract")
app.add_typer(results_app, name="results")
app.add_typer(expect_app, name="expect")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code (see :data:`qvlfp8.errors.EXIT_CODES`)."""
    return run(app, arguments)
