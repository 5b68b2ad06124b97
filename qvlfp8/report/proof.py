"""What a model was shown and what it said, beside what the unquantized one said: the proof behind a mark."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qvlfp8.reference.scenes import Picture


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One question about one picture, and three answers to it: the right one, BF16's, the checkpoint's."""

    question: str
    right: str
    baseline: str
    answer: str


def shown(measured: Mapping[str, Any], baseline: Mapping[str, Any], count: int) -> tuple[Shown, ...]:
    """The first ``count`` questions of sight, from different tasks, that BF16 answers rightly.

    Those that the checkpoint gets wrong come first: for one that sees there are hardly any.
    """
    reference = {answer["id"]: answer for answer in baseline["answers"]}
    rows = [
        Shown(
            question=answer["id"],
            right=answer["expected"],
            baseline=reference[answer["id"]]["answer"],
            answer=answer["answer"],
        )
        for answer in measured["answers"]
        if answer["sight"] and reference[answer["id"]]["answer"] == answer["expected"]
    ]
    rows.sort(key=lambda row: row.answer == row.right)
    return tuple(_one_a_task(rows))[:count]


def _one_a_task(rows: Iterable[Shown]) -> Iterable[Shown]:
    """Each task's first row, then each task's second, and so on."""
    waiting = list(rows)
    while waiting:
        tasks: set[str] = set()
        later: list[Shown] = []
        for row in waiting:
            task = row.question.split("/")[0]
            if task in tasks:
                later.append(row)
            else:
                tasks.add(task)
                yield row
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
    """A Markdown table; ``prompts`` by question, pictures as ``FOLDER/TASK-NUMBER.png``."""
    lines = ["| picture | question | right | BF16 says | this checkpoint says |", "|---|---|---|---|---|"]
    for row in rows:
        name = f"{folder}/{row.question.replace('/', '-')}.png"
        texts = (prompts[row.question], row.right, row.baseline, row.answer)
        lines.append(f"| ![{row.question}]({name}) | " + " | ".join(_cell(text) for text in texts) + " |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text that a model wrote is untrusted: nothing in it may end the cell or become markup."""
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text) or "(nothing)"
    for mark in "\\`*_[]<>|!":
        clean = clean.replace(mark, f"\\{mark}" if mark not in "<>" else {"<": "&lt;", ">": "&gt;"}[mark])
    return clean[:80]
