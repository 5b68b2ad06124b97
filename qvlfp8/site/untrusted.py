"""Text that a log, a model or a record brings: made harmless before it is shown. Pure.

Templates escape what means something to HTML; here go control characters, what reorders text, what is too
long, and the place of a store on the machine that executed it, which is nobody's business.
"""

from __future__ import annotations

import re
from functools import lru_cache

from qvlfp8.untrusted import harmless

__all__ = ["excerpt", "line", "plain", "without_paths"]

_STORE = re.compile(r"(?:/[^\s/'\"<>:,()]{1,120}){1,20}/(?=(?:steps|environments|tmp)/)")
_LINE = 400
_SHOWN_LINES = 40


def without_paths(text: str) -> str:
    """Absolute paths into a store, wherever it lay, become relative to it: ``.qvlfp8/steps/…``."""
    # Most text names no such place, and the expression tries each slash of it.
    named = "/steps/" in text or "/environments/" in text or "/tmp/" in text  # noqa: S108
    return _STORE.sub(".qvlfp8/", text) if named else text


def plain(text: str, limit: int = 4000) -> str:
    """Text of several lines, harmless and of bounded length."""
    if not text:
        return text
    clean = harmless(without_paths(text[: limit + 1]))
    return clean if len(text) <= limit else f"{clean[:limit]} …"


def line(text: str, limit: int = _LINE) -> str:
    """Text as one line, harmless and of bounded length."""
    return _line(text) if len(text) <= limit else plain(" ".join(text[: 4 * limit].split()), limit)


@lru_cache(maxsize=8192)
def _line(text: str) -> str:
    """Short text as one line: versions, hardware and names stand on every page."""
    return plain(" ".join(text.split()), len(text))


def excerpt(log: str) -> str:
    """The end of a log, where it says how it ended; what a terminal would have overwritten is left out."""
    lines = [part.rsplit("\r", 1)[-1].rstrip() for part in log[-200_000:].split("\n")]
    lines = [part for part in lines if part]
    kept = [plain(part, _LINE) for part in lines[-_SHOWN_LINES:]]
    return "\n".join([*(["…"] if len(lines) > len(kept) else []), *kept])
