"""What a model was shown and what it said, beside what the unquantized one said: the proof behind a mark."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qvlfp8.reference.scenes import Picture


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One question about one picture, and three answers to it: the right one, BF16's, the checkpoint's.

    ``swapped``: the picture is the other one of the two that the question was asked about.
    """

    question: str
    swapped: bool
    right: str
    baseline: str
    answer: str

    @property
    def picture(self) -> str:
        """File name of the picture."""
        return f"{self.question.replace('/', '-')}{'-other' if self.swapped else ''}.png"


def shown(measured: Mapping[str, Any], baseline: Mapping[str, Any], count: int) -> tuple[Shown, ...]:
    """``count`` questions of sight that BF16 answers rightly, from different tasks, with both pictures.

    Those that the checkpoint gets wrong come first: for one that sees there are hardly any.
    """
    reference = {answer["id"]: answer for answer in baseline["answers"]}
    asked = [(a, reference[a["id"]]) for a in measured["answers"] if a["sight"]]
    asked = [(own, bf16) for own, bf16 in asked if _rights(bf16, own) == _PICTURES]
    asked.sort(key=lambda pair: _rights(pair[0], pair[0]))
    chosen = islice(_one_a_task(asked), count)
    return tuple(row for own, bf16 in chosen for row in _pair(own, bf16))


_PICTURES = 2
"""With which a question of sight is asked."""

Asked = tuple[Mapping[str, Any], Mapping[str, Any]]
"""A question as the checkpoint answered it, and as BF16 did."""


def _rights(said: Mapping[str, Any], question: Mapping[str, Any]) -> int:
    """About how many of the two pictures somebody said what is right."""
    own: bool = said["answer"] == question["expected"]
    other: bool = said["swapped_answer"] == question["swapped_expected"]
    return own + other


def _pair(answer: Mapping[str, Any], reference: Mapping[str, Any]) -> tuple[Shown, Shown]:
    own, other = (
        Shown(
            question=answer["id"],
            swapped=bool(prefix),
            right=answer[f"{prefix}expected"],
            baseline=reference[f"{prefix}answer"],
            answer=answer[f"{prefix}answer"],
        )
        for prefix in ("", "swapped_")
    )
    return own, other


def _one_a_task(pairs: Iterable[Asked]) -> Iterable[Asked]:
    """Each task's first, then each task's second, and so on."""
    waiting = list(pairs)
    while waiting:
        tasks: set[str] = set()
        later: list[Asked] = []
        for pair in waiting:
            task = pair[0]["id"].split("/")[0]
            if task in tasks:
                later.append(pair)
            else:
                tasks.add(task)
                yield pair
        waiting = later


def png(picture: Picture) -> bytes:
    """Encode a picture (uint8, height x width x 3) as PNG; the same bytes on any machine."""
    height, width, _ = picture.shape
    lines = b"".join(b"\0" + line.tobytes() for line in picture)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in parts)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def as_markdown(rows: Sequence[Shown], prompts: Mapping[str, str], folder: str) -> str:
    """A Markdown table; ``prompts`` by question, pictures below ``folder``."""
    lines = ["| picture | question | right | BF16 says | this checkpoint says |", "|---|---|---|---|---|"]
    for row in rows:
        texts = (prompts[row.question], row.right, row.baseline, row.answer)
        picture = f"![{row.question}]({folder}/{row.picture})"
        lines.append(f"| {picture} | " + " | ".join(_cell(text) for text in texts) + " |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text that a model wrote is untrusted: nothing in it may end the cell or become markup."""
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text) or "(nothing)"
    for mark in "\\`*_[]<>|!":
        clean = clean.replace(mark, f"\\{mark}" if mark not in "<>" else {"<": "&lt;", ">": "&gt;"}[mark])
    return clean[:80]
