"""How far a step is: a bar with the time left on a terminal, lines elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from qvlfp8.plan import Step, Work
from qvlfp8.report import progress as shown
from qvlfp8.report.progress import ConsoleProgress


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(shown, "time", clock)
    return clock


def test_lines_say_now_and_then_how_much_is_done_and_the_time_left(clock: Clock) -> None:
    stream = io.StringIO()
    with ConsoleProgress(Console(file=stream, width=200)) as progress:
        progress.task("quantize x", running=True)
        for done in range(1, 101):
            progress.amount("quantize x", "calibrating", done=done, total=100)
            clock.now += 0.5
        progress.task("quantize x", running=False)
    lines = [line.split("] ")[1] for line in stream.getvalue().splitlines()]
    assert lines[0] == "… quantize x"
    assert lines[1] == "… quantize x: calibrating 21/100, 0:00:38 left"
    assert lines[-1] == "… quantize x: calibrating 100/100, 0:00:00 left"
    assert len(lines) == 6, "one for each ten seconds, and the last"


def test_what_takes_no_time_needs_no_line(clock: Clock) -> None:
    stream = io.StringIO()
    with ConsoleProgress(Console(file=stream, width=200)) as progress:
        progress.task("quantize x", running=True)
        for done in (1, 2):
            progress.amount("quantize x", "calibrating", done=done, total=2)
    assert "calibrating" not in stream.getvalue()


def test_a_terminal_shows_a_bar_and_the_time_left_of_what_is_counted() -> None:
    now = 0.0
    console = Console(file=io.StringIO(), force_terminal=True, width=120, get_time=lambda: now)
    progress = ConsoleProgress(console)
    progress.begin(3)
    progress.task("quantize x", running=True)
    for done in range(1, 6):
        now += 2.0
        progress.amount("quantize x", "calibrating", done=done, total=10)
    with console.capture() as captured:
        console.print(progress._bars.get_renderable())
    steps, counted = captured.get().splitlines()
    assert "quantize x: calibrating" in counted
    assert " 5/10" in counted
    assert "0:00:10" in counted, "the time left"
    assert "steps" in steps
    assert "-:--:--" not in steps


@pytest.mark.parametrize("verbose", [False, True])
def test_of_what_is_blocked_alike_one_is_named_and_the_others_are_counted(verbose: bool) -> None:
    stream = io.StringIO()
    work = Work(stage="inspect", environment=None, params={}, inputs={})
    with ConsoleProgress(Console(file=stream, width=200), verbose=verbose) as progress:
        for number, because in enumerate(["a has not passed", "a has not passed", "b", "a has not passed"]):
            progress.skip(Step(work=work, subject=f"s{number}", digest=""), because)
    lines = [line.split("] ")[1] for line in stream.getvalue().splitlines()]
    if verbose:
        assert len(lines) == 4
    else:
        assert lines == [
            "- inspect s0  blocked: a has not passed",
            "- inspect s2  blocked: b",
            "- 2 more steps  blocked: a has not passed",
        ]
