"""What differs between two runs, on a terminal, as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape

from qvlfp8.history import Change, Difference, Kind, Outcome
from qvlfp8.runs import Run
from qvlfp8.untrusted import printable

MEANING: Mapping[Kind, str] = {
    "regressed": "passed, and fails now",
    "error": "could not be executed: the machine's fault, which says nothing of the checkpoint",
    "stale": "executed with other inputs than today's, and not again since",
    "gone": "was executed, and is not any more",
    "changed": "fails as before, of another cause; or shows what is flaky",
    "improved": "failed, and passes now",
    "new": "was not executed before",
}

MOST = 100
"""Changes of one kind that are listed for a reader; an issue has 65,536 characters."""

_STYLES: Mapping[Kind, str] = {"regressed": "red", "error": "yellow", "stale": "yellow", "improved": "green"}
_REPEATED: tuple[Kind, ...] = ("regressed", "error", "stale", "gone")
"""What one wants to execute again."""


def print_difference(console: Console, before: Run, after: Run, found: Difference) -> None:
    """Print every change, and how many there are of each kind."""
    lines: list[str] = []
    for kind, number in found.counts.items():
        if number:
            style = _STYLES.get(kind, "bold")
            lines.append(f"[{style}]{kind}[/] ({number}): {MEANING[kind]}")
            lines += [escape(_line(change)) for change in _shown(found, kind)]
            lines += [f"  … and {more} more: --json lists all"] if (more := number - MOST) > 0 else []
    lines.append(escape(summary(before, after, found)))
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def _shown(found: Difference, kind: Kind) -> tuple[Change, ...]:
    return found.of(kind)[:MOST]


def _line(change: Change) -> str:
    repeat = _repeat(change)
    again = f"\n    {repeat}" if repeat else ""
    return f"  {change.key}: {_words(change)}{again}"


def _words(change: Change) -> str:
    before = change.before or "not executed"
    after = change.after or "not executed"
    note = f": {printable(change.note, most=300)}" if change.note else ""
    return f"{before} -> {after}{note}"


def _repeat(change: Change) -> str:
    told = change.after or change.before
    return told.repeat if told and change.kind in _REPEATED else ""


def summary(before: Run, after: Run, found: Difference) -> str:
    """The numbers, in one line, and what the reader has to know besides."""
    counts = ", ".join(f"{number} {kind}" for kind, number in found.counts.items() if number)
    stale = f", {found.still_stale} of them stale in both" if found.still_stale else ""
    notes = "".join(f"\n{run.note}" for run in (before, after) if run.note)
    same = f"{found.unchanged} unchanged{stale}"
    return f"{before.name} -> {after.name}: {f'{counts}; {same}' if counts else same}{notes}"


def to_markdown(before: Run, after: Run, found: Difference) -> str:
    """The changes as Markdown, such as an issue takes."""
    lines = [_text(summary(before, after, found)), ""]
    for kind, number in found.counts.items():
        if not number:
            continue
        lines += [f"## {kind.capitalize()} ({number})", "", f"{MEANING[kind].capitalize()}.", ""]
        for change in _shown(found, kind):
            lines.append(f"- {_code(str(change.key))}: {_text(_words(change))}")
            if repeat := _repeat(change):
                lines.append(f"  {_code(repeat)}")
        lines += [f"- … and {more} more"] if (more := number - MOST) > 0 else []
        lines.append("")
    return "\n".join(lines)


def _code(text: str) -> str:
    """A code span that its text cannot end."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"


def _text(text: str) -> str:
    """Text of a record: it must not become markup."""
    for mark in "\\`*_[]|~":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("<", "&lt;").replace("@", "&#64;")


def to_json(before: Run, after: Run, found: Difference) -> str:
    """The changes as JSON, one object each."""
    value = {
        "version": 1,
        "before": before.name,
        "after": after.name,
        "notes": [run.note for run in (before, after) if run.note],
        "counts": found.counts,
        "unchanged": found.unchanged,
        "still_stale": found.still_stale,
        "changes": [
            {
                "kind": change.kind,
                "subject": change.key.subject,
                "stage": change.key.stage,
                "accelerator": change.key.accelerator or None,
                "before": _outcome(change.before),
                "after": _outcome(change.after),
                "note": change.note or None,
                "repeat": _repeat(change) or None,
            }
            for change in found.changes
        ],
    }
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _outcome(told: Outcome | None) -> dict[str, Any] | None:
    if told is None:
        return None
    return {
        "status": told.status,
        "findings": list(told.findings),
        "because": told.because,
        "stale": told.stale or None,
    }
