"""The exception at the root of a log: which line began what the others followed from. Pure.

A log is untrusted: it is cleaned of what a terminal would obey, and of a line only so much is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["LONGEST_LINE", "clean", "is_passed_on", "root", "without_prefix"]

LONGEST_LINE = 20_000
"""What is looked at of one line."""

_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]{0,64}[ -/]{0,8}[@-~]|\][^\x07\x1b\n]{0,2000}(?:\x07|\x1b\\)|[@-Z\\^_])?"
)
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)

_PREFIX = re.compile(
    r"^(?:[\w.-]{1,60} {1,20}\| )?"  # docker compose
    r"(?:\([^()]{0,80}\) )?"  # the process
    r"(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \S{1,20} \S{1,20} \[[^\]]{0,80}\] ?)?"
)
"""What stands before a message of vLLM's."""

_EXCEPTION = re.compile(r"(?:\w{1,60}\.){0,8}[A-Z]\w{0,60}(?:Error|Exception|Exit|Interrupt|Failed)(?::|$)")
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
_PASSED_ON = re.compile(
    r"[Ss]ee (?:root cause|stack trace) (?:above|\(above\))|[Ee]ngine ?[Cc]ore (?:proc )?\S{0,20} ?died"
    r"|SystemExit|(?:process of its own ended|worker left) with exit code"
)
"""What one process says when another has failed."""


def clean(text: str) -> list[str]:
    """The lines of a log without escape sequences, control characters and marks that reorder text."""
    plain = _CONTROL.sub("", _ESCAPES.sub("", text).replace("\t", "    "))
    return [line[:LONGEST_LINE] for line in plain.split("\n")]


def without_prefix(lines: Sequence[str]) -> list[str]:
    """The lines without what vLLM's log handler, and docker compose, write before each."""
    return [_PREFIX.sub("", line, count=1) for line in lines]


def is_passed_on(said: str) -> bool:
    """Whether an exception (``Type: message``) only says that another process has failed."""
    return _PASSED_ON.search(said) is not None


def root(said: Sequence[str]) -> int | None:
    """The index of the exception that others followed from, of the last that there was; None without one.

    Args:
        said: lines, without prefix.
    """
    roots: list[int] = []
    chained = False
    for index, line in enumerate(said):
        if line.startswith(_CHAINED):
            chained = True
        elif _EXCEPTION.match(line):
            if not chained:
                roots.append(index)
            chained = False
    own = [index for index in roots if not is_passed_on(said[index])] or roots
    return own[-1] if own else None
