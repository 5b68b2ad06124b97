"""Two runs held against each other: what is a regression, and what never is."""

from __future__ import annotations

import json
import time
from io import StringIO
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from qvlfp8.history import KINDS, Ended, Key, Outcome, compare
from qvlfp8.report.difference import MOST, print_difference, to_json, to_markdown
from qvlfp8.runs import Run

KEY = Key("lm-fp8/modelopt-0.47.0/seeing/vllm-0.26.0", "image", "NVIDIA H200")

PASS = Outcome(status="pass")
BLIND = Outcome(status="fail", findings=("blind",), because="blind: why")
WRONG = Outcome(status="fail", findings=("sees-wrongly",), because="sees-wrongly: why")
ERROR = Outcome(status="error", because="OutOfMemoryError: m")
BLOCKED = Outcome(status="blocked", because="load")
OLD_PASS = Outcome(status="pass", stale="recipe has changed since 2026")
OLD_FAIL = Outcome(status="fail", findings=("blind",), stale="recipe has changed since 2026")


@pytest.mark.parametrize(
    ("before", "after", "kind", "note"),
    [
        (PASS, PASS, None, ""),
        (BLIND, BLIND, None, ""),
        (PASS, BLIND, "regressed", "blind: why"),
        (BLIND, PASS, "improved", ""),
        (BLIND, WRONG, "changed", "sees-wrongly: why"),
        (None, PASS, "new", ""),
        (None, BLIND, "new", ""),
        (BLOCKED, PASS, "new", "before: blocked"),
        (PASS, None, "gone", ""),
        (BLIND, None, "gone", ""),
        (PASS, BLOCKED, "gone", "load"),
        (BLOCKED, None, None, ""),
        (BLOCKED, BLOCKED, None, ""),
        # A machine's fault: said, and never a checkpoint's regression, before or after.
        (PASS, ERROR, "error", "OutOfMemoryError: m"),
        (None, ERROR, "error", "OutOfMemoryError: m"),
        (ERROR, ERROR, None, ""),
        (ERROR, BLIND, "new", "before: error"),
        (ERROR, PASS, "new", "before: error"),
        (ERROR, None, None, ""),
        (BLOCKED, ERROR, "error", "OutOfMemoryError: m"),
        # What is not current says nothing of today, whatever it says.
        (PASS, OLD_PASS, "stale", "recipe has changed since 2026"),
        (PASS, OLD_FAIL, "stale", "recipe has changed since 2026"),
        (None, OLD_FAIL, "stale", "recipe has changed since 2026"),
        (OLD_FAIL, OLD_FAIL, None, ""),
        (OLD_PASS, BLIND, "regressed", "blind: why"),
        (OLD_FAIL, PASS, "improved", ""),
        # Two executions are compared, however old both are.
        (OLD_PASS, OLD_FAIL, "regressed", ""),
    ],
)
def test_how_a_stage_differs(
    before: Outcome | None, after: Outcome | None, kind: str | None, note: str
) -> None:
    found = compare({KEY: before} if before else {}, {KEY: after} if after else {})
    assert [change.kind for change in found.changes] == ([kind] if kind else [])
    assert [change.note for change in found.changes] == ([note] if kind else [])
    assert found.unchanged == (1 if kind is None and before and after else 0)


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        (PASS, BLIND, "changed"),
        (BLIND, PASS, "changed"),
        (PASS, WRONG, "regressed"),
        (BLIND, WRONG, "regressed"),
    ],
)
def test_what_is_expected_to_be_flaky_is_no_regression(before: Outcome, after: Outcome, kind: str) -> None:
    found = compare({KEY: before}, {KEY: after}, lambda key: {"blind"} if key == KEY else set())
    wanted = "changed" if before == BLIND and after == WRONG else kind
    assert [change.kind for change in found.changes] == [wanted]


outcomes = st.builds(
    Outcome,
    status=st.sampled_from(get_args(Ended)),
    findings=st.lists(st.sampled_from(["a", "b"]), unique=True).map(tuple),
    stale=st.sampled_from(["", "why"]),
)
keys = st.builds(Key, st.sampled_from("xyz"), st.sampled_from(["load", "text"]), st.sampled_from(["", "GPU"]))
runs = st.dictionaries(keys, outcomes)


@given(before=runs, after=runs)
def test_every_stage_is_told_once_and_only_a_failure_regresses(before: Any, after: Any) -> None:
    found = compare(before, after)
    told = [change.key for change in found.changes]
    assert len(told) == len(set(told))
    assert len(before.keys() & after.keys()) == found.unchanged + len(
        set(told) & before.keys() & after.keys()
    )
    for change in found.changes:
        assert (before.get(change.key), after.get(change.key)) == (change.before, change.after)
        if change.kind == "regressed":
            assert change.before
            assert change.after
            assert (change.before.status, change.after.status) == ("pass", "fail")
    assert not compare(after, after).changes
    assert sum(found.counts.values()) == len(told)
    assert [KINDS.index(change.kind) for change in found.changes] == sorted(
        KINDS.index(change.kind) for change in found.changes
    )


def _run(name: str, outcomes: dict[Key, Outcome], note: str = "") -> Run:
    return Run(name=name, outcomes=outcomes, note=note)


def test_every_form_tells_the_same_and_escapes_what_it_does_not_trust() -> None:
    hostile = Outcome(
        status="fail", findings=("blind",), because="[red]<img src=x>@all `x` | *\x1b[31m",
        repeat="nox -s matrix -- --again --only 'x'",
    )  # fmt: skip
    old, new = _run("A", {KEY: PASS}), _run("B", {KEY: hostile}, "B: a note")
    found = compare(old.outcomes, new.outcomes)
    stream = StringIO()
    print_difference(Console(file=stream, width=40), old, new, found)
    shown = stream.getvalue()
    assert "\x1b" not in shown
    assert "[red]<img" in shown
    markdown = to_markdown(old, new, found)
    assert "<img" not in markdown
    assert "@all" not in markdown
    for text in (shown, markdown):
        assert "regressed" in text.lower()
        assert KEY.subject in text
        assert "nox -s matrix -- --again --only 'x'" in text
        assert "B: a note" in text
    read = json.loads(to_json(old, new, found))
    assert read["counts"] == dict.fromkeys(KINDS, 0) | {"regressed": 1}
    assert read["changes"][0]["after"]["because"] == hostile.because
    assert read["changes"][0]["accelerator"] == "NVIDIA H200"


def test_ten_thousand_cells_take_seconds_and_are_cut_for_a_reader() -> None:
    before = {Key(f"r/q/m/{number}", "image"): PASS for number in range(10_000)}
    after = {key: BLIND if index % 2 else PASS for index, key in enumerate(before)}
    clock = time.monotonic()
    found = compare(before, after)
    old, new = _run("A", before), _run("B", after)
    texts = [to_markdown(old, new, found), to_json(old, new, found)]
    stream = StringIO()
    print_difference(Console(file=stream, width=200), old, new, found)
    assert time.monotonic() - clock < 5.0
    assert len(json.loads(texts[1])["changes"]) == 5_000
    assert f"{5_000 - MOST} more" in texts[0]
    assert f"{5_000 - MOST} more" in stream.getvalue()
