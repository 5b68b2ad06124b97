"""``qvlfp8 explain``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from qvlfp8 import checkpoint, explained, remote
from qvlfp8.describe import Described, look
from qvlfp8.explain import Explanation
from qvlfp8.explained import NOT, WORKS
from qvlfp8.report.explanation import sections
from qvlfp8.untrusted import harmless

_COLOURS: Mapping[str, str] = {
    "works": "green", "blind": "red", "fails": "red", "unknown": "yellow", "fault": "red", "command": "green",
}  # fmt: skip


def run_explain(source: str, *, vllm: str | None, other: str | None, as_json: bool) -> int:
    """Explain a checkpoint, or how it differs from another; returns the exit code.

    Raises:
        QvlError: by class.
    """
    if other is not None:
        return _compare(source, other, as_json=as_json)
    with _opened(source) as (described, values):
        found = explained.ask(described, source=source, vllm=vllm, values=values)
    if as_json:
        print(json.dumps(explained.as_json(found), indent=1))
    else:
        _show(found, source)
    if (refused := explained.refusal(found, source)) is not None:
        raise refused
    return WORKS if found.works else NOT


@contextmanager
def _opened(source: str) -> Iterator[tuple[Described, bool]]:
    """A folder of this machine or a checkpoint of the hub; and whether values of tensors can be read."""
    try:
        if (wanted := remote.parse_id(source)) is not None:
            with remote.opened(wanted) as found:
                yield look(found.checkpoint, found.files), found.cached
        else:
            yield explained.of_folder(Path(source)), True
    except checkpoint.NotACheckpoint as error:
        raise explained.not_a_checkpoint(error) from None


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
    for section in sections(found):
        if section.title is not None:
            say(section.title, style="bold")
        for line in section.lines:
            say(f"  {line.text}", style=_COLOURS.get(line.kind))


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
