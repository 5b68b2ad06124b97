"""What a run of vLLM measures, as far as verdicts and pages read it: types of a committed record's fields.

A record is a file that somebody may have edited. What is read of it is held against these once, where it
is read, so that nothing behind has to ask again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

__all__ = ["fault_of", "first_fault"]


class _Part(BaseModel):
    """More may be measured than is read; what is read has just its type."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, defer_build=True)


class _Answer(_Part):
    id: str
    task: str
    sight: bool
    expected: str
    answer: str
    swapped_expected: str | None
    swapped_answer: str | None


class _Raised(_Part):
    type: str
    message: str
    origin: str
    stage: Literal["load", "generate"]
    where: str | None


class _Load(_Part):
    exception: _Raised | None
    seconds: float | None = None
    memory_mb: float | None = None
    kv_cache_dtype: str | None = None
    quantization: str | None = None


class _Fidelity(_Part):
    not_finite: int
    mean_kl: float | None
    p99_kl: float | None
    top1_agreement: float | None


class _Speed(_Part):
    output_tokens_per_second: float


class _Run(_Part):
    answers: list[_Answer]
    exam_digest: str
    fidelity: _Fidelity | None
    load: _Load
    log_marks: list[str]
    options: dict[str, Any]
    speed: _Speed | None

    @model_validator(mode="after")
    def _has_a_speed(self) -> _Run:
        if self.speed is None and self.load.exception is None:
            raise PydanticCustomError("no-speed", "it raised nothing, and speed is none")
        return self


def first_fault(error: ValidationError, within: str = "") -> str:
    """The first thing that is wrong, with its field: ``measured.load.seconds: Input should be …``."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join((*([within] if within else []), *map(str, first["loc"])))
    return f"{field}: {first['msg']}" if field else str(first["msg"])


def fault_of(measured: Mapping[str, Any], *, but_answers: bool = False) -> str | None:
    """What of a run's measurements is missing or of another type; None if they are whole.

    Args:
        measured: what the run measured.
        but_answers: the answers are known to be whole.
    """
    try:
        _Run.model_validate({**measured, "answers": []} if but_answers else measured)
    except ValidationError as error:
        return first_fault(error, "measured")
    return None
