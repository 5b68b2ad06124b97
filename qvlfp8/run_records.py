"""Reading committed records of runs: what most of them have in common is parsed, checked and kept once.

A run's answers are most of its record, and most models answer all questions alike.
"""

from __future__ import annotations

import uuid
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from qvlfp8.results import Record, record_of
from qvlfp8.run_measured import fault_of

__all__ = ["Reader", "Whole"]

Whole = tuple[Record, str | None]
"""A file's record, and what of its measurements is not as it has to be."""

_ELSEWHERE = uuid.uuid4().hex.encode()
"""Stands for answers that are known: no file can have been written to hold it."""


class Reader:
    """Makes records of files' bytes."""

    def __init__(self) -> None:
        self._known: dict[bytes, list[dict[str, Any]]] = {}
        """Lists of answers that are whole, by the text of them in a file."""

    def __call__(self, content: bytes) -> Whole:
        """A record, and what is wrong with its measurements.

        Raises:
            ValidationError: it is no record.
        """
        place = _answers_in(content)
        text = content[place]
        answers = self._known.get(text)
        if answers is not None and (known := _without(place, content)) is not None:
            known.measured["answers"] = answers
            return known, _fault_of(known, but_answers=True)
        record = record_of(content)
        fault = _fault_of(record)
        if _is_judged(record) and fault is None and _is(text, record.measured.get("answers")):
            self._known[text] = record.measured["answers"]
        return record, fault


def _is_judged(record: Record) -> bool:
    """Whether verdicts follow from what it measured."""
    return record.stage == "generate" and record.status == "pass"


def _fault_of(record: Record, *, but_answers: bool = False) -> str | None:
    return fault_of(record.measured, but_answers=but_answers) if _is_judged(record) else None


def _without(place: slice, content: bytes) -> Record | None:
    """A record whose answers, which stand there, were not parsed; None if these are not what it is."""
    try:
        record = record_of(b'%b["%b"]%b' % (content[: place.start], _ELSEWHERE, content[place.stop :]))
    except ValidationError:
        # Which would name other lines than the file's.
        return None
    return record if record.measured.get("answers") == [_ELSEWHERE.decode()] else None


def _is(text: bytes, answers: list[dict[str, Any]] | None) -> bool:
    try:
        return bool(text) and from_json(text) == answers
    except ValueError:
        return False


def _answers_in(content: bytes) -> slice:
    """Where a list of answers stands if :meth:`qvlfp8.evidence.Evidence.add` put it there; or nothing.

    Within texts of JSON no line ends, so what is found is no part of one; whether it is the whole list is
    seen when it is parsed.
    """
    start = content.find(_BEFORE)
    end = content.find(_AFTER, start + len(_BEFORE))
    if -1 in {start, end}:
        return slice(0, 0)
    return slice(start + len(_BEFORE) - len(b"[\n"), end + len(_AFTER))


_BEFORE, _AFTER = b'\n  "answers": [\n', b"\n  ]"
