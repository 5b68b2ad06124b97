"""The proof behind a mark: both pictures of a question, wrong answers first, no text of a model is markup."""

from __future__ import annotations

from typing import Any

from qvlfp8.report.proof import as_markdown, shown


def answer(name: str, said: str, other: str, *, sight: bool = True) -> dict[str, Any]:
    return {
        "id": name, "sight": sight, "expected": "a", "answer": said,
        "swapped_expected": "b", "swapped_answer": other,
    }  # fmt: skip


RIGHT = ("a", "b")
NAMES = ("colour/000", "colour/001", "shape/000", "digit/000")


def test_wrong_answers_come_first_of_different_tasks_each_with_both_pictures() -> None:
    baseline = {"answers": [answer(name, *RIGHT) for name in NAMES]}
    said = {"colour/000": ("a", "a"), "colour/001": ("c", "c")}
    measured = {"answers": [answer(name, *said.get(name, RIGHT)) for name in NAMES]}
    rows = shown(measured, baseline, 2)
    assert [(row.picture, row.right, row.answer) for row in rows] == [
        ("colour-001.png", "a", "c"),
        ("colour-001-other.png", "b", "c"),
        ("shape-000.png", "a", "a"),
        ("shape-000-other.png", "b", "b"),
    ]


def test_what_the_unquantized_model_gets_wrong_proves_nothing() -> None:
    baseline = {"answers": [answer("colour/000", "a", "c"), answer("sum/000", *RIGHT, sight=False)]}
    assert shown({"answers": baseline["answers"]}, baseline, 4) == ()


def test_what_a_model_wrote_cannot_end_its_cell_or_become_markup() -> None:
    baseline = {"answers": [answer("colour/000", *RIGHT)]}
    measured = {"answers": [answer("colour/000", "|<b>*x*\n", "")]}
    _, _, first, second = as_markdown(
        shown(measured, baseline, 1), {"colour/000": "What?"}, "pictures"
    ).splitlines()
    assert first.endswith("| a | \\|&lt;b&gt;\\*x\\*\N{REPLACEMENT CHARACTER} |")
    assert second == "| ![colour/000](pictures/colour-000-other.png) | What? | b | b | (nothing) |"
