"""What vLLM says in its log that matters for a checkpoint: scales not set, kernels fallen back to."""

from __future__ import annotations

import contextlib
import logging
import re
from types import TracebackType
from typing import Any

PATTERNS = (
    r"scaling factor",
    r"[qkv]_scale|prob_scale",
    r"fall(s|ing)? ?back|fallback",
    r"Selected \S*Kernel",
    r"\b(Using|using) .*([bB]ackend|BACKEND)",
    r"(not|never) (loaded|initialized) from",
    r"[Mm]odel loading took",
    r"accuracy",
    r"[Qq]uantiz.*(not |unsupported|ignor)",
)
"""Of the lines of vLLM's loggers, those that are kept."""

MOST_LINES = 20

_MATTERS = re.compile("|".join(PATTERNS))

_PREFIX = re.compile(r"^(\(.*? pid=\d+\) )?(INFO|WARNING|ERROR) \S+ \S+ \[\S+\] ")
"""What vLLM's log handler writes before a message."""

_LAYER = re.compile(r"\.\d+\.")
"""Where a line names a layer: what is said of each layer is kept once."""


class LogMarks:
    """While it is entered, keeps the lines that matter, each once and in order, at most :data:`MOST_LINES`.

    It looks at records as they are made: vLLM sets its handlers anew whenever an engine starts.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._make = logging.getLogRecordFactory()

    def look(self, text: str) -> None:
        """Keep what matters of a text."""
        for line in text.splitlines():
            kept = _LAYER.sub(".*.", _PREFIX.sub("", line.strip())[:300])
            if _MATTERS.search(kept) and kept not in self.lines and len(self.lines) < MOST_LINES:
                self.lines.append(kept)

    def _record(self, *arguments: Any, **named: Any) -> logging.LogRecord:
        record = self._make(*arguments, **named)
        if record.name.partition(".")[0] == "vllm" and record.levelno >= logging.INFO:
            # A message that does not fit its arguments must not end a run.
            with contextlib.suppress(TypeError, ValueError, KeyError):
                self.look(record.getMessage())
        return record

    def __enter__(self) -> LogMarks:
        logging.setLogRecordFactory(self._record)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        logging.setLogRecordFactory(self._make)
