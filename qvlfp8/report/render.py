"""The compatibility matrix on a terminal, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from qvlfp8 import __version__
from qvlfp8.json_lines import json_lines
from qvlfp8.report.table import LEGEND, CellView, Table, make_table

_STYLES = {"◐": "green", "✗": "red", "!": "yellow"}


def print_table(console: Console, views: Iterable[CellView]) -> None:
    """Print the matrix, its causes and its legend."""
    table = make_table(views)
    console.print("Compatibility matrix: checkpoint x vLLM", style="italic", soft_wrap=True)
    # A narrow pipe or terminal must not cut marks off: lines are as long as they have to be.
    console.print(_grid(table), soft_wrap=True)
    for reason in table.reasons:
        console.print(
            f"{reason.letter}  {reason.stage}: {reason.what} ({_cells(reason.cells)})\n"
            f"   {reason.text[:500]}\n   for example in {reason.example}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    for cell, text in table.differences:
        console.print(f"≠  {cell}: {text}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        "\n".join(f"{symbol}  {text}" for symbol, text in LEGEND),
        style="dim",
        highlight=False,
        soft_wrap=True,
    )


def _grid(table: Table) -> Text:
    """The rows under their columns, a rule between recipes.

    Not by rich's own table, which measures and wraps each cell: that takes seconds for hundreds of rows.
    """
    heads = [column.removeprefix("vllm-") for column in table.columns]
    names = ["recipe / quantized by / model", *(name for name, _ in table.rows)]
    first = max(map(cell_len, names))
    widths = [
        max(cell_len(text) for text in (head, *(marks[place] for _, marks in table.rows)))
        for place, head in enumerate(heads)
    ]
    rule = "─┼─".join("─" * width for width in (first, *widths))
    shown = Text(no_wrap=True)
    shown.append(_line(names[0].ljust(first), zip(heads, widths, strict=True)), style="bold")
    recipe = ""
    for name, marks in table.rows:
        if not name.startswith(f"{recipe}/"):
            shown.append(f"{rule}\n", style="dim")
        recipe = name.split("/", 1)[0]
        shown.append(name.ljust(first))
        for mark, width in zip(marks, widths, strict=True):
            shown.append(" │ ", style="dim")
            shown.append(_centred(mark, width), style=_STYLES.get(mark[:1], "dim"))
        shown.append("\n")
    return shown


def _line(name: str, columns: Iterable[tuple[str, int]]) -> str:
    return " │ ".join([name, *(_centred(text, width) for text, width in columns)]) + "\n"


def _centred(text: str, width: int) -> str:
    left = (width - cell_len(text)) // 2
    return " " * left + text + " " * (width - cell_len(text) - left)


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


def to_markdown(views: Iterable[CellView]) -> str:
    """The matrix as a Markdown document."""
    table: Table = make_table(views)
    lines = ["# Compatibility matrix", ""]
    lines.append("| recipe / quantized by / model | " + " | ".join(table.columns) + " |")
    lines.append("|---" * (len(table.columns) + 1) + "|")
    lines += [f"| {name} | " + " | ".join(marks) + " |" for name, marks in table.rows]
    if table.reasons:
        lines += ["", "| | stage | finding | cells | for example |", "|---|---|---|---|---|"]
        lines += [
            f"| {r.letter} | {r.stage} | `{r.what}` | {r.cells} | {_cell_text(r.text)} ({r.example}) |"
            for r in table.reasons
        ]
    if table.differences:
        lines += ["", "Where preflight and a run differ:", ""]
        lines += [f"- {cell}: {_cell_text(text)}" for cell, text in table.differences]
    lines += ["", *(f"- {symbol} {text}" for symbol, text in LEGEND), ""]
    return "\n".join(lines)


def _cell_text(text: str) -> str:
    return text[:300].replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def to_json(views: Iterable[CellView]) -> str:
    """The matrix as JSON: an object and line a cell, with each stage's status, findings and record digest."""
    cells: Iterable[dict[str, Any]] = (
        {
            "id": view.cell.id,
            "recipe": view.cell.recipe.id,
            "quantize": view.cell.quantize.id,
            "model": view.cell.model.id,
            "serve": view.cell.serve.id,
            "stages": {
                stage.stage: {
                    "status": stage.status,
                    "findings": list(stage.findings),
                    "because": stage.because,
                    "earlier_worker": stage.earlier_worker,
                    "record": (stage.digest or None) if stage.status in {"pass", "fail", "error"} else None,
                }
                for stage in view.stages
            },
        }
        for view in views
    )
    return json_lines({"version": 1, "qvlfp8": __version__}, "cells", cells)
