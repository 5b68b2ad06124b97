"""``qvlfp8 explain``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from qvlfp8 import checkpoint, remote
from qvlfp8.contract.asked import asked_for
from qvlfp8.contract.data import load_all
from qvlfp8.contract.verdict import Worth
from qvlfp8.describe import Described, look
from qvlfp8.describe import as_json as described_as_json
from qvlfp8.errors import CheckpointError, UnknownModelError
from qvlfp8.explain import Explanation, Mend, covered, explain
from qvlfp8.finding_kinds import KINDS
from qvlfp8.report import description
from qvlfp8.untrusted import harmless

WORKS, NOT = 0, 1
"""Exit codes of a checkpoint that is explained."""

_COLOURS: dict[Worth, str] = {"works": "green", "blind": "red", "fails": "red", "unknown": "yellow"}


def run_explain(source: str, *, vllm: str | None, other: str | None, as_json: bool) -> int:
    """Explain a checkpoint, or how it differs from another; returns the exit code.

    Raises:
        QvlError: by class.
    """
    if other is not None:
        return _compare(source, other, as_json=as_json)
    with _opened(source) as (described, values):
        if covered(described):
            found = explain(
                described, asked_for(load_all(), vllm, option="--vllm"), source=source, values=values
            )
        else:
            # Imported where used, as in `_compare`: most questions need neither, and each costs milliseconds.
            from qvlfp8.contract import form_data
            from qvlfp8.explain_form import explain_form

            found = explain_form(described, asked_for(form_data.load_all(), vllm, option="--vllm"))
    if as_json:
        print(json.dumps(_as_json(found), indent=1))
    else:
        _show(found, source)
    if not found.known:
        raise UnknownModelError(
            f"{source}: what vLLM makes of such a checkpoint was not recorded: {found.verdicts[0].reason}",
            mend="known are the forms that ModelOpt and llm-compressor write; this says what it is",
        )
    return WORKS if found.works else NOT


@contextmanager
def _opened(source: str) -> Iterator[tuple[Described, bool]]:
    """A folder of this machine or a checkpoint of the hub; and whether values of tensors can be read."""
    try:
        if (wanted := remote.parse_id(source)) is not None:
            with remote.opened(wanted) as found:
                yield look(found.checkpoint, found.files), found.cached
        else:
            yield look(checkpoint.read(Path(source))), True
    except checkpoint.NotACheckpoint as error:
        raise CheckpointError(f"{error.file}: {error.problem}", mend=error.mend) from None


def _compare(a: str, b: str, *, as_json: bool) -> int:
    from qvlfp8 import against

    with _opened(a) as (first, _), _opened(b) as (second, _):
        found = against.difference(first, second)
    if as_json:
        print(json.dumps(against.as_json(found), indent=1))
    else:
        say = _say()
        for line in (f"A: {a}", f"B: {b}", *against.lines(found)):
            say(line)
    return WORKS


def _show(found: Explanation, source: str) -> None:
    say = _say()
    say(source, style="bold")
    for line in description.lines(found.described.description):
        say(f"  {line}")
    if found.faults:
        say("What is wrong with it in itself:", style="bold")
        for fault in found.faults:
            say(f"  {fault.finding} ({fault.count}): {fault.first}", style="red")
    say("In vLLM:", style="bold")
    for span in found.ranges:
        say(f"  {span.sentence}", style=_COLOURS[span.verdict.worth])
    for finding in dict.fromkeys(i for span in found.ranges for i in span.verdict.ids):
        say(f"  {finding}: {KINDS[finding].meaning}")
    if found.mend is not None:
        _show_mend(found.mend, say)


class _Say(Protocol):
    def __call__(self, line: str, style: str | None = None) -> None: ...


def _say() -> _Say:
    """What prints a line; with its style where someone sees it."""
    if not sys.stdout.isatty():

        def plain(line: str, style: str | None = None) -> None:
            del style
            print(harmless(line))

        return plain
    from rich.console import Console

    console = Console(highlight=False)

    def styled(line: str, style: str | None = None) -> None:
        console.print(harmless(line), markup=False, soft_wrap=True, style=style)

    return styled


def _show_mend(mend: Mend, say: _Say) -> None:
    say("The smallest mend:", style="bold")
    if mend.served is not None:
        say(f"  {mend.served}")
        return
    if mend.command is None:
        say(f"  none without quantizing again: {mend.refused}")
        return
    say(f"  {mend.command}", style="green")
    for change in mend.changes:
        say(f"  - {change}")
    say(f"  then: {'; '.join(span.sentence for span in mend.afterwards)}")
    if mend.instead is not None:
        say("Or, without a quantized KV cache:", style="bold")
        say(f"  {mend.instead.command}", style="green")
        say(f"  then: {'; '.join(span.sentence for span in mend.instead.afterwards)}")


def _as_json(found: Explanation) -> dict[str, Any]:
    return {
        "checkpoint": described_as_json(found.described.description),
        "works": found.works,
        "versions": [
            {
                "vllm": verdict.vllm,
                "environment": verdict.environment,
                "verdict": verdict.worth,
                "findings": [asdict(finding) for finding in verdict.findings],
                "reason": verdict.reason,
            }
            for verdict in found.verdicts
        ],
        "ranges": [span.as_json for span in found.ranges],
        "faults": [asdict(fault) for fault in found.faults],
        "mend": None if found.mend is None else _mend_as_json(found.mend),
    }


def _mend_as_json(mend: Mend) -> dict[str, Any]:
    return {
        "command": mend.command,
        "changes": list(mend.changes),
        "afterwards": [span.as_json for span in mend.afterwards],
        "instead": None if mend.instead is None else _mend_as_json(mend.instead),
        "refused": mend.refused,
        "served": mend.served,
    }
