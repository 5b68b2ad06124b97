"""A recipe's own calibration data: conversations drawn from its seed, where no data set is named.

Questions and answers come from a small set of our own. Pictures are drawn: coloured shapes on
noise, in several sizes, most of them larger than one attention window. The same seed and the same
package versions give the same conversations on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from qvlfp8.quant_cfg import Calibration
from qvlfp8.worker.calibration_batches import Conversation

if TYPE_CHECKING:
    from PIL.Image import Image

_TALKS = (
    ("What does a bakery smell like in the morning?", "Warm bread, butter and a little smoke."),
    ("Name three rivers.", "The Danube, the Niger and the Mekong."),
    ("How do I reset the clock on the oven?", "Hold the two outer buttons until 0:00 blinks."),
    ("Is 91 a prime number?", "No: 7 times 13 is 91."),
    ("Write one line of Python that sums a list.", "total = sum(values)"),
    ("Warum ist der Himmel blau?", "Weil die Luft kurze Wellen stärker streut."),
    ("Summarise the match.", "They led early, tired late, and drew 2-2 in extra time."),
    ("¿Qué hora es en Lima?", "Cinco horas menos que en Londres."),
    ("Give me an opposite of 'scarce'.", "Plentiful."),
    ("Why did the build fail?", "ld: cannot find -lssl; install the development package."),
    ("Translate 'good night' into French.", "Bonne nuit."),
    ("List what to pack for a wet hike.", "1. shell jacket\n2. wool socks\n3. dry bag\n4. map"),
    ("What is 17% of 250?", "42.5"),
    ("Complete: the quick brown", "fox jumps over the lazy dog."),
    ('Return JSON with keys "a" and "b".', '{"a": 1, "b": [true, null]}'),
    ("今日の天気を教えて。", "朝は雨、昼から晴れます。"),
)
_COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 84, 204),
    "yellow": (244, 196, 48),
    "white": (245, 245, 245),
    "black": (16, 16, 16),
}
_SHAPES = ("circle", "square", "triangle", "bar")
_SIDES = (56, 84, 112, 168, 224)  # pixels; multiples of the 28 that one language token covers
_BOTH = "Describe both pictures."
_ONE = "Describe the picture."


def _picture(rng: random.Random) -> tuple[Image, str]:
    """One to four shapes on a noisy ground, and the words for what is there."""
    from PIL import Image as Images
    from PIL import ImageDraw

    width, height = rng.choice(_SIDES), rng.choice(_SIDES)
    noise = Images.frombytes("RGB", (width, height), rng.randbytes(width * height * 3))
    ground = Images.new("RGB", (width, height), rng.choice(tuple(_COLOURS.values())))
    image = Images.blend(ground, noise, rng.uniform(0.1, 0.6))
    draw = ImageDraw.Draw(image)
    words = []
    for _ in range(rng.randint(1, 4)):
        colour, shape = rng.choice(tuple(_COLOURS)), rng.choice(_SHAPES)
        size = rng.randint(min(width, height) // 5, min(width, height) // 2)
        x, y = rng.randrange(width - size), rng.randrange(height - size)
        _draw_shape(draw, shape, (x, y, x + size, y + size), _COLOURS[colour])
        words.append(f"a {colour} {shape}")
    return image, ", ".join(words)


def _draw_shape(draw: Any, shape: str, box: tuple[int, int, int, int], colour: tuple[int, int, int]) -> None:
    left, top, right, bottom = box
    if shape == "circle":
        draw.ellipse(box, fill=colour)
    elif shape == "square":
        draw.rectangle(box, fill=colour)
    elif shape == "bar":
        draw.rectangle((left, top, right, top + (bottom - top) // 4), fill=colour)
    else:
        draw.polygon(((left, bottom), (right, bottom), ((left + right) // 2, top)), fill=colour)


def conversations(calibration: Calibration) -> Iterator[Conversation]:
    """Draw the conversations of a calibration, each from the seed and its number."""
    for number in range(calibration["samples"]):
        rng = random.Random(f"{calibration['seed']}:{number}")  # noqa: S311 (no secret)
        question, answer = _TALKS[(number + calibration["seed"]) % len(_TALKS)]
        more, reply = rng.choice(_TALKS)
        question, answer = f"{question} {more}", f"{answer}\n{reply}"
        if calibration["modality"] == "text":
            yield Conversation(question=question, answer=answer)
            continue
        drawn = [_picture(rng) for _ in range(rng.randint(1, 2))]
        yield Conversation(
            question=f"{_ONE if len(drawn) == 1 else _BOTH} {question}",
            answer=f"{'; '.join(words for _, words in drawn)}.\n{answer}",
            pictures=tuple(image for image, _ in drawn),
        )
