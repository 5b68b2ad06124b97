"""What runs through a model while ModelOpt watches its activations, drawn from a seed.

Questions and answers come from a small set of our own. Pictures are drawn: coloured shapes on
noise, in several sizes, most of them larger than one attention window. The same seed and the same
package versions give the same batches on every machine.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvlfp8.quant_cfg import Calibration
from qvlfp8.worker.protocol import Refused

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_PAD = "<|image_pad|>"

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


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A question, perhaps about pictures, and its answer."""

    question: str
    answer: str
    pictures: tuple[Image, ...] = field(default=(), repr=False)


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


def image_processor_class() -> Any:
    """Import transformers' own preprocessing, its PIL variant: it needs no torchvision."""
    try:
        from transformers import Qwen2VLImageProcessorPil
    except ImportError:  # transformers 4.x, where the plain name is the PIL variant
        from transformers import Qwen2VLImageProcessor

        return Qwen2VLImageProcessor
    return Qwen2VLImageProcessorPil


@dataclass(kw_only=True)
class Batches:
    """A calibration set, ready for ``model(**batch)``: one conversation each, nothing padded."""

    batches: list[dict[str, Any]]
    images: int
    tokens: int


def prepare_batches(folder: Path, model: Any, calibration: Calibration) -> Batches:
    """Turn a recipe's calibration into tensors on the device of a loaded Qwen2.5-VL.

    Args:
        folder: where the model came from: tokenizer, chat template, image preprocessing.
        model: the loaded model, not quantized yet.
        calibration: modality, number of conversations, and seed.

    Raises:
        Refused: ``not-a-checkpoint`` if the folder lacks one of the three.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template:
        raise Refused("not-a-checkpoint", f"{folder}: its tokenizer has no chat template")
    processor = None
    if calibration["modality"] == "image+text":
        processor = _image_processor(folder)
    # From transformers 5 on the model wants to be told which tokens stand for pictures.
    typed = "mm_token_type_ids" in inspect.signature(type(model).forward).parameters
    result = Batches(batches=[], images=0, tokens=0)
    for conversation in conversations(calibration):
        batch = _batch(conversation, tokenizer, processor)
        if typed:
            batch["mm_token_type_ids"] = (batch["input_ids"] == model.config.image_token_id).int()
        result.batches.append({name: tensor.to(model.device) for name, tensor in batch.items()})
        result.images += len(conversation.pictures)
        result.tokens += batch["input_ids"].numel()
    return result


def _image_processor(folder: Path) -> Any:
    if not (folder / "preprocessor_config.json").is_file():
        raise Refused(
            "not-a-checkpoint",
            f"{folder}: without preprocessor_config.json no picture can be prepared; "
            "copy it from the original model",
        )
    return image_processor_class().from_pretrained(folder)


def _batch(conversation: Conversation, tokenizer: Any, processor: Any) -> dict[str, Any]:
    question: list[dict[str, str]] = [{"type": "image"} for _ in conversation.pictures]
    question.append({"type": "text", "text": conversation.question})
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": conversation.answer},
    ]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False)
    images: dict[str, Any] = {}
    if conversation.pictures:
        images = dict(processor(images=list(conversation.pictures), return_tensors="pt"))
        merged = processor.merge_size**2
        pads = [int(grid.prod()) // merged for grid in images["image_grid_thw"]]
        prompt = _expand_pads(prompt, pads)
    text = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    return {"input_ids": text["input_ids"], "attention_mask": text["attention_mask"], **images}


def _expand_pads(prompt: str, pads: list[int]) -> str:
    """Repeat each image placeholder as often as its picture has language tokens."""
    pieces = prompt.split(IMAGE_PAD)
    if len(pieces) != len(pads) + 1:
        raise Refused(
            "not-a-checkpoint",
            f"the chat template wrote {len(pieces) - 1} {IMAGE_PAD} for {len(pads)} pictures",
        )
    return pieces[0] + "".join(
        IMAGE_PAD * count + piece for count, piece in zip(pads, pieces[1:], strict=True)
    )
