"""What the reference model is taught with: each batch a function of the seed and the step alone.

A batch has pictures of one size, each with a short conversation about it, then conversations
without a picture. For every 28 x 28 pixels of a picture (one token of the language model) there is
also what the tower ought to know there: what is drawn in that cell, and what only a look at the
whole picture tells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qvlfp8.reference.questions import SIGHT, SPEECH, Fact, facts
from qvlfp8.reference.scenes import (
    COLOURS,
    DIGITS,
    DIRECTIONS,
    DOT,
    FIGURES,
    QUADRANTS,
    SIZES,
    UNIT,
    Dice,
    Scene,
    Size,
    Thing,
    direction_of,
    render,
)
from qvlfp8.reference.tokenizer import TOKEN_IDS, byte_symbols

CELL = 28
"""Side in pixels of what one image token covers."""

IGNORED = -100
"""A target that is not asked for."""

CAPACITY = 160
"""Tokens of text in a row, beside the image's."""

PICTURE_AT = 7
"""Where in a row the image tokens start: after ``<|im_start|>user\\n<|vision_start|>``."""

TARGETS = {
    # what is drawn in the cell
    "what": 4, "figure": len(FIGURES), "colour": len(COLOURS), "digit": len(DIGITS), "centres": 4,
    # what the whole picture tells
    "count": 4, "same": 2, "odd": len(COLOURS),
    "other figure": len(FIGURES), "other colour": len(COLOURS), "direction": len(DIRECTIONS),
    # where the cell is: not the tower's to know, which has no such thing as a place
    "quarter": len(QUADRANTS),
}  # fmt: skip
"""Auxiliary targets of a cell, and their numbers of classes."""

_TASKS = [
    task
    for task in SIGHT
    for _ in range(
        {"relation": 3, "same": 3, "count": 4, "odd": 3, "digit": 3, "position": 3}.get(task.name, 2)
    )
]
"""Tasks as often as they are drawn: the harder ones more often."""

