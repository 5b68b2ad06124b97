"""The quick answer has to be the plain one: of every cell of our matrix, and of globs that nobody wrote."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from qvlfp8.cells import STAGES, Expectation
from qvlfp8.coverage import Coverage
from qvlfp8.matrix import read_matrix

ROOT = Path(__file__).parents[2]
MATRIX = read_matrix(ROOT / "matrix.yaml")

parts = st.sampled_from(
    ["*", "?", "[lv]m", "[!x]", "lm-fp8", "vlm-fp8", "-", "/", "modelopt-0.41.0", "seeing-untied", "vllm-0.1",
     "vllm-0.26.0", "*-cpu", "[*"]
)  # fmt: skip
drawn = st.lists(parts, min_size=1, max_size=5).map("".join)
# Of a cell's own id, with some of its parts left open.
near = st.tuples(
    st.sampled_from([cell.id for cell in MATRIX.cells]), st.sets(st.integers(0, 3), min_size=1)
).map(
    lambda pair: "/".join("*" if place in pair[1] else part for place, part in enumerate(pair[0].split("/")))
)
globs = drawn | near
expectations = st.builds(
    lambda cells, without, vllm, transformers, stage: Expectation.model_validate(
        {
            "cells": cells, "without": without, "vllm": vllm, "transformers": transformers,
            "shows": {stage: "blind"}, "reason": "drawn",
        }
    ),
    st.lists(globs, min_size=1, max_size=2),
    st.lists(globs, max_size=2),
    st.sampled_from([None, "<0.13", ">=0.20"]),
    st.sampled_from([None, "<5", ">=5"]),
    st.sampled_from(STAGES),
)  # fmt: skip


def _plainly(told: tuple[Expectation, ...], step: int) -> None:
    coverage = Coverage(told)
    for cell in MATRIX.cells[::step]:
        found = coverage.of(cell)
        for stage in STAGES:
            covering = tuple((index, one) for index, one in enumerate(told) if one.covers(cell, stage))
            assert found.get(stage, ()) == covering, (cell.id, stage)


def test_of_our_own_matrix() -> None:
    _plainly(MATRIX.file.expectations, 1)


@settings(max_examples=60, deadline=None)
@given(told=st.lists(expectations, min_size=1, max_size=3))
def test_of_any_expectations(told: list[Expectation]) -> None:
    _plainly(tuple(told), 3)
