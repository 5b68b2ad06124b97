"""What a run of vLLM is worth, from made-up answers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest

from qvlfp8.finding_kinds import KINDS
from qvlfp8.scoring import _MARKS, _REFUSALS, Bounds, Control, Scored, Stage, score

COLOURS = ("red", "blue", "green", "pink")
PER_TASK = 20


def answer(task: str, number: int, *, sight: bool) -> dict[str, Any]:
    right, other = COLOURS[number % 4], COLOURS[(number + 1) % 4]
    return {
        "id": f"{task}/{number:03}", "task": task, "sight": sight, "expected": right, "answer": right,
        "swapped_expected": other if sight else None, "swapped_answer": other if sight else None, "ids": [1],
    }  # fmt: skip


def good() -> dict[str, Any]:
    tasks = (("colour", True), ("odd", True), ("opposite", False), ("sum", False))
    return {
        "checkpoint_digest": "c", "exam_digest": "e", "options": {"door": "engine"},
        "load": {"seconds": 1.0, "memory_mb": None, "exception": None, "kv_cache_dtype": "fp8"},
        "answers": [answer(t, n, sight=s) for t, s in tasks for n in range(PER_TASK)],
        "fidelity": {
            "positions": 120, "mean_kl": 0.0001, "p99_kl": 0.001, "max_kl": 0.02, "top1_agreement": 1.0,
            "not_finite": 0,
        },
        "speed": {"seconds": 2.0, "questions": 120, "output_tokens": 400, "output_tokens_per_second": 200.0},
        "log_marks": [],
    }  # fmt: skip


def spoil(measured: dict[str, Any], task: str, count: int, *, said: str = "?") -> dict[str, Any]:
    for entry in [a for a in measured["answers"] if a["task"] == task][:count]:
        entry["answer"] = said
    return measured


def blinded(measured: dict[str, Any], *tasks: str) -> dict[str, Any]:
    for entry in measured["answers"]:
        if entry["task"] in tasks:
            entry["swapped_answer"] = entry["answer"]
    return measured


def scored(measured: Mapping[str, Any], bounds: Bounds | None = None, **named: Any) -> dict[Stage, Scored]:
    return score(measured, good(), bounds or Bounds(), **named)


def found(stage: Scored) -> list[str]:
    return [finding.id for finding in stage.findings]


def raised(stage: str, origin: str, kind: str = "KeyError", message: str = "'x'") -> dict[str, Any]:
    measured = good()
    measured["load"]["exception"] = {
        "type": kind, "message": message, "where": "a.py:1 f", "stage": stage, "origin": origin,
    }  # fmt: skip
    measured |= {"answers": [], "fidelity": None, "speed": None}
    return measured


def test_one_that_answers_as_bf16_does_passes_every_stage() -> None:
    stages = scored(good())
    assert list(stages) == ["load", "text", "image", "fidelity", "speed"]
    assert {stage.status for stage in stages.values()} == {"pass"}
    assert not any(stage.findings for stage in stages.values())
    assert stages["image"].measured["tasks"]["colour"] == {
        "asked": 2 * PER_TASK, "accuracy": 1.0, "accuracy_bf16": 1.0, "agreement": 1.0,
    }  # fmt: skip
    assert stages["speed"].measured["of_bf16"] == 1.0


def test_the_bf16_model_is_held_against_what_is_right() -> None:
    assert {s: v.status for s, v in score(good(), None, Bounds()).items()} == {
        "load": "pass", "text": "pass", "image": "pass", "speed": "pass",
    }  # fmt: skip
    weak = score(spoil(good(), "sum", 3), None, Bounds())
    assert found(weak["text"]) == ["speaks-wrongly"]


def test_the_same_answers_to_other_pictures_are_blindness_whatever_they_are_worth() -> None:
    image = scored(blinded(good(), "colour", "odd"))["image"]
    assert (image.status, found(image)) == ("fail", ["blind"])
    assert image.measured["changed"] == 0.0
    assert "0% of the answers change with the picture; 100% should" in image.findings[0].evidence


def test_blindness_in_one_task_is_seen_behind_the_others() -> None:
    image = scored(blinded(good(), "odd"), Bounds(image_drop=0.6))["image"]
    assert found(image) == ["sees-wrongly"]
    assert image.findings[0].evidence == ("odd: 0% of the answers change with the picture; 100% should",)


def test_answers_that_depend_on_the_picture_and_are_wrong() -> None:
    stages = scored(spoil(good(), "colour", 10))
    assert found(stages["image"]) == ["sees-wrongly"]
    assert stages["image"].findings[0].evidence == ("colour: 75% right, BF16 100%, at least 90% must be",)
    assert stages["text"].status == "pass"


@pytest.mark.parametrize(("wrong", "status"), [(2, "pass"), (3, "fail")])
def test_a_task_may_lose_as_much_as_the_bound_says(wrong: int, status: str) -> None:
    assert scored(spoil(good(), "sum", wrong))["text"].status == status


def test_what_bf16_cannot_do_either_is_still_wrong() -> None:
    weak = spoil(good(), "sum", PER_TASK)
    assert found(score(weak, weak, Bounds())["text"]) == ["speaks-wrongly"]


def test_without_known_answers_bf16_is_the_measure_and_it_is_said() -> None:
    odd = spoil(good(), "colour", PER_TASK, said="Red, I think.")
    stages = score(odd, odd, Bounds(), known_answers=False)
    assert {stage.status for stage in stages.values()} == {"pass"}
    assert found(stages["image"]) == found(stages["text"]) == ["answers-unknown"]
    other = scored(spoil(good(), "sum", 5), known_answers=False)
    assert found(other["text"]) == ["answers-unknown", "speaks-wrongly"]
    blind = score(blinded(copy.deepcopy(odd), "colour", "odd"), odd, Bounds(), known_answers=False)
    assert found(blind["image"]) == ["answers-unknown", "blind"]


def test_divergence_beyond_each_bound_is_one_finding_with_all_reasons() -> None:
    measured = good()
    measured["fidelity"] |= {"mean_kl": 0.3, "p99_kl": 2.0, "top1_agreement": 0.5}
    fidelity = scored(measured)["fidelity"]
    assert found(fidelity) == ["diverges"]
    assert len(fidelity.findings[0].evidence) == 3
    assert scored(measured, Bounds(mean_kl=1.0, p99_kl=3.0, top1_agreement=0.4))["fidelity"].status == "pass"


def test_what_is_not_finite_is_a_finding_of_its_own() -> None:
    measured = good()
    measured["fidelity"] |= {"not_finite": 120, "mean_kl": None, "p99_kl": None, "top1_agreement": None}
    assert found(scored(measured)["fidelity"]) == ["not-finite-output"]


def test_speed_fails_only_where_a_bound_is_given() -> None:
    measured = good()
    measured["speed"]["output_tokens_per_second"] = 100.0
    assert scored(measured)["speed"].status == "pass"
    assert found(scored(measured, Bounds(least_speed=0.8))["speed"]) == ["slower-than-bf16"]


@pytest.mark.parametrize(
    ("kind", "message", "finding"),
    [
        ("KeyError", "'blocks.0.attn.k_proj.k_scale'", "stray-vision-kv-scale"),
        ("ValueError", "no module or parameter named 'blocks.0.attn.k_proj' in X", "stray-vision-kv-scale"),
        ("KeyError", "'layers.0.mlp.gate.weight'", "unexpected-tensor"),
        (
            "TypeError",
            "load() takes 2 positional arguments but 3 were given",
            "language-kv-scale-unsupported",
        ),
        ("RuntimeError", "mat2 shape (160x3420) must be divisible by 16", "kernel-refused"),
        ("AssertionError", "Attempted to load weight of shape (3,)", "shape-mismatch"),
        ("OSError", "Can't load image processor: preprocessor_config.json", "missing-file"),
        ("ValidationError", "1 validation error for ModelConfig", "config-rejected"),
        ("RuntimeError", "who knows", "loader-error"),
    ],
)
def test_a_checkpoint_that_is_refused(kind: str, message: str, finding: str) -> None:
    stages = scored(raised("load", "checkpoint", kind, message))
    assert (stages["load"].status, found(stages["load"])) == ("fail", [finding])
    assert {stages[stage].status for stage in ("text", "image", "fidelity", "speed")} == {"blocked"}


def test_the_machines_fault_is_an_error_and_never_a_fail() -> None:
    stages = scored(raised("load", "environment", "OutOfMemoryError", "CUDA out of memory"))
    assert (stages["load"].status, found(stages["load"])) == ("error", ["environment-fault"])
    later = scored(raised("generate", "environment", "RuntimeError", "CUDA error"))
    assert later["load"].status == "pass"
    assert later["text"].status == later["image"].status == "error"


def test_an_exception_after_loading_fails_what_was_asked() -> None:
    stages = scored(raised("generate", "checkpoint"))
    assert stages["load"].status == "pass"
    assert found(stages["text"]) == found(stages["image"]) == ["generation-failed"]
    assert stages["speed"].status == "blocked"


def test_a_model_that_vllm_does_not_let_write_is_told_apart_from_other_exceptions() -> None:
    said = "LLM.generate() is only supported for generative models."
    stages = scored(raised("generate", "checkpoint", "ValueError", said))
    assert found(stages["text"]) == found(stages["image"]) == ["not-generative"]


def test_where_bf16_gave_no_answers_right_ones_are_the_measure() -> None:
    stages = score(good(), raised("load", "checkpoint"), Bounds())
    assert stages["text"].status == stages["image"].status == "pass"
    assert stages["text"].measured["tasks"]["sum"]["accuracy_bf16"] is None
    assert stages["fidelity"].status == "blocked"


def test_two_different_exams_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="same questions"):
        scored(good() | {"exam_digest": "other"})


def test_marks_of_the_log_are_notes() -> None:
    measured = good() | {"log_marks": ["Using KV cache scaling factor 1.0 for fp8_e4m3."]}
    load = scored(measured)["load"]
    assert (load.status, found(load)) == ("pass", ["kv-scale-one"])


def test_every_id_that_can_be_given_is_declared() -> None:
    assert {kind for _, kind in (*_REFUSALS, *_MARKS)} <= set(KINDS)
    assert all(KINDS[kind].severity == "note" for _, kind in _MARKS)


@pytest.mark.parametrize(("sight", "stage"), [(True, "image"), (False, "text")])
def test_a_stage_that_was_asked_nothing_does_not_pass(sight: bool, stage: Stage) -> None:
    measured = good()
    measured["answers"] = [entry for entry in measured["answers"] if entry["sight"] is not sight]
    assert scored(measured)[stage].status == "blocked"


def test_a_fidelity_of_no_token_does_not_pass() -> None:
    measured = good()
    measured["fidelity"] |= {"positions": 0, "mean_kl": None, "p99_kl": None, "top1_agreement": None}
    assert scored(measured)["fidelity"].status == "blocked"


def test_answers_that_hardly_ever_change_with_the_picture_are_blind() -> None:
    measured = blinded(good(), "colour", "odd")
    entry = next(entry for entry in measured["answers"] if entry["sight"])
    entry["swapped_answer"] = entry["swapped_expected"]
    assert found(scored(measured)["image"]) == ["blind"]


@pytest.mark.parametrize("name", ["mean_kl", "p99_kl", "top1_agreement"])
def test_what_is_no_number_is_beyond_every_bound(name: str) -> None:
    measured = good()
    measured["fidelity"] |= {name: float("nan")}
    assert found(scored(measured)["fidelity"]) == ["diverges"]


def test_what_is_judged_once_is_judged_anew_by_other_bounds_and_of_other_answers() -> None:
    control, spoilt = Control(good()), spoil(good(), "sum", 5)
    strict, lax = Bounds(text_drop=0.05), Bounds(text_drop=0.9)
    for _ in range(2):
        assert found(scored(spoilt, strict, control=control)["text"]) == ["speaks-wrongly"]
        assert found(scored(spoilt, lax, control=control)["text"]) == []
        assert found(scored(good(), strict, control=control)["text"]) == []
        assert "answers-unknown" in found(scored(spoilt, lax, control=control, known_answers=False)["text"])
