"""A bound on how deep JSON may nest, for a Python that dies of what others refuse.

CPython's scanner of JSON is recursive, and counts on itself to raise RecursionError in time. Compiled to
WebAssembly it runs out of the browser's stack before that, which ends the whole interpreter. So where it runs
so, text is measured before it is scanned.
"""

from __future__ import annotations

import json.scanner
import re
from collections.abc import Callable
from typing import Any

__all__ = ["DEEPEST", "bound", "depth"]

DEEPEST = 950
"""Levels that are still scanned: as many as CPython 3.11 takes on Linux, to ten or so. Pyodide 0.29.5 in
Chromium dies between 2,500 and 4,000."""

_STRING = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\Z)', re.DOTALL)
_BRACKET = re.compile(r"[][{}]")

_Scan = Callable[[str, int], tuple[Any, int]]


def depth(text: str) -> int:
    """Count how many brackets are open at once, those inside strings left out."""
    open_now = deepest = 0
    for found in _BRACKET.finditer(_STRING.sub("", text)):
        open_now += 1 if found[0] in "[{" else -1
        deepest = max(deepest, open_now)
    return deepest


def bound() -> None:
    """Have every reader of JSON in this process raise RecursionError beyond :data:`DEEPEST` levels."""
    make: Callable[[Any], _Scan] = json.scanner.make_scanner

    def make_bounded(context: Any) -> _Scan:
        scan = make(context)

        def bounded(text: str, start: int) -> tuple[Any, int]:
            if text.count("[") + text.count("{") > DEEPEST and depth(text) > DEEPEST:
                raise RecursionError("nested too deeply")
            return scan(text, start)

        return bounded

    json.scanner.make_scanner = make_bounded  # type: ignore[attr-defined,unused-ignore]
