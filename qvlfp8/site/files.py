"""The site as files: every path with its bytes, in a fixed order: the same records, the same bytes. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from markupsafe import Markup

from qvlfp8.cells import Stage
from qvlfp8.observed import named_version
from qvlfp8.report.recipes_page import HEADER
from qvlfp8.report.recipes_page import row as recipe_row
from qvlfp8.results import Record
from qvlfp8.site import api, compatibility, feed, rendering
from qvlfp8.site.badges import Badge, badge_of
from qvlfp8.site.cell_view import CellPage, ExamShown, Execution, make_page
from qvlfp8.site.data import Site, record_name
from qvlfp8.site.finding_view import FindingPage, make_pages
from qvlfp8.site.matrix_view import Matrix, Row, lay_out, producer
from qvlfp8.site.names import slug
from qvlfp8.site.outcome import MEANINGS, WORDS
from qvlfp8.site.untrusted import without_paths

__all__ = ["cell_text", "site_files"]


def site_files(
    site: Site, exam: ExamShown, *, base: str = "", schema: str = ""
) -> Iterator[tuple[str, bytes]]:
    """Every file but the pictures.

    Args:
        site: what it shows.
        exam: what its pictures are of.
        base: the address at which it will stand, for the feed; empty: links are relative.
        schema: the text of the API's schema.
    """
    matrix = lay_out(site)
    findings = make_pages(site, matrix.columns)
    badges = {name: badge_of(name, site.cells, matrix.columns) for name in site.project.matrix.recipes}
    for path, text in _texts(site, matrix, findings, badges, exam, base=base, schema=schema):
        yield path, text.encode()
    yield from rendering.assets()


def _texts(
    site: Site,
    matrix: Matrix,
    findings: tuple[FindingPage, ...],
    badges: Mapping[str, Badge],
    exam: ExamShown,
    *,
    base: str,
    schema: str,
) -> Iterator[tuple[str, str]]:
    yield (
        "index.html",
        rendering.render("index.html", here="matrix", matrix=matrix, words=WORDS, producer=producer),
    )
    yield from _cells(site, matrix, exam)
    yield "findings.html", rendering.render("findings.html", here="findings", pages=findings)
    for page in findings:
        text = rendering.render("finding.html", root="../", here="findings", page=page, words=WORDS)
        yield f"findings/{slug(page.name)}.html", text
    yield (
        "recipes.html",
        rendering.render("recipes.html", here="recipes", words=WORDS, recipes=_recipes(site, badges)),
    )
    for name, badge in badges.items():
        yield f"badges/{name}.json", _json(badge.endpoint)
        yield f"badges/{name}.svg", rendering.render("badge.svg", badge=badge)
    yield "COMPATIBILITY.md", compatibility.page(matrix)
    told = feed.entries(site)
    yield "feed.xml", rendering.render("feed.xml", entries=told, base=base, words=WORDS)
    yield "api/v1/site.json", api.document(site, matrix, findings).model_dump_json(indent=1) + "\n"
    yield "api/v1/site.schema.json", schema
    yield "api.html", rendering.render("api.html", here="api", files=_FILES)
    for name, record in site.records.items():
        yield f"records/{name}", _record(record)


_FILES = (
    ("api/v1/site.json", "all cells with their stages, all rows in words, all findings"),
    ("api/v1/site.schema.json", "its JSON Schema"),
    ("records/", "every record that a page links, one file each (qvlfp8 schema record)"),
    ("badges/", "for each recipe a badge (RECIPE.svg), and RECIPE.json for an endpoint badge of shields.io"),
    ("feed.xml", "what was executed when (Atom)"),
    ("COMPATIBILITY.md", "the matrix in words"),
)


def _cells(site: Site, matrix: Matrix, exam: ExamShown) -> Iterator[tuple[str, str]]:
    """A page for each cell of which something was executed."""
    for group in matrix.groups:
        for rows in _by_checkpoint(group.rows):
            # Its cells, however they were run, have in common what is the checkpoint's alone.
            alone: dict[Stage, Execution] = {}
            sections = Sections()
            for row in rows:
                line = [cell for cell in row.cells if cell is not None]
                for cell in line:
                    if cell.page is not None:
                        yield cell.page, cell_text(make_page(site, cell, line, exam, alone), sections)


def _by_checkpoint(rows: Sequence[Row]) -> Iterator[Iterable[Row]]:
    for _, found in groupby(rows, key=lambda row: row.checkpoint):
        yield found


class Sections:
    """Sections of pages as HTML; what several pages have in common is rendered once."""

    def __init__(self) -> None:
        self._known: dict[Stage, tuple[Execution, Markup]] = {}

    def __call__(self, run: Execution, baseline: str | None) -> Markup:
        stage = run.stages[0].stage
        known = self._known.get(stage)
        if known is None or known[0] is not run:
            text = rendering.render("execution.html", root="../", run=run, baseline=baseline)
            # Made by a template, which has escaped what is to be escaped.
            known = self._known[stage] = (run, Markup(text))  # noqa: S704
        return known[1]


def cell_text(page: CellPage, sections: Sections | None = None) -> str:
    """A cell's page as HTML; what it has in common with pages rendered before is taken from ``sections``."""
    return rendering.render(
        "cell.html",
        root="../",
        here="matrix",
        page=page,
        section=sections or Sections(),
        words=WORDS,
        meanings=MEANINGS,
        record_name=record_name,
        column=lambda one: named_version(one.cell.serve),
    )


def _recipes(site: Site, badges: Mapping[str, Badge]) -> list[dict[str, Any]]:
    return [
        {
            "id": recipe.id,
            "description": recipe.description,
            "link": recipe.link,
            "badge": badges[recipe.id],
            "facts": list(zip(HEADER[1:], recipe_row(recipe)[1:], strict=True)),
        }
        for recipe in site.project.matrix.recipes.values()
    ]


def _record(record: Record) -> str:
    """A record's copy: without the place of the store that it came from."""
    return without_paths(record.model_dump_json(exclude_none=True)) + "\n"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"
