from __future__ import annotations

from pathlib import Path

import pytest

from bench import paper

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_records_say() -> None:
    committed = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert paper.page() == committed, "run `python -m bench.paper > docs/scale.md`"


def test_the_hours_follow_from_what_is_assumed() -> None:
    half, same = paper.page(paper.Assumed(gpus=32)), paper.page()
    assert "/ 32 GPUs" in half
    hours = [float(text.split("**")[1].split(" hours")[0]) for text in (half, same)]
    assert hours[0] == pytest.approx(2 * hours[1], abs=0.1)


def test_every_assumption_has_its_reason() -> None:
    assert set(paper.WHY) == set(paper.Assumed.__dataclass_fields__)
