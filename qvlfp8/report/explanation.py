"""An explanation for people: the same lines in the terminal and on the checker's page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from qvlfp8.contract.verdict import Worth
from qvlfp8.explain import Explanation, Mend
from qvlfp8.finding_kinds import KINDS
from qvlfp8.report import description

__all__ = ["Line", "Section", "sections"]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line: ``kind`` says what it is, and so its colour; ``findings`` are the ids that it names."""

    text: str
    kind: Worth | Literal["plain", "fault", "command"] = "plain"
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Section:
    """Lines under a title; what the checkpoint is has none."""

    title: str | None
    lines: tuple[Line, ...]


def sections(found: Explanation) -> Iterator[Section]:
    """What the checkpoint is, what is wrong with it in itself, each range of versions, and the mend."""
    described = found.described.description
    yield Section(title=None, lines=tuple(Line(text=line) for line in description.lines(described)))
    if found.faults:
        yield Section(title="What is wrong with it in itself:", lines=tuple(_faults(found)))
    yield Section(title="In vLLM:", lines=tuple(_versions(found)))
    if found.mend is not None:
        yield Section(title="The smallest mend:", lines=tuple(_mend(found.mend)))
        if found.mend.instead is not None:
            lines = _command(found.mend.instead, changes=False)
            yield Section(title="Or, without a quantized KV cache:", lines=tuple(lines))


def _faults(found: Explanation) -> Iterator[Line]:
    for fault in found.faults:
        yield Line(
            text=f"{fault.finding} ({fault.count}): {fault.first}", kind="fault", findings=(fault.finding,)
        )


def _versions(found: Explanation) -> Iterator[Line]:
    for span in found.ranges:
        yield Line(text=span.sentence, kind=span.verdict.worth, findings=span.verdict.ids)
    for finding in dict.fromkeys(i for span in found.ranges for i in span.verdict.ids):
        yield Line(text=f"{finding}: {KINDS[finding].meaning}", findings=(finding,))


def _mend(mend: Mend) -> Iterator[Line]:
    if mend.served is not None:
        yield Line(text=mend.served)
    elif mend.command is None:
        yield Line(text=f"none without quantizing again: {mend.refused}")
    else:
        yield from _command(mend, changes=True)


def _command(mend: Mend, *, changes: bool) -> Iterator[Line]:
    yield Line(text=f"{mend.command}", kind="command")
    if changes:
        yield from (Line(text=f"- {change}") for change in mend.changes)
    yield Line(
        text=f"then: {'; '.join(span.sentence for span in mend.afterwards)}",
        findings=tuple(dict.fromkeys(i for span in mend.afterwards for i in span.verdict.ids)),
    )
