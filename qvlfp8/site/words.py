"""A row of marks in words: ``sees in 0.13.0 to 0.22.1 and 0.26.0; blind in 0.10.2 to 0.12.0``. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qvlfp8.cells import Stage
from qvlfp8.site.outcome import OUTCOMES, WORDS, Outcome

__all__ = ["Ended", "Span", "as_text", "spans", "versions_in_words"]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How one cell of a row ended: its column, its outcome, and the stage at which it failed."""

    version: str
    outcome: Outcome
    at: Stage | None = None


@dataclass(frozen=True, kw_only=True)
class Span:
    """One outcome of a row and where: ``word`` with the stage of a failure, ``versions`` in words."""

    outcome: Outcome
    word: str
    versions: str


def spans(cells: Sequence[Ended]) -> tuple[Span, ...]:
    """The outcomes of a row's cells, which come in the order of their versions."""
    order = [cell.version for cell in cells]
    groups: dict[tuple[int, str, Outcome], list[str]] = {}
    for cell in cells:
        word = WORDS[cell.outcome] + (f" at {cell.at}" if cell.at and cell.outcome == "fails" else "")
        groups.setdefault((OUTCOMES.index(cell.outcome), word, cell.outcome), []).append(cell.version)
    return tuple(
        Span(outcome=outcome, word=word, versions=versions_in_words(found, order))
        for (_, word, outcome), found in sorted(groups.items(), key=lambda item: item[0][:1])
    )


def versions_in_words(found: Iterable[str], order: Sequence[str]) -> str:
    """``0.10.2 to 0.12.0 and 0.26.0``: those that stand side by side in ``order`` are one range."""
    runs: list[list[str]] = []
    last = -2
    for place in sorted(order.index(version) for version in found):
        if place == last + 1:
            runs[-1].append(order[place])
        else:
            runs.append([order[place]])
        last = place
    # Two neighbours are not worth a range.
    texts = [text for run in runs for text in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else run)]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def as_text(row: Iterable[Span]) -> str:
    """The row as one sentence without a full stop."""
    return "; ".join(f"{span.word} in {span.versions}" for span in row)
