"""``api/v1/``: what the pages say, for programs. The models here are its schema."""

from __future__ import annotations

from typing import Any, Literal

from qvlfp8 import __version__
from qvlfp8.cells import Stage
from qvlfp8.observed import named_version
from qvlfp8.results import Status
from qvlfp8.site.data import Site, SiteCell, record_name
from qvlfp8.site.finding_view import FindingPage
from qvlfp8.site.matrix_view import Matrix
from qvlfp8.site.outcome import Outcome
from qvlfp8.site.untrusted import plain
from qvlfp8.yamlfile import Strict

__all__ = [
    "CellDocument",
    "FindingDocument",
    "RowDocument",
    "SiteDocument",
    "StageDocument",
    "document",
    "text",
]


class StageDocument(Strict):
    """One stage of a cell. ``record`` is the path of its record's copy in the site."""

    stage: Stage
    status: Status
    findings: tuple[str, ...]
    because: str
    record: str | None


class CellDocument(Strict):
    """One cell. ``furthest``: the last stage that passed; ``at``: where it ended."""

    id: str
    recipe: str
    quantize: str
    model: str
    serve: str
    variant: str
    vllm: str
    outcome: Outcome
    furthest: Stage | None
    at: Stage
    executed: bool
    earlier_worker: bool
    """Its run was made elsewhere, by a worker whose source has changed since."""
    hardware: tuple[str, ...]
    page: str | None
    stages: tuple[StageDocument, ...]


class RowDocument(Strict):
    """A checkpoint run in one way, and its outcomes in words."""

    checkpoint: str
    variant: str
    words: str


class FindingDocument(Strict):
    """A finding, and the cells that show it."""

    id: str
    severity: Literal["fail", "note", "error"]
    meaning: str
    mend: str
    command: str | None
    links: tuple[str, ...]
    cells: tuple[str, ...]


class SiteDocument(Strict):
    """``api/v1/site.json``: everything that the pages say."""

    version: Literal[1] = 1
    qvlfp8: str
    columns: tuple[str, ...]
    """vLLM versions, oldest first, as the matrix names them."""
    rows: tuple[RowDocument, ...]
    cells: tuple[CellDocument, ...]
    findings: tuple[FindingDocument, ...]


def document(site: Site, matrix: Matrix, findings: tuple[FindingPage, ...]) -> SiteDocument:
    """The whole of it."""
    # At once: there are as many stages as the matrix has, and a call for each takes longer than all else.
    return SiteDocument.model_validate(
        {
            "qvlfp8": __version__,
            "columns": matrix.columns,
            "rows": [
                {"checkpoint": row.checkpoint, "variant": row.variant or "eager", "words": row.words}
                for group in matrix.groups
                for row in group.rows
            ],
            "cells": [_cell(cell) for cell in site.cells],
            "findings": [_finding(page) for page in findings],
        }
    )


def text(site: Site, matrix: Matrix, findings: tuple[FindingPage, ...]) -> str:
    """The same as ``api/v1/site.json`` has it."""
    return document(site, matrix, findings).model_dump_json(indent=1) + "\n"


def _cell(cell: SiteCell) -> dict[str, Any]:
    of = cell.cell
    return {
        "id": of.id,
        "recipe": of.recipe.id,
        "quantize": of.quantize.id,
        "model": of.model.id,
        "serve": of.serve.id,
        "variant": of.variant.id,
        "vllm": named_version(of.serve),
        "outcome": cell.outcome,
        "furthest": cell.furthest,
        "at": cell.at,
        "executed": cell.executed,
        "earlier_worker": cell.earlier,
        "hardware": cell.hardware,
        "page": cell.page,
        "stages": tuple(
            {
                "stage": view.stage,
                "status": view.status,
                "findings": view.findings,
                "because": plain(view.because, 1000),
                "record": f"records/{record_name(record)}"
                if (record := cell.records.get(view.stage))
                else None,
            }
            for view in cell.view.stages
        ),
    }


def _finding(page: FindingPage) -> dict[str, Any]:
    return {
        "id": page.name,
        "severity": page.kind.severity,
        "meaning": page.kind.meaning,
        "mend": page.kind.mend,
        "command": page.signs.command or None,
        "links": page.signs.links,
        "cells": tuple(cell.cell.id for cell in page.cells),
    }