_COLOURS = tuple(COLOURS)
_PRINTABLE = [ord(symbol) for symbol in byte_symbols() if ord(symbol) < 0x100]
_BYTES = _PRINTABLE + [byte for byte in range(0x100) if byte not in _PRINTABLE]
_ID_OF_BYTE = {byte: number for number, byte in enumerate(_BYTES)}


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's lesson.

    ``pictures`` (pictures, height, width, 3) and ``targets`` (name of target; pictures, cells)
    belong to the first rows of ``ids`` and ``labels`` (rows, tokens); the rows after them have no
    picture. Labels are the token at that place where the model is to say it, else ``IGNORED``.
    """

    pictures: NDArray[np.uint8]
    targets: NDArray[np.int64]
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]


def encode(text: str) -> list[int]:
    """Token ids of text without special tokens: one a byte."""
    return [_ID_OF_BYTE[byte] for byte in text.encode()]


def conversation(turns: list[tuple[str, str]], cells: int) -> tuple[list[int], list[int]]:
    """Token ids and labels of a chat; with ``cells`` image tokens in the first turn, or none."""
    start, end = TOKEN_IDS["<|im_start|>"], TOKEN_IDS["<|im_end|>"]
    ids: list[int] = []
    labels: list[int] = []
    for number, (prompt, answer) in enumerate(turns):
        asked = [start, *encode("user\n")]
        if cells and not number:
            pads = [TOKEN_IDS["<|image_pad|>"]] * cells
            asked += [TOKEN_IDS["<|vision_start|>"], *pads, TOKEN_IDS["<|vision_end|>"]]
        asked += [*encode(prompt), end, *encode("\n"), start, *encode("assistant\n")]
        said = [*encode(answer), end]
        ids += asked + said + encode("\n")
        labels += [IGNORED] * len(asked) + said + [IGNORED]
    return ids, labels


def size_of(seed: int, step: int) -> Size:
    """The picture size of a step."""
    return Dice(f"train/{seed}/{step}").one_of(SIZES)


def lesson(seed: int, step: int, pictures: int, speeches: int) -> Batch:
    """Draw the batch of a step: rows with a picture, then rows without."""
    size = size_of(seed, step)
    cells = size[0] // CELL * (size[1] // CELL)
    images, targets, rows = [], [], []
    for row in range(pictures):
        dice = Dice(f"train/{seed}/{step}/{row}")
        task = dice.one_of(_TASKS)
        scene = task.compose(dice, size, task.draw(dice), dice.one_of(task.answers))
        images.append(render(scene, dice))
        targets.append(_targets(scene))
        rows.append(_fill(_shuffled(dice, facts(scene)), cells))
    for row in range(speeches):
        dice = Dice(f"train/{seed}/{step}/speech/{row}")
        asked = [dice.one_of(dice.one_of(_SPEECHES)) for _ in range(5)]
        rows.append(_fill(asked, 0))
    length = CAPACITY + cells
    ids = np.full((len(rows), length), TOKEN_IDS["<|endoftext|>"], dtype=np.int64)
    labels = np.full((len(rows), length), IGNORED, dtype=np.int64)
    for row, (said, label) in enumerate(rows):
        ids[row, : len(said)], labels[row, : len(label)] = said, label
    return Batch(pictures=np.stack(images), targets=np.stack(targets, 1), ids=ids, labels=labels)


_SPEECHES = [task.prompts(held_out=False) for task in SPEECH]


def _shuffled(dice: Dice, known: list[Fact]) -> list[tuple[str, str]]:
    return [(fact.prompt, fact.answer) for fact in dice.some_of(known, len(known))]


def _fill(turns: list[tuple[str, str]], cells: int) -> tuple[list[int], list[int]]:
    """As many of the turns as a row has room for."""
    for count in range(len(turns), 1, -1):
        ids, labels = conversation(turns[:count], cells)
        if len(ids) <= CAPACITY + cells:
            return ids, labels
    return conversation(turns[:1], cells)


def _targets(scene: Scene) -> NDArray[np.int64]:
    """The targets of a scene's cells: (names of ``TARGETS``, cells in reading order)."""
    rows, columns = scene.height // CELL, scene.width // CELL
    known = {name: np.full((rows, columns), IGNORED, dtype=np.int64) for name in TARGETS}
    known["what"][:] = 0
    known["quarter"][:] = 2 * (2 * np.arange(rows)[:, None] >= rows) + (2 * np.arange(columns) >= columns)
    names, colours = [thing.name for thing in scene.things], [thing.colour for thing in scene.things]
    match scene.kind:
        case "pair":
            known["same"][:] = names[0] == names[1]
        case "crowd":
            odd = next(colour for colour in colours if colours.count(colour) == 1)
            known["odd"][:] = _COLOURS.index(odd)
        case "dots":
            known["count"][:] = len(names) - 1
            known["centres"][:] = 0
        case "digit":
            pass
    for number, thing in enumerate(scene.things):
        held = _cells_of(thing, rows, columns)
        if thing.name == DOT:
            known["what"][held] = 2
            known["centres"][thing.y // (CELL * UNIT), thing.x // (CELL * UNIT)] += 1
        elif thing.name in FIGURES:
            known["what"][held] = 1
            known["figure"][held] = FIGURES.index(thing.name)
            known["colour"][held] = _COLOURS.index(thing.colour)
            if scene.kind == "pair":
                other = scene.things[1 - number]
                known["other figure"][held] = FIGURES.index(other.name)
                known["other colour"][held] = _COLOURS.index(other.colour)
                if where := direction_of(thing, other):
                    known["direction"][held] = DIRECTIONS.index(where)
        else:
            known["what"][held] = 3
            known["digit"][held] = int(thing.name)
    known["centres"].clip(max=3, out=known["centres"])
    return np.stack([target.reshape(-1) for target in known.values()])


def _cells_of(thing: Thing, rows: int, columns: int) -> NDArray[np.bool_]:
    """The cells of which a thing covers a third, and the one of which it covers most."""
    side = CELL * UNIT

    def overlap(centre: int, count: int) -> NDArray[np.int_]:
        edges = np.arange(count) * side
        end = np.minimum(edges + side, centre + thing.radius)
        return (end - np.maximum(edges, centre - thing.radius)).clip(min=0)

    area = overlap(thing.y, rows)[:, None] * overlap(thing.x, columns)[None, :]
    covered: NDArray[np.bool_] = (3 * area > side * side) | (area == area.max())
    return covered
