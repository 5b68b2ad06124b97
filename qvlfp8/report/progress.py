"""Progress that one can watch: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import datetime
import threading
import time
from collections import Counter
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from qvlfp8.plan import Step
from qvlfp8.progress import Progress
from qvlfp8.redaction import redact
from qvlfp8.results import Record

MARKS = {"pass": "✓", "fail": "✗", "error": "!"}
STYLES = {"pass": "green", "fail": "red", "error": "yellow"}


LINE_EVERY_S = 10.0
"""How often a line says how far a task is, where there is no bar."""


class _TimeLeft(TimeRemainingColumn):
    """Time left of what counts itself; the steps of a plan take too different times to say."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.fields.get("counted") else Text()


@dataclass(kw_only=True)
class _Counted:
    """What a task is at, since when, and when a line last said how far it is."""

    what: str
    since: float
    told: float


class ConsoleProgress(Progress):
    """Progress on a rich console. ``announce`` shows a command before it runs."""

    def __init__(self, console: Console, *, verbose: bool = False) -> None:
        self._console = console
        self._verbose = verbose
        self._guard = threading.Lock()
        self._started = time.monotonic()
        self._total = 0
        self._done = 0
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            _TimeLeft(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._overall: TaskID | None = None
        self._tasks: dict[str, TaskID] = {}
        self._counted: dict[str, _Counted] = {}
        self._blocked: Counter[str] = Counter()

    def __enter__(self) -> ConsoleProgress:
        self._bars.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._bars.stop()
        for because, steps in self._blocked.items():
            if steps > 1 and not self._verbose:
                more = "1 more step" if steps == 2 else f"{steps - 1} more steps"
                self._print(f"- {more}  blocked: {because}", style="yellow")

    def announce(self, command: str) -> None:
        """Show an external command, as it could be typed."""
        self._print(f"$ {command}", style="dim")

    def begin(self, total: int) -> None:
        """The number of steps to come."""
        self._total = total
        if total:
            self._overall = self._bars.add_task("steps", total=total)
            self._print(f"{total} steps to do")

    def task(self, name: str, *, running: bool) -> None:
        """A build or batch has started or ended."""
        with self._guard:
            if running:
                self._tasks[name] = self._bars.add_task(name, total=None)
            elif (bar := self._tasks.pop(name, None)) is not None:
                self._bars.remove_task(bar)
        if running:
            self._print(f"… {name}")

    def amount(self, name: str, what: str, *, done: int, total: int) -> None:
        """A running task has done so much: its bar moves, or now and then a line says so."""
        now = time.monotonic()
        with self._guard:
            counted = self._counted.get(name)
            if counted is None or counted.what != what:
                counted = self._counted[name] = _Counted(what=what, since=now, told=now)
                if (bar := self._tasks.get(name)) is not None:
                    self._bars.reset(bar, total=total, description=f"{name}: {what}", counted=True)
            if (bar := self._tasks.get(name)) is not None:
                self._bars.update(bar, completed=done)
            told = now - counted.told >= LINE_EVERY_S or (done == total and counted.told > counted.since)
            if told:
                counted.told = now
        if told and not self._console.is_terminal:
            left = (now - counted.since) / done * (total - done) if done else 0.0
            self._print(f"… {name}: {what} {done}/{total}, {datetime.timedelta(seconds=round(left))} left")

    def step(self, record: Record) -> None:
        """A step has been executed and kept."""
        self._advance()
        because = f"  {record.because()}" if record.status != "pass" else ""
        self._print(
            f"{MARKS[record.status]} {record.stage} {record.subject}  {record.seconds:.1f} s{because}",
            style=STYLES[record.status],
        )

    def skip(self, step: Step, because: str) -> None:
        """A step cannot be executed in this run; of those that are blocked alike the first is named."""
        self._advance()
        with self._guard:
            self._blocked[because] += 1
            first = self._blocked[because] == 1
        if first or self._verbose:
            self._print(f"- {step.stage} {step.subject}  blocked: {because}", style="yellow")

    def retry(self, record: Record, *, attempt: int, of: int, delay_s: float) -> None:
        """A step ended in an error, and is tried again."""
        said = f"! {record.stage} {record.subject}  {record.because()}"
        self._print(f"{said}; attempt {attempt} of {of} in {delay_s:g} s", style="yellow")

    def _advance(self) -> None:
        with self._guard:
            self._done += 1
            if self._overall is not None:
                self._bars.advance(self._overall)

    def _print(self, text: str, style: str | None = None) -> None:
        text = redact(text)
        if not self._verbose and len(text) > 240:
            text = text[:239] + "…"
        elapsed = time.monotonic() - self._started
        count = f"{self._done}/{self._total}" if self._total else ""
        prefix = "" if self._console.is_terminal else f"[{elapsed:6.1f} s {count:>7}] "
        self._console.print(prefix + text, style=style, markup=False, highlight=False, soft_wrap=True)
