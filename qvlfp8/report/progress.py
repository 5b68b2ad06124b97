"""Progress that one can watch: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as Bars

from qvlfp8.plan import Step
from qvlfp8.results import Record
from qvlfp8.run import Progress

MARKS = {"pass": "✓", "fail": "✗", "error": "!"}
STYLES = {"pass": "green", "fail": "red", "error": "yellow"}


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
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._overall: TaskID | None = None
        self._tasks: dict[str, TaskID] = {}

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

    def step(self, record: Record) -> None:
        """A step has been executed and kept."""
        self._advance()
        because = f"  {record.because()}" if record.status != "pass" else ""
        self._print(
            f"{MARKS[record.status]} {record.stage} {record.subject}  {record.seconds:.1f} s{because}",
            style=STYLES[record.status],
        )

    def skip(self, step: Step, because: str) -> None:
        """A step cannot be executed in this run."""
        self._advance()
        self._print(f"- {step.stage} {step.subject}  blocked: {because}", style="yellow")

    def _advance(self) -> None:
        with self._guard:
            self._done += 1
            if self._overall is not None:
                self._bars.advance(self._overall)

    def _print(self, text: str, style: str | None = None) -> None:
        if not self._verbose and len(text) > 240:
            text = text[:239] + "…"
        elapsed = time.monotonic() - self._started
        count = f"{self._done}/{self._total}" if self._total else ""
        prefix = "" if self._console.is_terminal else f"[{elapsed:6.1f} s {count:>7}] "
        self._console.print(prefix + text, style=style, markup=False, highlight=False, soft_wrap=True)
