"""Expectations are strict in both directions, and their message helps."""

from __future__ import annotations

from pathlib import Path

import pytest

from qvlfp8.cells import Cell, Expectation
from qvlfp8.errors import FileFormatError
from qvlfp8.expect import surprise
from qvlfp8.report.table import Cause, CellView, StageView
from qvlfp8.results import Status
from tests.unit.factory import MATRIX, open_project

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


def test_what_is_flaky_may_show_or_not_and_hides_nothing_else(cell: Cell) -> None:
    flaky = KNOWN.model_copy(update={"flaky": True, "link": "https://example.org/issues/1"})
    for seen in (view("pass"), view("fail", "known")):
        assert surprise(cell, seen, (flaky,), blocked_as_expected=False) is None
    text = surprise(cell, view("fail", "known", "other"), (flaky,), blocked_as_expected=False)
    assert text is not None
    assert "--finding other" in text
    assert "not expected" in (surprise(cell, view("fail"), (flaky,), blocked_as_expected=False) or "")
    assert "could not be executed" in (
        surprise(cell, view("error"), (flaky,), blocked_as_expected=False) or ""
    )
    both = surprise(cell, view("pass"), (flaky, OTHER), blocked_as_expected=False)
    assert both is not None
    assert "did not show other (why)" in both


@pytest.mark.parametrize("link", ["", ", link: 'https://example.org/issues/1'"])
def test_what_is_flaky_needs_an_issue(tmp_path: Path, link: str) -> None:
    line = f"- {{cells: '*', shows: {{preflight: tie-misread}}, reason: r, flaky: true{link}}}"
    matrix = MATRIX.replace("expectations: []", f"expectations:\n  {line}")
    if link:
        assert open_project(tmp_path, matrix).matrix.file.expectations[0].flaky
        return
    with pytest.raises(FileFormatError, match=r"matrix\.yaml:19: expectations\[0\]: .*`link` to the issue"):
        open_project(tmp_path, matrix)


@pytest.mark.parametrize("shows", [True, False])
def test_a_flaky_failure_may_block_what_comes_after(tmp_path: Path, shows: bool) -> None:
    """Where it does not show, the later stages have to be there."""
    line = (
        "- {cells: '*', shows: {quantize: quantize-raised}, reason: r, flaky: true,"
        " link: 'https://example.org/issues/1'}"
    )
    project = open_project(tmp_path, MATRIX.replace("expectations: []", f"expectations:\n  {line}"))
    first = StageView(stage="quantize", status="pass")
    if shows:
        first = StageView(stage="quantize", status="fail", causes=(Cause(id="quantize-raised"),))
    later = StageView(stage="inspect", status="blocked" if shows else "not run")
    found = CellView(cell=project.matrix.cells[0], stages=(first, later))
    assert [text is None for _, text in project.surprises(found)] == [True, shows]


def test_a_surprise_prints_the_command_that_corrects_it(cell: Cell) -> None:
    gone = surprise(cell, view("pass"), (KNOWN,), blocked_as_expected=False, options=" --store x")
    new = surprise(cell, view("fail", "tie-misread"), (), blocked_as_expected=False)
    assert gone is not None
    assert f"qvlfp8 expect update '{cell.id}' --stage preflight --finding known --store x" in gone
    assert new is not None
    command = (
        f"qvlfp8 expect update '{cell.id}' --stage preflight --finding tie-misread --reason 'WHY IT SHOWS'"
    )
    assert new.endswith(command)
    inspect = StageView(stage="inspect", status="fail", causes=(Cause(id="weight-all-zero"),))
    text = surprise(cell, inspect, (), blocked_as_expected=False)
    assert text is not None
    assert f"expect update '{cell.checkpoint}/*' --stage inspect" in text
