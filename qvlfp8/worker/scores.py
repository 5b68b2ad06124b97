"""How many questions of an exam a model answers, as it is and broken in known ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qvlfp8.reference.exam import Question
from qvlfp8.reference.scenes import Picture
from qvlfp8.worker.lessons import CELL, IGNORED, conversation

GREY = 128
"""Every pixel of a blank picture."""

Accuracy = dict[str, float]
"""Share of right answers, by task."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is broken on purpose: another picture, or the tower."""

    shown: Literal["picture", "blank", "swapped"] = "picture"
    shuffled: bool = False
    skipped_block: int | None = None
    all_windowed: bool = False


Say = Callable[[NDArray[np.uint8] | None, NDArray[np.int64], Fault], NDArray[np.int64]]
"""The likeliest next token at every place (rows, tokens), given pictures (rows, height, width, 3) or
none, the token ids (rows, tokens), and what is to be broken."""


def faults(depth: int) -> dict[str, Fault]:
    """The model as it is, and every way to break it, by name; ``depth`` vision blocks."""
    return {
        "intact": Fault(),
        "blank": Fault(shown="blank"),
        "swapped": Fault(shown="swapped"),
        "tower shuffled": Fault(shuffled=True),
        **{f"block {block} skipped": Fault(skipped_block=block) for block in range(depth)},
        "all windowed": Fault(all_windowed=True),
    }


def table(questions: Iterable[Question], kinds: Mapping[str, Fault], say: Say) -> dict[str, Accuracy]:
    """Accuracy for each fault; printed as it comes, in per cent, a row a fault and a column a task."""
    asked = tuple(questions)
    tasks = list(dict.fromkeys(question.task for question in asked))
    print(f"{'':16}" + "".join(f"{task:>9}" for task in tasks), flush=True)
    rows = {}
    for name, fault in kinds.items():
        rows[name] = accuracy(asked, fault, say)
        print(f"{name:16}" + "".join(f"{100 * rows[name][task]:9.1f}" for task in tasks), flush=True)
    return rows


def accuracy(questions: Sequence[Question], fault: Fault, say: Say, *, rows: int = 64) -> Accuracy:
    """Ask every question, ``rows`` at a time; right is an answer whose every token is the likeliest.

    That is what greedy decoding says, without decoding: an answer is wrong from its first wrong
    token on.
    """
    groups: dict[tuple[int, ...], list[Question]] = {}
    for question in questions:
        groups.setdefault(() if question.picture is None else question.picture.shape, []).append(question)
    hits: dict[str, list[bool]] = {question.task: [] for question in questions}
    for shape, group in groups.items():
        cells = shape[0] // CELL * (shape[1] // CELL) if shape else 0
        for first in range(0, len(group), rows):
            part = group[first : first + rows]
            ids, labels = _padded([conversation([(one.prompt, one.answer)], cells) for one in part])
            pictures = np.stack([_shown(one, fault) for one in part]) if shape else None
            said, wanted = say(pictures, ids, fault)[:, :-1], labels[:, 1:]
            right = ((said == wanted) | (wanted == IGNORED)).all(axis=1)
            for one, hit in zip(part, right.tolist(), strict=True):
                hits[one.task].append(hit)
    return {task: round(sum(hit) / len(hit), 4) for task, hit in hits.items()}


def _shown(question: Question, fault: Fault) -> Picture:
    picture = question.swapped if fault.shown == "swapped" else question.picture
    if picture is None:
        raise ValueError(f"{question.id} has no picture")
    return np.full_like(picture, GREY) if fault.shown == "blank" else picture


def _padded(
    rows: Sequence[tuple[list[int], list[int]]],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and labels of equal length; what is added is never asked for."""
    length = max(len(ids) for ids, _ in rows)
    ids = np.zeros((len(rows), length), dtype=np.int64)
    labels = np.full((len(rows), length), IGNORED, dtype=np.int64)
    for number, (said, label) in enumerate(rows):
        ids[number, : len(said)], labels[number, : len(label)] = said, label
    return ids, labels
