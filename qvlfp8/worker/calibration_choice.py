"""Which samples of a data set are used: drawn by seed, the unusable ones skipped and counted."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from qvlfp8.worker.calibration_pictures import UNUSABLE, Outside, Unusable, decode, read_picture
from qvlfp8.worker.calibration_tables import Asked, Sample
from qvlfp8.worker.protocol import Refused

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_SKIPPED = 0.1
"""Largest share of unusable samples among those looked at; a single one is never too many."""

_EXAMPLES = 3

T = TypeVar("T")


class Rows(Protocol):
    """A :class:`~qvlfp8.worker.calibration_tables.Table`, or what stands for one."""

    pictures: Path | None

    def __len__(self) -> int:
        """How many rows there are."""
        ...

    def __getitem__(self, number: int) -> Sample:
        """A row by its number."""
        ...


@dataclass(kw_only=True)
class Chosen:
    """How the samples were found: what was skipped, by reason, and a digest of all that is shown."""

    skipped: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    digest: str = ""


def order(count: int, seed: int) -> list[int]:
    """Rows in the order in which they are looked at."""
    rows = list(range(count))
    random.Random(seed).shuffle(rows)  # noqa: S311 (no secret)
    return rows


def choose(
    table: Rows,
    asked: Asked,
    use: Callable[[Sample, Callable[[], Sequence[Image]]], T],
    progress: Callable[[int, int], None],
) -> tuple[list[T], Chosen]:
    """Look at samples until there are as many usable ones as were asked for.

    Args:
        table: the data set.
        asked: how many, which seed, and whether pictures are shown.
        use: what becomes of a sample, given what opens its pictures again; may raise
            :class:`~qvlfp8.worker.calibration_pictures.Unusable`.
        progress: is told how many of how many there are.

    Raises:
        Refused: ``dataset-unusable``, too few samples, too many unusable ones, or a row that names a file
            outside the data set.
    """
    found: list[T] = []
    chosen, total = Chosen(), hashlib.sha256()
    shows = "image" in asked["columns"]
    for row in order(len(table), asked["seed"]):
        if len(found) == asked["samples"]:
            break
        try:
            sample = table[row]
            data = _shown(sample, table.pictures, shows=shows)
            found.append(use(sample, partial(_open, table, row, data is not None)))
        except Unusable as error:
            chosen.skipped[error.reason] += 1
            if len(chosen.examples) < _EXAMPLES:
                chosen.examples.append(f"row {row}: {error.reason}: {error}")
            _refuse_too_many(asked, chosen, asked["samples"])
            continue
        except Outside as error:
            raise Refused(
                UNUSABLE, f"{asked['source']}: row {row} names a file outside it: {error}; mend the row"
            ) from error
        for part in (sample.text.encode(), sample.answer.encode(), data or b""):
            total.update(hashlib.sha256(part).digest())
        progress(len(found), asked["samples"])
    _refuse_too_many(asked, chosen, len(found))
    if len(found) < asked["samples"]:
        raise Refused(
            UNUSABLE,
            f"{asked['source']}: {len(found)} usable samples of {len(table)}, and {asked['samples']} were "
            f"asked for{_told(chosen)}; ask for fewer (--samples {len(found) or 'N'}), or name a larger one",
        )
    chosen.digest = total.hexdigest()
    return found, chosen


def _shown(sample: Sample, root: Path | None, *, shows: bool) -> bytes | None:
    if not sample.text:
        raise Unusable("empty text", "a caption or prompt without a letter")
    return read_picture(sample.picture, root) if shows else None


def _open(table: Rows, row: int, shows: bool) -> Sequence[Image]:
    if not shows:
        return ()
    return (decode(read_picture(table[row].picture, table.pictures)),)


def _refuse_too_many(asked: Asked, chosen: Chosen, usable: int) -> None:
    skipped = chosen.skipped.total()
    if skipped > max(1, MOST_SKIPPED * (usable + skipped)):
        raise Refused(
            UNUSABLE,
            f"{asked['source']}: more than {MOST_SKIPPED:.0%} of its samples cannot be used{_told(chosen)}; "
            "mend or remove them, or name another data set (--dataset)",
        )


def _told(chosen: Chosen) -> str:
    if not chosen.skipped:
        return ""
    counts = ", ".join(f"{count} x {reason}" for reason, count in sorted(chosen.skipped.items()))
    return f" ({counts}; {'; '.join(chosen.examples)})"
