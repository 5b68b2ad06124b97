"""Held-out questions with known answers, a function of a seed alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from qvlfp8.reference.questions import SIGHT, SPEECH, SightTask, SpeechTask
from qvlfp8.reference.scenes import SIZES, Dice, Picture, render

CHANCE: Mapping[str, float] = MappingProxyType({task.name: 1 / len(task.answers) for task in SIGHT})
"""What guessing gets in each task of sight: its answers are equally frequent."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question and its answer; one of ``sight`` has a picture, and one that would change the answer.

    ``swapped`` has the size of ``picture`` (height, width, 3; multiples of 56 pixels), the same
    question makes sense to it, and ``answer`` is wrong there: right is ``swapped_answer``.
    """

    id: str
    task: str
    sight: bool
    prompt: str
    answer: str
    picture: Picture | None = field(default=None, repr=False)
    swapped: Picture | None = field(default=None, repr=False)
    swapped_answer: str | None = None


def make_exam(seed: int, per_task: int) -> tuple[Question, ...]:
    """Draw ``per_task`` questions of every task, those of sight first.

    Answers of sight take turns, in another order each round. Prompts of speech occur once each
    before any occurs again.
    """
    questions: list[Question] = []
    for sight in SIGHT:
        questions += _sight(sight, seed, per_task)
    for speech in SPEECH:
        questions += _speech(speech, seed, per_task)
    return tuple(questions)


def exam_digest(questions: Iterable[Question]) -> str:
    """SHA-256 (hex) over everything that is asked and shown, in order."""
    total = hashlib.sha256()
    for question in questions:
        texts = (question.id, question.prompt, question.answer, question.swapped_answer or "")
        total.update("\0".join(texts).encode() + b"\n")
        for picture in (question.picture, question.swapped):
            if picture is not None:
                total.update(f"{picture.shape}\n".encode() + picture.tobytes())
    return total.hexdigest()


def _sight(task: SightTask, seed: int, count: int) -> Iterator[Question]:
    turns = Dice(f"exam/{seed}/{task.name}")
    answers: list[str] = []
    for number in range(count):
        answers = answers or turns.some_of(task.answers, len(task.answers))
        answer = answers.pop()
        dice = Dice(f"exam/{seed}/{task.name}/{number}")
        size, slots = dice.one_of(SIZES), task.draw(dice)
        swapped_answer = dice.one_of([other for other in task.answers if other != answer])
        picture, swapped = (
            render(task.compose(dice, size, slots, wish), dice) for wish in (answer, swapped_answer)
        )
        yield Question(
            id=f"{task.name}/{number:03}", task=task.name, sight=True, prompt=task.prompt(slots),
            answer=answer, picture=picture, swapped=swapped, swapped_answer=swapped_answer,
        )  # fmt: skip


def _speech(task: SpeechTask, seed: int, count: int) -> Iterator[Question]:
    turns = Dice(f"exam/{seed}/{task.name}")
    prompts = task.prompts(held_out=True)
    left: list[tuple[str, str]] = []
    for number in range(count):
        left = left or turns.some_of(prompts, len(prompts))
        prompt, answer = left.pop()
        yield Question(
            id=f"{task.name}/{number:03}", task=task.name, sight=False, prompt=prompt, answer=answer
        )
