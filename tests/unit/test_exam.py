from collections import Counter

import numpy as np
import pytest

from qvlfp8.reference.exam import CHANCE, Question, exam_digest, make_exam
from qvlfp8.reference.questions import OPENINGS, SIGHT, SPEECH, SpeechTask

PER_TASK = 8


@pytest.fixture(scope="module")
def exam() -> tuple[Question, ...]:
    return make_exam(1, PER_TASK)


def test_every_machine_asks_the_same(exam: tuple[Question, ...]) -> None:
    assert exam_digest(exam) == "cd5a253c56f6569d39321352eff80b4c586737bf2bf88fe9f04ade2a51460e26"


def test_each_seed_is_another_exam() -> None:
    assert exam_digest(make_exam(1, 1)) != exam_digest(make_exam(2, 1))


def test_the_digest_covers_what_is_asked_and_shown(exam: tuple[Question, ...]) -> None:
    question = exam[0]
    assert question.picture is not None
    altered = question.picture.copy()
    altered[0, 0, 0] ^= 1
    fields = vars(question)
    digests = {
        exam_digest([Question(**fields | change)])
        for change in ({}, {"id": "x"}, {"prompt": "x"}, {"answer": "x"}, {"picture": altered})
    }
    assert len(digests) == 5


def test_a_small_exam_is_the_beginning_of_a_large_one(exam: tuple[Question, ...]) -> None:
    small = {question.id: exam_digest([question]) for question in make_exam(1, 2)}
    large = {question.id: exam_digest([question]) for question in exam}
    assert small.items() <= large.items()


def test_pictures_and_swapped_pictures(exam: tuple[Question, ...]) -> None:
    for question in exam:
        if not question.sight:
            assert (question.picture, question.swapped, question.swapped_answer) == (None, None, None)
            continue
        assert question.picture is not None
        assert question.swapped is not None
        assert question.picture.shape == question.swapped.shape
        assert question.picture.dtype == np.uint8
        assert [side % 56 for side in question.picture.shape[:2]] == [0, 0]
        assert question.swapped_answer != question.answer
        assert not np.array_equal(question.picture, question.swapped)


def test_answers_are_equally_frequent_so_chance_is_known() -> None:
    questions = make_exam(3, max(len(task.answers) for task in SIGHT))
    for task in SIGHT:
        asked = [question.answer for question in questions if question.task == task.name]
        assert Counter(asked[: len(task.answers)]) == Counter(task.answers)
        assert CHANCE[task.name] == 1 / len(task.answers)


def test_at_least_four_tasks_of_sight_and_three_of_speech(exam: tuple[Question, ...]) -> None:
    assert len({question.task for question in exam if question.sight}) >= 4
    assert len({question.task for question in exam if not question.sight}) >= 3
    assert len({question.id for question in exam}) == len(exam) == PER_TASK * (len(SIGHT) + len(SPEECH))


@pytest.mark.parametrize("task", SPEECH, ids=lambda task: task.name)
def test_no_prompt_of_an_exam_is_trained_but_every_fact_is(task: SpeechTask) -> None:
    held_out, trained = (dict(task.prompts(held_out=held)) for held in (True, False))
    assert len(held_out) >= 256
    assert not held_out.keys() & trained.keys()
    for wording in task.wordings:
        for slots, answer in task.facts:
            prompts = {opening + wording.format(*slots) for opening in OPENINGS}
            assert {trained[prompt] for prompt in prompts & trained.keys()} == {answer}
            assert {held_out[prompt] for prompt in prompts & held_out.keys()} == {answer}


def test_sums_are_right() -> None:
    task = next(task for task in SPEECH if task.name == "sum")
    assert all(int(one) + int(other) == int(answer) for (one, other), answer in task.facts)
    assert {answer for _, answer in task.facts} == {str(number) for number in range(19)}
