"""Records of runs read one after the other say what each says alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from qvlfp8.results import Record, record_of
from qvlfp8.run_records import Reader
from tests.unit.test_evidence import PARAMS, RUN, record

OTHER = record(key="c" * 64, subject="vlm-fp8/modelopt-0.47.0/seeing/vllm-0.20.2")


def written(told: Record) -> bytes:
    """As ``Evidence.add`` writes it."""
    return (told.model_dump_json(indent=1, exclude_none=True) + "\n").encode()


def test_equal_answers_are_kept_once_and_all_else_is_the_records_own() -> None:
    read = Reader()
    (first, fault), (second, other) = read(written(record())), read(written(OTHER))
    assert (fault, other) == (None, None)
    assert (first, second) == (record(), OTHER)
    assert first.measured["answers"] is second.measured["answers"]


def test_answers_that_are_another_type_are_refused_though_equal_ones_are_known() -> None:
    """``1 == True``; and what a record that is not judged has beside its verdict is not known to be whole."""
    read = Reader()
    assert read(written(record()))[1] is None
    content = written(OTHER).replace(b'"sight": false', b'"sight": 0')
    assert "measured.answers.0.sight" in (read(content)[1] or "")
    failed = record().model_copy(update={"status": "fail", "measured": RUN | PARAMS | {"answers": [7]}})
    passed = OTHER.model_copy(update={"measured": RUN | PARAMS | {"answers": [7]}})
    assert read(written(failed))[1] is None
    assert "measured.answers.0" in (read(written(passed))[1] or "")


def test_a_fault_beside_answers_that_are_known_is_seen() -> None:
    read = Reader()
    assert read(written(record()))[1] is None
    assert "measured.exam_digest" in (
        read(written(OTHER).replace(b'"exam_digest": "e"', b'"exam_digest": 3'))[1] or ""
    )


def test_known_answers_in_another_place_are_not_the_runs_own() -> None:
    read = Reader()
    assert read(written(record()))[1] is None
    inputs = {"answers": RUN["answers"]}
    own = RUN | PARAMS | {"answers": []}
    moved = OTHER.model_copy(update={"inputs": inputs, "measured": own})
    assert read(written(moved)) == (moved, None)
    twice = OTHER.model_copy(update={"inputs": inputs})
    assert read(written(twice)) == (twice, None)


@pytest.mark.parametrize(
    "cut",
    [
        lambda text: text[: text.index(b"\n  ]") + 4],
        lambda text: text.replace(b"\n  ],", b"\n  ],,"),
        lambda text: text.replace(b'"id": "sum/000"', b'"id": [\n  ]'),
        lambda _: b"",
    ],
)
def test_what_is_no_json_says_what_it_says_alone(cut: Any) -> None:
    read = Reader()
    content = cut(written(OTHER))
    alone = _told(Reader(), content)
    assert read(written(record()))[1] is None
    assert _told(read, content) == alone
    assert alone


def _told(read: Reader, content: bytes) -> str | None:
    try:
        return read(content)[1]
    except ValidationError as error:
        return str(error.errors(include_url=False, include_input=False))


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"{}", b'{"stage": 1}', b"\xff", b'{"seconds": NaN}', b"[" * 300]
)
def test_a_record_is_refused_as_pydantic_refuses_it(content: bytes) -> None:
    with pytest.raises(ValidationError) as expected:
        Record.model_validate_json(content)
    with pytest.raises(ValidationError) as found:
        record_of(content)

    def told(error: ValidationError) -> list[Any]:
        return [(one["type"], one["loc"]) for one in error.errors()]

    assert told(found.value) == told(expected.value)


def test_a_record_is_what_pydantic_makes_of_it() -> None:
    content = json.dumps(json.loads(written(record())) | {"findings": [{"id": "a", "summary": "b"}]}).encode()
    assert record_of(content) == Record.model_validate_json(content)
