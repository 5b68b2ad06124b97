"""Editing ``expectations`` in the text of matrix.yaml: what does not change keeps every byte. Pure.

Comments stay where they are, also above an expectation that is removed: a person has to judge what they say.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import yaml

from qvlfp8.cells import Expectation, Globs, Stage, globs
from qvlfp8.expect_update import Amendment
from qvlfp8.yamlfile import Document, Location

LIST = "expectations"


@dataclass(frozen=True, order=True)
class _Edit:
    """Put ``text`` in place of what stands between two places, in characters."""

    start: int
    end: int
    text: str


def edited(document: Document, old: tuple[Expectation, ...], amendment: Amendment) -> str:
    """The text with the amendment.

    Args:
        old: the expectations as the document has them.

    Raises:
        FileFormatError: the list is not written as one entry a line or more, so that none can be cut out.
    """
    text = document.text
    newline = "\r\n" if "\r\n" in text else "\n"
    edits: list[_Edit] = []
    indent = "  "
    for index in range(len(old)):
        start, end = _lines(document, index)
        indent = _indent(document, index, start)
        if index in amendment.removed:
            edits.append(_Edit(start, end, ""))
        elif index in amendment.narrowed:
            edits += _narrowing(document, index, old[index], amendment.narrowed[index], newline)
        beside = amendment.split.get(index, ())
        last = amendment.added if index == len(old) - 1 else ()
        if more := _entries((*beside, *last), indent, newline):
            # The last line of a file need not end with a line break.
            broken = "" if text[:end].endswith("\n") else newline
            edits.append(_Edit(end, end, broken + more))
    if not old and amendment.added:
        edits.append(_first(document, _entries(amendment.added, indent, newline), newline))
    elif len(old) == len(amendment.removed) and not (amendment.split or amendment.added):
        where = document.behind_key((LIST,))
        edits.append(_Edit(where, where, " []"))
    for edit in sorted(edits, reverse=True):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text


def _first(document: Document, added: str, newline: str) -> _Edit:
    """Where there is no expectation yet: in place of ``[]``, or at the end of the file."""
    try:
        start, end = document.span((LIST,))
    except KeyError:
        text = document.text
        before = "" if text.endswith("\n") else newline
        return _Edit(len(text), len(text), f"{before}{LIST}:{newline}{added}")
    # Blanks before it would be left at the end of their line.
    start = len(document.text[:start].rstrip(" \t"))
    return _Edit(start, end, newline + added.removesuffix(newline))


def _lines(document: Document, index: int) -> tuple[int, int]:
    """Where the lines of an entry start and end, comments behind it on its last line included."""
    start, end = document.span((LIST, index))
    text = document.text
    first = text.rfind("\n", 0, start) + 1
    if text[first:start].strip() != "-":
        raise document.error(
            (LIST, index), "stands on a line with others", mend="write one expectation a line"
        )
    after = text.find("\n", end)
    return first, len(text) if after < 0 else after + 1


def _indent(document: Document, index: int, start: int) -> str:
    line = document.text[start : document.span((LIST, index))[0]]
    return line[: line.index("-")]


def _narrowing(
    document: Document, index: int, old: Expectation, new: Expectation, newline: str
) -> Iterable[_Edit]:
    where: Location = (LIST, index)
    try:
        shows, cells = document.span((*where, "shows")), document.span((*where, "cells"))
    except KeyError as error:
        raise document.error(
            where, f"does not have {error.args[0][-1]} itself", mend="write it out, without a merge key"
        ) from None
    if new.shows != old.shows:
        start, end = shows
        yield _Edit(start, end, _mapping(new.shows))
    if globs(new.without) == globs(old.without):
        return
    patterns = _patterns(new.without)
    if globs(old.without):
        start, end = document.span((*where, "without"))
        yield _Edit(start, end, patterns)
        return
    _, end = cells
    start, _ = document.span(where)
    if document.text[start] == "{":
        yield _Edit(end, end, f", without: {patterns}")
        return
    first = document.text.rfind("\n", 0, start) + 1
    yield _Edit(end, end, f"{newline}{' ' * (start - first)}without: {patterns}")


def _entries(expectations: Iterable[Expectation], indent: str, newline: str) -> str:
    return "".join(_entry(expectation, indent, newline) for expectation in expectations)


def _entry(expectation: Expectation, indent: str, newline: str) -> str:
    fields = {
        "cells": _patterns(expectation.cells),
        "shows": _mapping(expectation.shows),
        "reason": _scalar(expectation.reason),
    }
    if expectation.link:
        fields["link"] = _scalar(expectation.link)
    if expectation.flaky:
        fields["flaky"] = "true"
    lines = [f"{name}: {value}" for name, value in fields.items()]
    return f"{indent}- " + f"{newline}{indent}  ".join(lines) + newline


def _patterns(patterns: Globs) -> str:
    quoted = [json.dumps(pattern) for pattern in globs(patterns)]
    return quoted[0] if len(quoted) == 1 else f"[{', '.join(quoted)}]"


def _mapping(shows: Mapping[Stage, str]) -> str:
    return "{" + ", ".join(f"{stage}: {finding}" for stage, finding in shows.items()) + "}"


def _scalar(text: str) -> str:
    """Plain where YAML reads it back as it is, else in quotes."""
    try:
        plain = yaml.safe_load(f"x: {text}\n") == {"x": text}
    except yaml.YAMLError:
        plain = False
    return text if plain else json.dumps(text, ensure_ascii=False)
