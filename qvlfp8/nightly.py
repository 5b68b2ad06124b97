"""The issue that a regression opens: title and body from what `qvlfp8 diff --json` printed. Pure.

What a record says of a fault is untrusted, and people trust an issue: such text stands in code, which
mentions nobody, links nothing and cannot end early.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from qvlfp8.errors import UsageError
from qvlfp8.untrusted import harmless

MOST_TITLE = 120
MOST_BODY = 60_000
"""Characters; GitHub takes 256 and 65,536."""

_MOST_BECAUSE = 600

_ADDRESS = re.compile(r"https?://[A-Za-z0-9.:-]{1,200}(?:/[A-Za-z0-9._~/%+=&?#:,-]{0,1000})?")
"""Without what ends a link of Markdown, or begins something else in it."""


class _Printed(BaseModel):
    """Part of what `qvlfp8 diff --json` prints; it may print more than is read here."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Outcome(_Printed):
    """What one of the two runs says of a stage."""

    status: str
    findings: tuple[str, ...] = ()
    because: str = ""

    def __str__(self) -> str:
        return f"{self.status} ({', '.join(self.findings)})" if self.findings else self.status


class Change(_Printed):
    """A stage that differs: of a checkpoint or a cell, and the GPU if it was run on one."""

    kind: str
    subject: str
    stage: str
    accelerator: str | None = None
    before: Outcome | None = None
    after: Outcome | None = None
    repeat: str | None = None
    """The command that executes it again."""


class Diff(_Printed):
    """Two runs held against each other."""

    version: Literal[1]
    counts: dict[str, int]
    changes: tuple[Change, ...]


@dataclass(frozen=True, kw_only=True)
class Issue:
    """Plain text and Markdown."""

    title: str
    body: str


def read_diff(text: str | bytes) -> Diff:
    """Parse the output of `qvlfp8 diff --json`.

    Raises:
        UsageError: it is something else.
    """
    try:
        return Diff.model_validate_json(text)
    except ValidationError as error:
        first = str(error).splitlines()[0]
        raise UsageError(
            f"not a diff: {first}", mend="give it what `qvlfp8 diff A B --json` printed"
        ) from None


def compose(diff: Diff, *, run: str) -> Issue:
    """The issue for the regressions of a diff.

    Args:
        run: address of the run that found them.

    Raises:
        UsageError: nothing regressed, or ``run`` is no address.
    """
    if not _ADDRESS.fullmatch(run):
        raise UsageError(
            f"--run {run!r}: not the address of a web page",
            mend="name it as https://HOST/PATH, without spaces",
        )
    worse = [change for change in diff.changes if change.kind == "regressed"]
    if not worse:
        raise UsageError("nothing regressed, so there is no issue", mend="ask only after `diff` ended with 1")
    subjects = list(dict.fromkeys(change.subject for change in worse))
    stages = ", ".join(dict.fromkeys(change.stage for change in worse))
    first = subjects[0] if len(subjects) == 1 else f"{len(subjects)} cells or checkpoints"
    others = [f"{number} {kind}" for kind, number in diff.counts.items() if number and kind != "regressed"]
    head = [
        f"[The nightly run]({run}) holds what it found against what was published: {len(worse)} regressed."
    ]
    if others:
        head.append(f"Besides: {_code(', '.join(others))}.")
    title = " ".join(harmless(f"Nightly run: {first} got worse ({stages})").split())
    return Issue(title=title[:MOST_TITLE], body=_within(head, [_told(change) for change in worse]))


def _told(change: Change) -> str:
    where = f" on {_code(change.accelerator)}" if change.accelerator else ""
    was, now = (_code(str(told)) if told else "not executed" for told in (change.before, change.after))
    lines = [f"- {_code(change.subject)}, {_code(change.stage)}{where}: {was} before, now {now}"]
    if change.after and change.after.because:
        lines += _block(change.after.because[:_MOST_BECAUSE])
    if change.repeat:
        lines += ["", "  Repeat it:", *_block(change.repeat)]
    return "\n".join(lines)


def _within(head: Sequence[str], told: Sequence[str]) -> str:
    """As many changes as fit, and how many more there are."""
    body = "\n\n".join(head)
    for index, text in enumerate(told):
        if len(body) + len(text) > MOST_BODY:
            return f"{body}\n\nand {len(told) - index} more, in the run's artifact.\n"
        body += f"\n\n{text}"
    return f"{body}\n"


def _code(text: str) -> str:
    """One line of code, whatever it holds."""
    line = " ".join(harmless(text).split())[:200]
    fence = "`" * (_longest(line) + 1)
    return f"{fence} {line} {fence}" if "`" in line else f"`{line or ' '}`"


def _block(text: str) -> list[str]:
    """A block of code inside a list item."""
    fence = "`" * max(3, _longest(text) + 1)
    return ["", *(f"  {line}" for line in (f"{fence}text", *harmless(text).splitlines(), fence))]


def _longest(text: str) -> int:
    return max((len(run) for run in re.findall(r"`+", text)), default=0)
