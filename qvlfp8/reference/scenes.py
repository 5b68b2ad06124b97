"""Pictures that the reference model is trained and examined on, the same bytes on every machine.

A scene says what is in a picture; :func:`render` draws it. Everything is integer arithmetic on the
raw 64-bit draws of PCG64: no float, no font, no drawing library, no distribution of numpy's whose
stream may change between versions. Lengths are in eighths of a pixel (``UNIT``), pictures are
multiples of 56 pixels, the side of one attention window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
"""Height, width, 3: RGB."""

T = TypeVar("T")
Kind = Literal["pair", "crowd", "dots", "digit"]
Size = tuple[int, int]

UNIT = 8
"""Lengths per pixel."""

SIZES: tuple[Size, ...] = ((112, 112), (112, 168), (168, 112), (168, 168))
"""Height and width in pixels: four, six or nine attention windows."""

COLOURS = {
    "red": (215, 30, 35),
    "green": (30, 165, 50),
    "blue": (35, 60, 220),
    "yellow": (235, 220, 40),
    "orange": (245, 135, 20),
    "purple": (135, 40, 185),
    "cyan": (40, 210, 220),
    "pink": (250, 140, 195),
}
FIGURES = ("circle", "square", "triangle", "cross", "ring")
DIRECTIONS = ("left", "right", "above", "below")
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
DIGITS = tuple("0123456789")
DOT = "dot"

_GLYPHS = (
    "01110 10001 10011 10101 11001 10001 01110",
    "00100 01100 00100 00100 00100 00100 01110",
    "01110 10001 00001 00010 00100 01000 11111",
    "11111 00010 00100 00010 00001 10001 01110",
    "00010 00110 01010 10010 11111 00010 00010",
    "11111 10000 11110 00001 00001 10001 01110",
    "00110 01000 10000 11110 10001 10001 01110",
    "11111 00001 00010 00100 01000 01000 01000",
    "01110 10001 10001 01110 10001 10001 01110",
    "01110 10001 10001 01111 00001 00010 01100",
)
_BITMAPS = tuple(np.array([[*map(int, row)] for row in rows.split()], dtype=bool) for rows in _GLYPHS)
"""Digits of seven rows by five columns."""

GAP = 4 * UNIT
"""Least distance between two things."""


class Dice:
    """Integers drawn from a key; another key is another, unrelated stream."""

    def __init__(self, key: str) -> None:
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest(), "big")
        self._source = np.random.PCG64(seed)
        self._raw: list[int] = []

    def below(self, limit: int) -> int:
        """Draw one of 0 .. limit - 1; the limit is far below 2**32."""
        if not self._raw:
            self._raw = self._source.random_raw(32).tolist()
        return (self._raw.pop() >> 32) * limit >> 32

    def between(self, low: int, high: int) -> int:
        """Draw one of low .. high, both included."""
        return low + self.below(high - low + 1)

    def one_of(self, items: Sequence[T]) -> T:
        """Draw an item."""
        return items[self.below(len(items))]

    def some_of(self, items: Sequence[T], count: int) -> list[T]:
        """Draw ``count`` different items, in random order."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(count)]

    def bytes(self, count: int) -> NDArray[np.uint8]:
        """Draw ``count`` bytes."""
        words = self._source.random_raw(-(-count // 8)).astype("<u8")
        return words.view(np.uint8)[:count]


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A figure, a dot or a digit: its centre and half its height, in eighths of a pixel.

    ``colour`` is a name of ``COLOURS``; empty for a digit, which is dark or light as the ground
    demands.
    """

    name: str
    colour: str
    x: int
    y: int
    radius: int


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is in a picture, and its size in pixels."""

    kind: Kind
    height: int
    width: int
    things: tuple[Thing, ...]


def pair(
    dice: Dice, size: Size, *, names: Sequence[str], colours: Sequence[str], direction: str | None = None
) -> Scene:
    """Two figures far apart; the first is ``direction`` of the second, or anywhere."""
    direction = direction or dice.one_of(DIRECTIONS)
    while True:
        first, second = (
            _place(dice, size, name, colour, dice.between(12 * UNIT, 16 * UNIT))
            for name, colour in zip(names, colours, strict=True)
        )
        if direction_of(first, second) == direction and _apart(first, (second,)):
            return Scene(kind="pair", height=size[0], width=size[1], things=(first, second))


def direction_of(first: Thing, second: Thing) -> str | None:
    """Where the first is, seen from the second; None if it is too near to a diagonal to say."""
    across, down = first.x - second.x, first.y - second.y
    if 2 * abs(across) >= 3 * abs(down):
        return "left" if across < 0 else "right"
    if 2 * abs(down) >= 3 * abs(across):
        return "above" if down < 0 else "below"
    return None


def crowd(dice: Dice, size: Size, *, count: int, common: str, odd: str) -> Scene:
    """``count`` equal figures, all but one of the ``common`` colour."""
    name = dice.one_of(FIGURES)
    things = _scatter(dice, size, [name] * count, [odd] + [common] * (count - 1), (8 * UNIT, 11 * UNIT))
    return Scene(kind="crowd", height=size[0], width=size[1], things=things)


def dots(dice: Dice, size: Size, *, count: int) -> Scene:
    """``count`` small dots of any colours."""
    colours = [dice.one_of(tuple(COLOURS)) for _ in range(count)]
    things = _scatter(dice, size, [DOT] * count, colours, (5 * UNIT, 7 * UNIT))
    return Scene(kind="dots", height=size[0], width=size[1], things=things)


def digit(dice: Dice, size: Size, *, name: str, quadrant: str) -> Scene:
    """One large digit, its centre in a quadrant and clear of the middle lines."""
    while True:
        thing = _place(dice, size, name, "", dice.between(14 * UNIT, 21 * UNIT))
        clear = min(abs(2 * thing.y - size[0] * UNIT), abs(2 * thing.x - size[1] * UNIT)) >= 14 * UNIT
        if clear and quadrant_of(thing, size) == quadrant:
            return Scene(kind="digit", height=size[0], width=size[1], things=(thing,))


def quadrant_of(thing: Thing, size: Size) -> str:
    """The quarter of the picture that holds the thing's centre."""
    down, across = 2 * thing.y > size[0] * UNIT, 2 * thing.x > size[1] * UNIT
    return QUADRANTS[2 * down + across]


def _place(dice: Dice, size: Size, name: str, colour: str, radius: int) -> Thing:
    """Anywhere, wholly inside the picture."""
    edge = radius + UNIT
    x, y = (dice.between(edge, side * UNIT - edge) for side in (size[1], size[0]))
    return Thing(name=name, colour=colour, x=x, y=y, radius=radius)


def _scatter(
    dice: Dice, size: Size, names: Sequence[str], colours: Sequence[str], radii: tuple[int, int]
) -> tuple[Thing, ...]:
    """Things that do not touch one another."""
    placed: list[Thing] = []
    for name, colour in zip(names, colours, strict=True):
        while True:
            thing = _place(dice, size, name, colour, dice.between(*radii))
            if _apart(thing, placed):
                placed.append(thing)
                break
    return tuple(placed)


def _apart(thing: Thing, others: Sequence[Thing]) -> bool:
    return all(
        max(abs(thing.x - other.x), abs(thing.y - other.y)) >= thing.radius + other.radius + GAP
        for other in others
    )


def render(scene: Scene, dice: Dice) -> Picture:
    """Draw the scene on a grey ground with clutter, then add noise; shading comes from the dice."""
    height, width = scene.height, scene.width
    grey = dice.between(60, 195)
    ground = [grey + dice.between(-12, 12) for _ in range(3)]
    canvas = np.empty((height, width, 3), dtype=np.int16)
    canvas[:] = ground
    _clutter(canvas, grey, dice)
    for thing in scene.things:
        ink = COLOURS[thing.colour] if thing.colour else ((20,) * 3 if grey > 127 else (235,) * 3)
        _blend(canvas, thing, [level + dice.between(-14, 14) for level in ink])
    strength = dice.between(8, 40)
    one, two = dice.bytes(2 * canvas.size).reshape(2, *canvas.shape)
    noise = np.add(one, two, dtype=np.int16)
    noise -= 255
    noise *= strength
    noise >>= 8
    canvas += noise
    return canvas.clip(0, 255, out=canvas).astype(np.uint8)


def _clutter(canvas: NDArray[np.int16], grey: int, dice: Dice) -> None:
    """Thin grey strokes, across or down, a little lighter or darker than the ground."""
    height, width, _ = canvas.shape
    for _ in range(dice.between(4, 9)):
        long, thin = dice.between(3, 26), dice.between(1, 2)
        tall, wide = (long, thin) if dice.below(2) else (thin, long)
        top, left = dice.below(height), dice.below(width)
        shade = dice.between(18, 40) * (1 if dice.below(2) else -1)
        canvas[top : top + tall, left : left + wide] = grey + shade


def _blend(canvas: NDArray[np.int16], thing: Thing, ink: Sequence[int]) -> None:
    """Lay a thing over the canvas; each pixel by how many of its 4 x 4 sample points it covers."""
    top, left = ((centre - thing.radius) // UNIT for centre in (thing.y, thing.x))
    bottom, right = ((centre + thing.radius) // UNIT + 1 for centre in (thing.y, thing.x))
    down = np.arange(top * UNIT + 1, bottom * UNIT, 2)[:, None] - thing.y
    across = np.arange(left * UNIT + 1, right * UNIT, 2)[None, :] - thing.x
    covered = _inside(thing.name, thing.radius, across, down)
    share = covered.reshape(bottom - top, 4, right - left, 4).sum(axis=(1, 3), dtype=np.int32)[:, :, None]
    part = canvas[top:bottom, left:right]
    part[:] = (part * (16 - share) + np.array(ink, dtype=np.int32) * share + 8) >> 4


def _inside(name: str, radius: int, across: NDArray[np.int_], down: NDArray[np.int_]) -> NDArray[np.bool_]:
    """Which sample points, relative to the centre, a thing covers."""
    wide, tall = abs(across), abs(down)
    square = across * across + down * down
    match name:
        case "circle" | "dot":
            return square <= radius * radius
        case "ring":
            return (square <= radius * radius) & (10 * square >= 3 * radius * radius)
        case "square":
            return 100 * np.maximum(wide, tall) <= 88 * radius
        case "triangle":
            return (100 * wide <= 53 * (down + radius)) & (10 * down <= 8 * radius)
        case "cross":
            bar = 34 * radius
            return ((100 * wide <= bar) & (tall <= radius)) | ((100 * tall <= bar) & (wide <= radius))
        case _:
            # A cell of the bitmap is two sevenths of the radius in each direction.
            row = 7 * (down + radius) // (2 * radius)
            column = (14 * across + 10 * radius) // (4 * radius)
            held = (row >= 0) & (row < 7) & (column >= 0) & (column < 5)
            inked: NDArray[np.bool_] = _BITMAPS[int(name)][row.clip(0, 6), column.clip(0, 4)]
            return held & inked
