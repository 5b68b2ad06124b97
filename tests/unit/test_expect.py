"""Expectations are strict in both directions, and their message helps."""

from __future__ import annotations

from pathlib import Path

import pytest

from qvlfp8.cells import Cell, Expectation
from qvlfp8.expect import suggestion, surprise
from qvlfp8.report.table import Cause, StageView
from qvlfp8.results import Status
from tests.unit.factory import open_project

KNOWN = Expectation(cells="*", shows={"preflight": "known"}, reason="why")
OTHER = Expectation(cells="*", shows={"preflight": "other"}, reason="why")


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Cell:
    return open_project(tmp_path_factory.mktemp("p")).matrix.cells[0]


def view(status: Status, *findings: str) -> StageView:
    return StageView(
        stage="preflight", status=status, causes=tuple(Cause(id=f) for f in findings), because="the cause"
    )


@pytest.mark.parametrize(
    ("seen", "expected", "says"),
    [
        (view("pass"), (), None),
        (view("pass"), (KNOWN,), "did not show known (why)"),
        (view("fail", "known"), (KNOWN,), None),
        (view("fail", "known", "other"), (KNOWN, OTHER), None),
        (view("fail", "known"), (KNOWN, OTHER), "did not show other (why)"),
        (view("fail", "other", "known"), (KNOWN,), "not expected: the cause"),
        (view("fail", "other"), (KNOWN,), "did not show known (why)"),
        (view("fail", "other"), (), "not expected: the cause"),
        (view("fail"), (), "not expected: the cause"),
        (view("error"), (), "could not be executed: the cause"),
        (view("error"), (KNOWN,), "could not be executed: the cause"),
        (view("stale"), (KNOWN,), "stale: the cause"),
        (view("blocked"), (), "blocked by the cause"),
        (view("not run"), (), "not run"),
        (view("not run"), (KNOWN,), "not run"),
    ],
)
def test_only_what_was_expected_is_no_surprise(
    cell: Cell, seen: StageView, expected: tuple[Expectation, ...], says: str | None
) -> None:
    text = surprise(cell, seen, expected, blocked_as_expected=False)
    assert (text is None) if says is None else (text is not None and says in text)
    if text is not None:
        assert text.startswith(f"{cell.id} · preflight")


@pytest.mark.parametrize("status", ["blocked", "not run"])
def test_what_an_expected_failure_blocks_is_no_surprise(cell: Cell, status: Status) -> None:
    assert surprise(cell, view(status), (), blocked_as_expected=True) is None


def test_the_suggested_line_expects_what_was_found(cell: Cell, tmp_path: Path) -> None:
    from tests.unit.factory import MATRIX

    line = suggestion(cell, view("fail"), "tie-misread")
    project = open_project(tmp_path, MATRIX.replace("expectations: []", f"expectations:\n  {line}"))
    found = {c.id: project.matrix.expected(c, "preflight") for c in project.matrix.cells}
    assert [e.shows for e in found.pop(cell.id)] == [{"preflight": "tie-misread"}]
    assert not any(found.values())
