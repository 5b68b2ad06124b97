"""The site as files: every path with its bytes, in a fixed order: the same records, the same bytes. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Set
from typing import Any

from qvlfp8.report.recipes_page import HEADER
from qvlfp8.report.recipes_page import row as recipe_row
from qvlfp8.results import Record
from qvlfp8.site import api, compatibility, feed, rendering
from qvlfp8.site.badges import Badge, badge_of
from qvlfp8.site.cell_page import CellPages, by_checkpoint
from qvlfp8.site.data import Site, SiteCell
from qvlfp8.site.exam_view import ExamShown
from qvlfp8.site.finding_view import FindingPage, make_pages
from qvlfp8.site.matrix_view import Matrix, lay_out, producer
from qvlfp8.site.names import slug
from qvlfp8.site.outcome import WORDS
from qvlfp8.site.untrusted import without_paths

__all__ = ["Shares", "first_files", "site_files"]


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
    yield from first_files(site, matrix, base=base, schema=schema)
    shares = Shares(site, matrix, exam)
    for number in range(len(shares)):
        yield from shares.files(number)


def first_files(site: Site, matrix: Matrix, *, base: str, schema: str) -> Iterator[tuple[str, bytes]]:
    """The files that speak of the whole matrix, and what pages load."""
    findings = make_pages(site, matrix.columns)
    of_recipe: dict[str, list[SiteCell]] = {name: [] for name in site.project.matrix.recipes}
    for cell in site.cells:
        of_recipe[cell.cell.recipe.id].append(cell)
    badges = {name: badge_of(name, cells, matrix.columns) for name, cells in of_recipe.items()}
    for path, text in _texts(site, matrix, findings, badges, base=base, schema=schema):
        yield path, text.encode()
    yield from rendering.assets()


class Shares:
    """The files of which there are many, in shares that are made apart from one another.

    A share is the pages of one checkpoint's cells, or copies of some records.
    """

    def __init__(
        self, site: Site, matrix: Matrix, exam: ExamShown, *, without: Set[str] = frozenset()
    ) -> None:
        """``without``: the checkpoints whose pages others make."""
        self._pages = CellPages(site, exam)
        self._rows = [
            rows
            for group in matrix.groups
            for rows in by_checkpoint(group.rows)
            if rows[0].checkpoint not in without
        ]
        records = list(site.records.items())
        self._records = [records[start : start + _RECORDS] for start in range(0, len(records), _RECORDS)]

    def __len__(self) -> int:
        """How many shares there are."""
        return len(self._rows) + len(self._records)

    def pages(self) -> Iterator[tuple[str, bytes]]:
        """The pages of all shares."""
        for number in range(len(self._rows)):
            yield from self.files(number)

    def files(self, number: int) -> Iterator[tuple[str, bytes]]:
        """The files of one share."""
        if number < len(self._rows):
            for path, text in self._pages.of(self._rows[number]):
                yield path, text.encode()
            return
        for name, record in self._records[number - len(self._rows)]:
            yield f"records/{name}", _record(record).encode()


_RECORDS = 50
"""Of a share."""


def _texts(
    site: Site,
    matrix: Matrix,
    findings: tuple[FindingPage, ...],
    badges: Mapping[str, Badge],
    *,
    base: str,
    schema: str,
) -> Iterator[tuple[str, str]]:
    yield (
        "index.html",
        rendering.render("index.html", here="matrix", matrix=matrix, words=WORDS, producer=producer),
    )
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
    yield "api/v1/site.json", api.text(site, matrix, findings)
    yield "api/v1/site.schema.json", schema
    yield "api.html", rendering.render("api.html", here="api", files=_FILES)


_FILES = (
    ("api/v1/site.json", "all cells with their stages, all rows in words, all findings"),
    ("api/v1/site.schema.json", "its JSON Schema"),
    ("records/", "every record that a page links, one file each (qvlfp8 schema record)"),
    ("badges/", "for each recipe a badge (RECIPE.svg), and RECIPE.json for an endpoint badge of shields.io"),
    ("feed.xml", "what was executed when (Atom)"),
    ("COMPATIBILITY.md", "the matrix in words"),
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
