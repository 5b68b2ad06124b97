"""The table says what records say, and nothing greener."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from qvlfp8.cells import STAGES, Cell
from qvlfp8.report.render import print_table, to_json, to_markdown
from qvlfp8.report.table import Cause, CellView, StageView, _letter, difference, make_table
from qvlfp8.results import Status
from tests.unit.factory import open_project


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cell, ...]:
    return open_project(tmp_path_factory.mktemp("p")).matrix.cells


def make_view(cell: Cell, statuses: tuple[Status, Status, Status], finding: str = "some-finding") -> CellView:
    return CellView(
        cell=cell,
        stages=tuple(
            StageView(
                stage=stage, status=status,
                causes=(Cause(id=finding, text=f"{finding}: seen | here"),) if status == "fail" else (),
                because=f"{finding}: seen | here" if status in {"fail", "error"} else "", digest="d",
            )
            for stage, status in zip(STAGES[1:4], statuses, strict=True)
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("statuses", "mark"),
    [
        (("pass", "pass", "pass"), "◐"),
        (("pass", "fail", "pass"), "✗ a"),
        (("pass", "error", "pass"), "! a"),
        (("pass", "not run", "pass"), "·"),
        (("pass", "pass", "fail"), "✗ a"),
        (("pass", "fail", "fail"), "✗ a b"),
        (("pass", "pass", "error"), "! a"),
        (("fail", "blocked", "blocked"), "✗ a"),
        (("pass", "pass", "blocked"), "▪"),
        (("pass", "pass", "not run"), "·"),
        (("not run", "not run", "not run"), "·"),
    ],
)
def test_a_mark_is_the_decisive_stage_and_its_causes(
    cells: tuple[Cell, ...], statuses: tuple[Status, Status, Status], mark: str
) -> None:
    table = make_table([make_view(cells[0], statuses)])
    assert table.rows == ((cells[0].checkpoint, (mark,)),)


def test_a_cell_that_was_not_planned_is_left_empty(cells: tuple[Cell, ...]) -> None:
    views = [make_view(cells[0], ("pass",) * 3), make_view(cells[3], ("pass",) * 3)]
    assert [marks for _, marks in make_table(views).rows] == [("◐", ""), ("", "◐")]


statuses = st.sampled_from(["pass", "fail", "error", "blocked", "not run"])


@given(drawn=st.lists(st.tuples(statuses, statuses, statuses), min_size=4, max_size=4))
def test_no_mark_says_loads_unless_every_stage_passed(
    cells: tuple[Cell, ...], drawn: list[tuple[Status, Status, Status]]
) -> None:
    views = [make_view(cell, three) for cell, three in zip(cells, drawn, strict=True)]
    marks = {
        (row, column): mark
        for row, found in make_table(views).rows
        for column, mark in zip(make_table(views).columns, found, strict=True)
    }
    for view in views:
        green = marks[view.cell.checkpoint, view.cell.serve.id].startswith("◐")
        assert green == all(stage.status == "pass" for stage in view.stages)
    shown = json.loads(to_json(views))
    assert [c["stages"]["preflight"]["status"] for c in shown["cells"]] == [
        v.stages[-1].status for v in views
    ]


def test_every_view_shows_every_row_and_cause(cells: tuple[Cell, ...]) -> None:
    views = [
        make_view(cells[0], ("pass", "pass", "fail")),
        make_view(cells[1], ("pass", "pass", "pass")),
    ]
    stream = StringIO()
    print_table(Console(file=stream, width=40), views)
    for text in (stream.getvalue(), to_markdown(views)):
        for part in (
            cells[0].checkpoint,
            "0.10.2",
            "0.13.0",
            "✗ a",
            "◐",
            "some-finding",
            "text and image were not run",
        ):
            assert part in text
    assert "seen \\| here" in to_markdown(views)


def test_letters_go_on_after_z() -> None:
    assert [_letter(i) for i in (0, 25, 26, 51, 52, 701, 702)] == [
        "a",
        "z",
        "aa",
        "az",
        "ba",
        "zz",
        "aaa",
    ]


@pytest.mark.parametrize(
    ("preflight", "run", "says"),
    [
        ("pass", ("pass", "pass", "pass"), None),
        ("fail", ("fail", "blocked", "blocked"), None),
        ("fail", ("pass", "pass", "fail"), None),
        ("pass", ("pass", "pass", "fail"), "preflight passed, the run failed at image: why"),
        ("pass", ("fail", "blocked", "blocked"), "preflight passed, the run failed at load: why"),
        ("fail", ("pass", "pass", "pass"), "preflight failed (why), the run passed"),
        ("pass", ("not run", "not run", "not run"), None),
        ("blocked", ("pass", "pass", "pass"), None),
        ("pass", ("error", "blocked", "blocked"), None),
        ("fail", ("stale", "stale", "stale"), None),
    ],
)
def test_where_preflight_and_a_run_differ_is_said(
    cells: tuple[Cell, ...], preflight: Status, run: tuple[Status, ...], says: str | None
) -> None:
    stages = zip(("preflight", "load", "text", "image"), (preflight, *run), strict=True)
    view = CellView(
        cell=cells[0],
        stages=tuple(
            StageView(stage=stage, status=status, because="why")  # type: ignore[arg-type]
            for stage, status in stages
        ),
    )
    assert difference(view) == says
    if says:
        assert says in to_markdown([view])
