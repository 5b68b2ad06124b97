import hashlib
from itertools import product

import numpy as np
import pytest

from qvlfp8.reference.questions import SIGHT, SightTask, facts
from qvlfp8.reference.scenes import (
    COLOURS,
    DIGITS,
    FIGURES,
    SIZES,
    UNIT,
    Dice,
    Scene,
    Thing,
    crowd,
    digit,
    dots,
    pair,
    render,
)


def _scenes() -> list[tuple[Scene, Dice]]:
    """One of each kind, in each size."""
    made = []
    for size in SIZES:
        dice = Dice(f"test/{size}")
        made += [
            (pair(dice, size, names=("ring", "cross"), colours=("red", "blue")), dice),
            (crowd(dice, size, count=5, common="green", odd="pink"), dice),
            (dots(dice, size, count=4), dice),
            (digit(dice, size, name="8", quadrant="top right"), dice),
        ]
    return made


def test_every_machine_draws_the_same_bytes() -> None:
    total = hashlib.sha256()
    for scene, dice in _scenes():
        total.update(render(scene, dice).tobytes())
    assert total.hexdigest() == "8f3275d63ac5508944dc8b2c7374d2aefaaf2160b64cde635f3931a1a35a5c0e"


def test_dice_are_even_and_stay_in_their_range() -> None:
    dice = Dice("test")
    drawn = [dice.between(3, 8) for _ in range(6000)]
    counts = [drawn.count(value) for value in range(3, 9)]
    assert sum(counts) == 6000
    assert min(counts) > 900
    assert sorted(dice.some_of("abcde", 5)) == list("abcde")
    assert len(dice.bytes(13)) == 13


def test_another_key_is_another_stream() -> None:
    first, second = (Dice(key).bytes(64).tolist() for key in ("train/1/0/0", "exam/1/count/0"))
    assert first != second


@pytest.mark.parametrize("task", SIGHT, ids=lambda task: task.name)
def test_a_composed_scene_has_the_wished_answer_and_no_other(task: SightTask) -> None:
    for number, (answer, size) in enumerate(product(task.answers, SIZES)):
        dice = Dice(f"test/{task.name}/{number}")
        slots = task.draw(dice)
        scene = task.compose(dice, size, slots, answer)
        told = {fact.answer for fact in facts(scene) if fact.prompt == task.prompt(slots)}
        assert told == {answer}
        assert (scene.height, scene.width) == size


def test_things_lie_inside_and_apart() -> None:
    for scene, _ in _scenes():
        for thing in scene.things:
            assert thing.radius < thing.x < scene.width * UNIT - thing.radius
            assert thing.radius < thing.y < scene.height * UNIT - thing.radius
        for one, other in product(scene.things, scene.things):
            if one != other:
                assert max(abs(one.x - other.x), abs(one.y - other.y)) > one.radius + other.radius


def test_colours_are_where_the_scene_says() -> None:
    """Read back from the pixels at the centre of every figure but the ring."""
    for number, name in enumerate(("circle", "square", "triangle", "cross")):
        for colour in COLOURS:
            dice = Dice(f"test/{name}/{colour}")
            scene = pair(dice, SIZES[number], names=(name, name), colours=(colour, "red"))
            picture = render(scene, dice).astype(int)
            x, y = scene.things[0].x // UNIT, scene.things[0].y // UNIT
            seen = picture[y - 2 : y + 3, x - 2 : x + 3].mean(axis=(0, 1))
            nearest = min(COLOURS, key=lambda known: float(np.abs(seen - np.array(COLOURS[known])).sum()))
            assert nearest == colour


@pytest.mark.parametrize("name", [*FIGURES, *DIGITS])
def test_figures_and_digits_differ_in_shape(name: str) -> None:
    def drawn(what: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        thing = Thing(name=what, colour="", x=448, y=448, radius=160)
        return render(Scene(kind="digit", height=112, width=112, things=(thing,)), Dice("test"))

    other = {*FIGURES, *DIGITS} - {name}
    assert all((np.abs(drawn(name).astype(int) - drawn(each)) > 60).sum() > 50 for each in other)
