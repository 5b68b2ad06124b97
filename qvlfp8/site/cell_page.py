"""Cells' pages as HTML: what several pages have in common is rendered once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import groupby

from qvlfp8.cells import Stage
from qvlfp8.observed import named_version
from qvlfp8.results import Status
from qvlfp8.site import cell_html, pieces, rendering
from qvlfp8.site.cell_view import CellPage, Common, ExamShown, Execution, make_page
from qvlfp8.site.data import Site, SiteCell
from qvlfp8.site.execution_html import section
from qvlfp8.site.matrix_view import Row
from qvlfp8.site.outcome import WORDS

__all__ = ["CellPages", "Pages", "by_checkpoint", "cell_text"]

_ROOT = "../"


class CellPages:
    """The pages of a site's cells."""

    def __init__(self, site: Site, exam: ExamShown) -> None:
        self._site = site
        self._exam = exam
        self._pages = Pages()
        self._common = Common()

    def of(self, rows: Iterable[Row]) -> Iterator[tuple[str, str]]:
        """Path and text of a page for each cell of one checkpoint of which something was executed."""
        # Its cells, however they were run, have in common what is the checkpoint's alone.
        self._common.of_checkpoint.clear()
        for row in rows:
            line = [cell for cell in row.cells if cell is not None]
            for cell in line:
                if cell.page is not None:
                    page = make_page(self._site, cell, line, self._exam, self._common)
                    yield cell.page, self._pages.text(page)


def by_checkpoint(rows: Sequence[Row]) -> Iterator[tuple[Row, ...]]:
    """The rows of each checkpoint, which stand together."""
    for _, found in groupby(rows, key=lambda row: row.checkpoint):
        yield tuple(found)


def cell_text(page: CellPage) -> str:
    """A cell's page as HTML."""
    return Pages().text(page)


class Pages:
    """Pages as HTML, one after the other; those of a row should come together."""

    def __init__(self) -> None:
        self._sections: dict[Stage, tuple[Execution, str]] = {}
        self._resolved: dict[int, tuple[Execution, str]] = {}
        self._links: tuple[tuple[SiteCell, ...], list[str]] = ((), [])

    def text(self, page: CellPage) -> str:
        """One of them."""
        cell = page.cell
        main = cell_html.content(
            page,
            root=_ROOT,
            track=_track(tuple((view.stage, view.status) for view in cell.view.stages)),
            sections=[self._section(run, page.baseline) for run in page.executions],
            neighbours=self._neighbours(page),
        )
        title = f"{cell.cell.recipe.id} in vLLM {page.version}: {WORDS[cell.outcome]}"
        return rendering.page(title, main, root=_ROOT, here="matrix")

    def _section(self, run: Execution, baseline: str | None) -> str:
        stage = run.stages[0].stage
        known = self._resolved.get(id(run)) if stage == "resolve" else self._sections.get(stage)
        if known is None or known[0] is not run:
            known = (run, section(run, baseline, _ROOT))
            if stage == "resolve":
                self._resolved[id(run)] = known
            else:
                self._sections[stage] = known
        return known[1]

    def _neighbours(self, page: CellPage) -> str:
        if self._links[0] != page.neighbours:
            self._links = (page.neighbours, [_link(one) for one in page.neighbours])
        listed = [
            _here(one) if one is page.cell else link
            for one, link in zip(page.neighbours, self._links[1], strict=True)
        ]
        return "".join(listed)


@cache
def _track(stages: tuple[tuple[Stage, Status], ...]) -> str:
    """Links to the sections of stages."""
    listed = (
        f'<li><a href="#{stage}"><span>{stage}</span> {pieces.status(status)}</a></li>\n'
        for stage, status in stages
    )
    return "".join(listed)


def _link(cell: SiteCell) -> str:
    return f'<li><a href="{_ROOT}{pieces.escaped(cell.page or "")}">{_name(cell)}</a></li>\n'


def _here(cell: SiteCell) -> str:
    return f'<li><span class="at">{_name(cell)}</span></li>\n'


def _name(cell: SiteCell) -> str:
    mark = pieces.mark(cell.outcome, WORDS[cell.outcome])
    return f"{pieces.escaped(named_version(cell.cell.serve))} {mark}"
