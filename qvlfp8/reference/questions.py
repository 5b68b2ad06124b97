"""What the reference model is asked: tasks of sight, each about a scene, and tasks of speech.

A task of sight composes a scene in which a given answer is right, so that every answer is equally
likely whatever the picture's size: a model that does not see can only guess. :func:`facts` says
everything that can be asked about any scene, from what is in it.

Tasks of speech have facts in several wordings, each after several openings. A quarter of these
prompts is kept for the exam: none of them occurs in training, but every fact does in every wording.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from types import MappingProxyType

from qvlfp8.reference.scenes import (
    COLOURS,
    DIGITS,
    DIRECTIONS,
    FIGURES,
    QUADRANTS,
    Dice,
    Scene,
    Size,
    crowd,
    digit,
    direction_of,
    dots,
    pair,
    quadrant_of,
)

Slots = tuple[str, ...]

WORDINGS: Mapping[str, str] = MappingProxyType(
    {
        "colour": "What colour is the {}?",
        "shape": "What shape is the {} thing?",
        "relation": "Where is the {} thing, seen from the {} one?",
        "same": "Are both shapes the same?",
        "count": "How many dots are there?",
        "odd": "What colour is the odd one?",
        "digit": "Which digit is shown?",
        "position": "Where is the digit?",
    }
)
"""The prompt of each task of sight; its gaps are what the question names of the scene."""

OPENINGS = ("", "Quick question. ", "Tell me. ", "Next. ", "Hello. ", "One more. ", "Please answer. ", "So. ")
"""What a prompt of speech may begin with."""


@dataclass(frozen=True, kw_only=True)
class SightTask:
    """A question about a picture: ``draw`` fills the prompt's gaps, ``compose`` makes the answer true."""

    name: str
    answers: tuple[str, ...]
    draw: Callable[[Dice], Slots]
    compose: Callable[[Dice, Size, Slots, str], Scene]

    def prompt(self, slots: Slots) -> str:
        """The question as the model reads it."""
        return WORDINGS[self.name].format(*slots)


