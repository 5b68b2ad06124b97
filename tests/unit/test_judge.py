"""What the machine did wrong is never the checkpoint's failure, and nothing passes without a result."""

from __future__ import annotations

from typing import Any

import pytest

from qvlfp8.engine import Exit
from qvlfp8.judge import judge
from qvlfp8.results import RecordedStage

STAGES: tuple[RecordedStage, ...] = ("quantize", "inspect", "preflight", "generate")


def raised(kind: str, message: str = "text") -> dict[str, Any]:
    return {"outcome": "raised", "failure": {"kind": kind, "message": message, "where": None}}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("ended", "kind"),
    [
        (Exit(code=0), "crash"),
        (Exit(code=3), "crash"),
        (Exit(code=-9), "signal"),
        (Exit(code=-9, timed_out=True), "timeout"),
        (Exit(code=-9, out_of_memory=True), "out-of-memory"),
    ],
)
def test_without_a_result_a_stage_is_an_error(stage: RecordedStage, ended: Exit, kind: str) -> None:
    verdict = judge(stage, None, ended, 60.0)
    assert verdict.status == "error"
    assert verdict.fault is not None
    assert verdict.fault.kind == kind


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "result",
    [
        raised("MemoryError"),
        raised("OutOfMemoryError", "CUDA out of memory"),
        raised("OSError"),
        raised("ImportError"),
        raised("SafetensorError", "I/O error: No space left on device (os error 28)"),
        {**raised("timeout"), "outcome": "timeout"},
        {**raised("SIGSEGV"), "outcome": "signal"},
    ],
)
def test_the_machines_faults_are_errors(stage: RecordedStage, result: dict[str, Any]) -> None:
    assert judge(stage, result, Exit(code=0), 60.0).status == "error"


def test_what_quantization_raises_is_its_failure_and_what_our_checks_raise_is_not_the_checkpoints() -> None:
    result = raised("ValueError", "cannot export")
    verdict = judge("quantize", result, Exit(code=0), 60.0)
    assert verdict.status == "fail"
    assert [f.id for f in verdict.findings] == ["quantize-raised"]
    assert judge("inspect", result, Exit(code=0), 60.0).status == "error"
    assert judge("preflight", result, Exit(code=0), 60.0).status == "error"


@pytest.mark.parametrize("stage", STAGES)
def test_a_refusal_is_a_failure_with_its_kind(stage: RecordedStage) -> None:
    result = {"outcome": "refused", "failure": {"kind": "unknown-model", "message": "no", "where": None}}
    verdict = judge(stage, result, Exit(code=0), 60.0)
    assert verdict.status == "fail"
    assert [f.id for f in verdict.findings] == ["unknown-model"]


def test_a_note_does_not_fail_and_a_problem_does() -> None:
    good = {"outcome": "done", "measured": {"problems": [], "counts": {}}}
    assert judge("inspect", good, Exit(code=0), 60.0).status == "pass"
    problem = {"finding": "scale-missing", "subject": "a", "detail": "b"}
    bad = {"outcome": "done", "measured": {"problems": [problem], "counts": {"scale-missing": 1}}}
    assert judge("inspect", bad, Exit(code=0), 60.0).status == "fail"
