"""Cells' pages as HTML: what several pages have in common is rendered once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import groupby

from qvlfp8.cells import Stage
from qvlfp8.observed import named_version
from qvlfp8.results import Status
from qvlfp8.site import cell_html, pieces, rendering
from qvlfp8.site.cell_view import CellPage, Common, Execution, RowShown, make_page, show_row
from qvlfp8.site.chart_html import Figures
from qvlfp8.site.data import Site, SiteCell
from qvlfp8.site.exam_view import ExamShown
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
            shown = show_row(self._site, [cell for cell in row.cells if cell is not None])
            for cell in shown.pages:
                if cell.page is not None:
                    page = make_page(self._site, cell, shown, self._exam, self._common)
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
        self._row: tuple[RowShown, _RowHTML] | None = None

    def text(self, page: CellPage) -> str:
        """One of them."""
        cell, row = page.cell, self._of_row(page.row)
        main = cell_html.content(
            page,
            root=_ROOT,
            track=_track(tuple((view.stage, view.status) for view in cell.view.stages)),
            sections=[self._section(run, page.baseline) for run in page.executions],
            chart=row.figure(cell),
            neighbours=row.links(cell),
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

    def _of_row(self, row: RowShown) -> _RowHTML:
        if self._row is None or self._row[0] is not row:
            self._row = (row, _RowHTML(row))
        return self._row[1]


class _RowHTML:
    """What the pages of one row have in common, apart from what marks the page's own place in it."""

    def __init__(self, row: RowShown) -> None:
        self._row = row
        self._links = [_link(cell) for cell in row.pages]
        self._figures = Figures(row.chart) if row.chart else None

    def links(self, here: SiteCell) -> str:
        """Links to the row's pages; nothing if there is one alone."""
        if len(self._links) == 1:
            return ""
        return "".join(
            [
                _here(cell) if cell is here else link
                for cell, link in zip(self._row.pages, self._links, strict=True)
            ]
        )

    def figure(self, here: SiteCell) -> str:
        """The chart; nothing if the cell is not in it."""
        column = self._row.columns.get(here.cell.id)
        return self._figures.of(column) if self._figures and column is not None else ""


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