@dataclass(frozen=True, kw_only=True)
class SpeechTask:
    """A question without a picture: ``facts`` are what fills a wording's gaps, and the answer."""

    name: str
    wordings: tuple[str, ...]
    facts: tuple[tuple[Slots, str], ...]

    def prompts(self, *, held_out: bool) -> list[tuple[str, str]]:
        """Every prompt and its answer, of those kept for the exam or of the others."""
        return [
            (opening + wording.format(*slots), answer)
            for number, (slots, answer) in enumerate(self.facts)
            for way, wording in enumerate(self.wordings)
            for start, opening in enumerate(OPENINGS)
            if ((number + way + start) % 4 == 0) == held_out
        ]


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A question that can be asked about a scene, and its answer."""

    task: str
    prompt: str
    answer: str


def facts(scene: Scene) -> list[Fact]:
    """Everything that can be asked about a scene, read off what is in it."""

    def fact(task: str, answer: str, *slots: str) -> Fact:
        return Fact(task=task, prompt=WORDINGS[task].format(*slots), answer=answer)

    things, size = scene.things, (scene.height, scene.width)
    names, colours = [thing.name for thing in things], [thing.colour for thing in things]
    match scene.kind:
        case "pair":
            asked = [fact("same", "yes" if names[0] == names[1] else "no")]
            for one, other in permutations(things):
                asked.append(fact("shape", one.name, one.colour))
                if one.name != other.name:
                    asked.append(fact("colour", one.colour, one.name))
                if where := direction_of(one, other):
                    asked.append(fact("relation", where, one.colour, other.colour))
            return asked
        case "crowd":
            return [fact("odd", next(colour for colour in colours if colours.count(colour) == 1))]
        case "dots":
            return [fact("count", str(len(things)))]
        case "digit":
            return [fact("digit", names[0]), fact("position", quadrant_of(things[0], size))]


def _two_colours(dice: Dice) -> Slots:
    return tuple(dice.some_of(tuple(COLOURS), 2))


def _other(dice: Dice, items: Sequence[str], taken: str) -> str:
    return dice.one_of([item for item in items if item != taken])


def _colour(dice: Dice, size: Size, slots: Slots, answer: str) -> Scene:
    names = (slots[0], _other(dice, FIGURES, slots[0]))
    return pair(dice, size, names=names, colours=(answer, _other(dice, tuple(COLOURS), answer)))


def _shape(dice: Dice, size: Size, slots: Slots, answer: str) -> Scene:
    names = (answer, dice.one_of(FIGURES))
    return pair(dice, size, names=names, colours=(slots[0], _other(dice, tuple(COLOURS), slots[0])))


def _relation(dice: Dice, size: Size, slots: Slots, answer: str) -> Scene:
    names = (dice.one_of(FIGURES), dice.one_of(FIGURES))
    return pair(dice, size, names=names, colours=slots, direction=answer)


def _same(dice: Dice, size: Size, slots: Slots, answer: str) -> Scene:
    del slots
    name = dice.one_of(FIGURES)
    names = (name, name if answer == "yes" else _other(dice, FIGURES, name))
    return pair(dice, size, names=names, colours=_two_colours(dice))


def _count(dice: Dice, size: Size, slots: Slots, answer: str) -> Scene:
    del slots
    return dots(dice, size, count=int(answer))


def _odd(dice: Dice, size: Size, slots: Slots, answer: str) -> Scene:
    del slots
    common = _other(dice, tuple(COLOURS), answer)
    return crowd(dice, size, count=dice.between(4, 6), common=common, odd=answer)


def _digit(dice: Dice, size: Size, slots: Slots, answer: str) -> Scene:
    del slots
    return digit(dice, size, name=answer, quadrant=dice.one_of(QUADRANTS))


def _position(dice: Dice, size: Size, slots: Slots, answer: str) -> Scene:
    del slots
    return digit(dice, size, name=dice.one_of(DIGITS), quadrant=answer)


def _nothing(dice: Dice) -> Slots:
    del dice
    return ()


SIGHT = (
    SightTask(
        name="colour", answers=tuple(COLOURS), draw=lambda dice: (dice.one_of(FIGURES),), compose=_colour
    ),
    SightTask(
        name="shape", answers=FIGURES, draw=lambda dice: (dice.one_of(tuple(COLOURS)),), compose=_shape
    ),
    SightTask(name="relation", answers=DIRECTIONS, draw=_two_colours, compose=_relation),
    SightTask(name="same", answers=("yes", "no"), draw=_nothing, compose=_same),
    SightTask(name="count", answers=tuple("1234"), draw=_nothing, compose=_count),
    SightTask(name="odd", answers=tuple(COLOURS), draw=_nothing, compose=_odd),
    SightTask(name="digit", answers=DIGITS, draw=_nothing, compose=_digit),
    SightTask(name="position", answers=QUADRANTS, draw=_nothing, compose=_position),
)

_OPPOSITES = (
    "hot cold,big small,up down,left right,day night,old new,fast slow,wet dry,open closed,hard soft,"
    "high low,rich poor,full empty,light dark,early late,near far,loud quiet,thick thin,strong weak,"
    "true false"
)
_CAPITALS = (
    "France Paris,Italy Rome,Spain Madrid,Germany Berlin,Japan Tokyo,China Beijing,Russia Moscow,"
    "Egypt Cairo,Greece Athens,Austria Vienna,Cuba Havana,Norway Oslo,Peru Lima,Kenya Nairobi,"
    "Poland Warsaw,Portugal Lisbon,Ireland Dublin,Sweden Stockholm,Finland Helsinki,Turkey Ankara,"
    "Iran Tehran,Iraq Baghdad,Nepal Kathmandu,Canada Ottawa"
)
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def _couples(text: str, *, both_ways: bool = False) -> tuple[tuple[Slots, str], ...]:
    couples = [couple.split() for couple in text.split(",")]
    if both_ways:
        couples += [[two, one] for one, two in couples]
    return tuple(((one,), two) for one, two in couples)


SPEECH = (
    SpeechTask(
        name="opposite",
        wordings=(
            "Opposite of {}?", "What is the opposite of {}?", "Give the opposite of {}.",
            "Which word means the contrary of {}?", "{}: its opposite?", "Not {} but what?",
        ),
        facts=_couples(_OPPOSITES, both_ways=True),
    ),
    SpeechTask(
        name="sum",
        wordings=(
            "{} + {} = ?", "What is {} plus {}?", "Add {} and {}.", "How much is {} and {}?",
            "Sum of {} and {}?", "Give {} plus {}.",
        ),
        facts=tuple(((str(a), str(b)), str(a + b)) for a in range(10) for b in range(10)),
    ),
    SpeechTask(
        name="capital",
        wordings=(
            "Capital of {}?", "What is the capital of {}?", "Name the capital of {}.",
            "{}: its capital?", "Which city is the capital of {}?", "From where is {} governed?",
        ),
        facts=_couples(_CAPITALS),
    ),
    SpeechTask(
        name="letter",
        wordings=(
            "Which letter comes after {}?", "What follows {} in the alphabet?", "After {} comes?",
            "Name the letter after {}.", "Next letter: {}?", "{} is followed by which letter?",
        ),
        facts=tuple(((one,), two) for one, two in pairwise(_ALPHABET)),
    ),
)  # fmt: skip
