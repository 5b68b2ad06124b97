"""What cells' pages show of the exam: some questions with their pictures, and how many were answered rightly.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qvlfp8.cells import Stage
from qvlfp8.report import proof
from qvlfp8.results import Status
from qvlfp8.site.data import SiteCell

__all__ = ["NOT_ASKED", "SHOWN", "Asked", "ExamShown", "questions_shown"]

SHOWN = 4
"""Questions of sight that are shown, each with two pictures."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a page shows of a run's answers; of all the pictures shown to it: how many it answered rightly."""

    rows: tuple[proof.Shown, ...]
    right: int
    pictures: int


NOT_ASKED = Asked(rows=(), right=0, pictures=0)
"""Of a cell of which no answers can be shown."""


@dataclass(frozen=True, kw_only=True)
class ExamShown:
    """The exam that can be drawn now: its digest, and the prompts of what there are pictures of."""

    digest: str = ""
    prompts: Mapping[str, str] = field(default_factory=dict)
    shown: Mapping[str, Asked] = field(default_factory=dict)
    """Cell id -> what its page shows of it (:func:`questions_shown`)."""


def questions_shown(cells: Iterable[SiteCell], exam: str) -> Mapping[str, Asked]:
    """The questions whose pictures a cell's page shows, by its id; no entry for none.

    Args:
        cells: which.
        exam: digest of the exam that can be drawn.
    """
    # Records that answer alike have one list of answers (qvlfp8.run_records): the same is chosen of it.
    chosen: dict[tuple[int, int], Asked] = {}
    found: dict[str, Asked] = {}
    for cell in cells:
        if (runs := _runs(cell, exam)) is not None:
            own, bf16 = runs
            key = (id(own["answers"]), id(bf16["answers"]))
            if key not in chosen:
                chosen[key] = _asked(own, bf16)
            if chosen[key].rows:
                found[cell.cell.id] = chosen[key]
    return found


def _asked(own: Mapping[str, Any], bf16: Mapping[str, Any]) -> Asked:
    answers = [answer for answer in own["answers"] if answer["sight"]]
    pairs = [(answer["answer"], answer["expected"]) for answer in answers]
    pairs += [(answer["swapped_answer"], answer["swapped_expected"]) for answer in answers]
    return Asked(
        rows=proof.shown(own, bf16, SHOWN),
        right=sum((said or "").strip() == right for said, right in pairs),
        pictures=len(pairs),
    )


def _runs(cell: SiteCell, exam: str) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """What its run and that of BF16 measured; None unless both have answers to this exam, and they count."""
    record, baseline = cell.records.get("load"), cell.baseline
    if record is None or baseline is None or _status(cell, "image") in {"stale", "not run"}:
        return None
    if not record.measured.get("answers") or not baseline.measured.get("answers"):
        return None
    if record.measured.get("exam_digest") != exam:
        # Its pictures were others than those that can be drawn now.
        return None
    return record.measured, baseline.measured


def _status(cell: SiteCell, stage: Stage) -> Status:
    view = cell.view.stage(stage)
    return view.status if view else "not run"
