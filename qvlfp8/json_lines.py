"""A JSON object with long lists in it, an entry of them a line.

Lines can be searched and compared, as indented text can; but what is indented, json writes in Python, which
takes far longer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

__all__ = ["Listed", "Named", "json_lines", "json_stream"]


@dataclass(frozen=True, slots=True)
class Listed:
    """A list, an entry a line."""

    entries: Iterable[object]


@dataclass(frozen=True, slots=True)
class Named:
    """An object, a member a line."""

    members: Iterable[tuple[str, object]]


def json_lines(head: Mapping[str, object], name: str, entries: Iterable[object]) -> str:
    """The object as text: the members of ``head``, then the list ``name``."""
    return "".join(json_stream({**head, name: Listed(entries)}))


def json_stream(members: Mapping[str, object]) -> Iterator[str]:
    """The object's text in pieces, none of them longer than a line: the whole need never be in memory."""
    before = "{\n"
    for name, value in members.items():
        yield f"{before} {_text(name)}: "
        match value:
            case Listed(entries):
                yield from _block("[", (_text(entry) for entry in entries), "]")
            case Named(inner):
                yield from _block("{", (f"{_text(key)}: {_text(entry)}" for key, entry in inner), "}")
            case _:
                yield _text(value)
        before = ",\n"
    yield "\n}\n"


def _block(opening: str, lines: Iterator[str], closing: str) -> Iterator[str]:
    yield opening
    before = "\n  "
    for line in lines:
        yield before + line
        before = ",\n  "
    yield f"\n {closing}"


_text = json.JSONEncoder(ensure_ascii=False).encode
