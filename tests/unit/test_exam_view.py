"""What pages show of the exam and of findings, of the committed records: counted here once more, plainly."""

from __future__ import annotations

from pathlib import Path

import pytest

from qvlfp8.cells import STAGES
from qvlfp8.project import Project
from qvlfp8.report import proof
from qvlfp8.site.cell_page import cell_text
from qvlfp8.site.cell_view import make_page, show_row
from qvlfp8.site.data import Site, SiteCell, gather
from qvlfp8.site.exam_view import SHOWN, ExamShown, questions_shown
from qvlfp8.site.finding_view import make_pages
from qvlfp8.site.matrix_view import lay_out

ROOT = Path(__file__).parents[2]

BLIND = "lm-fp8/modelopt-0.41.0/seeing-untied/vllm-0.10.2"
SEES = "lm-fp8/modelopt-0.41.0/seeing-untied/vllm-0.26.0"


@pytest.fixture(scope="module")
def site() -> Site:
    return gather(Project.open(ROOT / "matrix.yaml", ROOT / "no-store"))


def exam_of(cell: SiteCell) -> str:
    return str(cell.records["load"].measured["exam_digest"])


def test_each_run_is_shown_by_its_own_answers(site: Site) -> None:
    shown = questions_shown(site.cells, exam_of(site.by_id[SEES]))
    assert len(shown) > 100
    assert len({id(asked) for asked in shown.values()}) > 5
    for name, asked in shown.items():
        cell = site.by_id[name]
        assert cell.baseline is not None
        own = cell.records["load"].measured
        assert asked.rows == proof.shown(own, cell.baseline.measured, SHOWN)
        right = pictures = 0
        for answer in own["answers"]:
            if answer["sight"]:
                pictures += 2
                right += (answer["answer"] or "").strip() == answer["expected"]
                right += (answer["swapped_answer"] or "").strip() == answer["swapped_expected"]
        assert (asked.right, asked.pictures) == (right, pictures)
    assert shown[BLIND].right < shown[SEES].right


def test_nothing_is_shown_of_another_exam(site: Site) -> None:
    assert questions_shown(site.cells, "0" * 64) == {}


def test_a_findings_page_counts_the_cells_that_show_it_at_each_stage(site: Site) -> None:
    pages = make_pages(site, lay_out(site).columns)
    noted = {name for cell in site.cells for _, name in cell.notes}
    assert noted
    for page in pages:
        showing = {
            stage: sum(
                (stage, page.name) in cell.notes
                or any(view.stage == stage and page.name in view.findings for view in cell.view.stages)
                for cell in site.cells
            )
            for stage in STAGES
        }
        assert {seen.stage: seen.cells for seen in page.seen} == {s: n for s, n in showing.items() if n}


def test_a_page_alone_in_its_row_has_no_neighbours(site: Site) -> None:
    cells = [site.by_id[BLIND], site.by_id[SEES]]
    alone, both = show_row(site, cells[:1]), show_row(site, cells)
    assert "neighbours" not in cell_text(make_page(site, cells[0], alone, ExamShown()))
    assert "neighbours" in cell_text(make_page(site, cells[0], both, ExamShown()))
