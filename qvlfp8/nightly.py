"""The issue that a regression opens: title and body from what `qvlfp8 diff --json` printed. Pure.

What a record says of a fault is untrusted, and people trust an issue: such text stands in code, which
mentions nobody, links nothing and cannot end early.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError

from qvlfp8.errors import UsageError
from qvlfp8.untrusted import harmless

MOST_TITLE = 120
MOST_BODY = 60_000
"""Characters; GitHub takes 256 and 65,536."""

_MOST_BECAUSE = 600


class Change(BaseModel):
    """A stage of a cell that ended otherwise than before: statuses, and why it is so now."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    cell: str
    stage: str
    before: str
    after: str
    because: str = ""
    repeat: str = ""


class Diff(BaseModel):
    """What of the output of `qvlfp8 diff --json` the issue speaks of."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    regressed: tuple[Change, ...] = ()
    improved: tuple[Change, ...] = ()


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
        UsageError: nothing regressed.
    """
    if not diff.regressed:
        raise UsageError("nothing regressed, so there is no issue", mend="ask only after `diff` ended with 1")
    cells = list(dict.fromkeys(change.cell for change in diff.regressed))
    stages = list(dict.fromkeys(change.stage for change in diff.regressed))
    servers = list(dict.fromkeys(cell.rpartition("/")[2] for cell in cells))
    where = servers[0] if len(servers) == 1 else f"{len(servers)} environments"
    title = harmless(f"Nightly run: {_number(cells, 'cell')} got worse in {where} ({', '.join(stages)})")
    worse = f"{_number(diff.regressed, 'stage')} of {_number(cells, 'cell')}"
    head = [f"[The nightly run]({run}) found {worse} worse than what was published before."]
    if diff.improved:
        head.append(f"{_number(diff.improved, 'stage')} improved.")
    return Issue(title=title[:MOST_TITLE], body=_within(head, [_told(change) for change in diff.regressed]))


def _told(change: Change) -> str:
    what = f"{_code(change.cell)}, {_code(change.stage)}"
    lines = [f"- {what}: {_code(change.before)} before, now {_code(change.after)}"]
    if change.because:
        lines += _block(change.because[:_MOST_BECAUSE])
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


def _number(items: Sequence[object], name: str) -> str:
    return f"{len(items)} {name}{'' if len(items) == 1 else 's'}"


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
