"""The compatibility matrix on a terminal, as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from qvlfp8 import __version__
from qvlfp8.report.table import LEGEND, CellView, Table, make_table

_STYLES = {"◐": "green", "✗": "red", "!": "yellow"}


def print_table(console: Console, views: Iterable[CellView]) -> None:
    """Print the matrix, its causes and its legend."""
    table = make_table(views)
    grid = RichTable(title="Compatibility matrix: checkpoint x vLLM", title_justify="left")
    grid.add_column("recipe / quantized by / model", no_wrap=True)
    for column in table.columns:
        grid.add_column(column.removeprefix("vllm-"), justify="center", no_wrap=True)
    recipe = ""
    for name, marks in table.rows:
        if recipe and not name.startswith(f"{recipe}/"):
            grid.add_section()
        recipe = name.split("/", 1)[0]
        grid.add_row(name, *(f"[{_STYLES.get(m[:1], 'dim')}]{m}[/]" if m else "" for m in marks))
    # A narrow pipe or terminal must not cut marks off: the table takes the width that it needs.
    needed = Console(width=1000).measure(grid).maximum
    wide = Console(file=console.file, width=max(console.width, needed), force_terminal=console.is_terminal)
    wide.print(grid)
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
    """The matrix as JSON: one object a cell, with every stage's status, findings and record digest."""
    cells: list[dict[str, Any]] = [
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
    ]
    return (
        json.dumps({"version": 1, "qvlfp8": __version__, "cells": cells}, indent=1, ensure_ascii=False) + "\n"
    )
