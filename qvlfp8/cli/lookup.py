"""``qvlfp8 recipes``, ``findings`` and ``schema``: what the project knows, printed."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from qvlfp8.cli.options import MATRIX, JsonOption, MatrixOption, StoreOption


def recipes(
    as_json: JsonOption = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/recipes.md.")] = False,
    matrix_file: MatrixOption = MATRIX,
) -> None:
    """Say what each recipe quantizes, and under which names it is known."""
    from qvlfp8.commands.recipes import show_recipes

    show_recipes(matrix_file, as_json=as_json, as_markdown=as_markdown)


def findings(
    name: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="One finding's id [default: list them all].")
    ] = None,
    as_json: JsonOption = False,
    as_markdown: Annotated[
        bool,
        typer.Option("--markdown", help="Print docs/findings.md: all of them, by the committed records."),
    ] = False,
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
) -> None:
    """Say what findings mean, how each is mended, and in which vLLM the records here show it."""
    if as_markdown:
        from qvlfp8.project import Project
        from qvlfp8.report.findings_page import page

        print(page(Project.open(matrix_file, store)), end="")
        return
    from qvlfp8.commands.findings import show_findings

    show_findings(matrix_file, store, name, as_json=as_json)


def schema(
    name: Annotated[Literal["matrix", "recipe", "record", "github-plan", "site"], typer.Argument()],
) -> None:
    """Print the JSON Schema of matrix.yaml, a recipe, a record, `plan --github`, or the site's API."""
    from qvlfp8.commands.schema import show_schema

    show_schema(name)
