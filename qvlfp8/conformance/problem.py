"""One thing that is wrong with a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qvlfp8.tensorfile import Tensor

Finding = Literal[
    "config-contradicts-config",
    "config-contradicts-tensors",
    "dtype-mismatch",
    "file-invalid",
    "file-missing",
    "missing-tensor",
    "quantized-otherwise",
    "quantized-outside-scope",
    "scale-missing",
    "scale-not-finite",
    "scale-not-positive",
    "scope-not-quantized",
    "shape-mismatch",
    "stray-vision-kv-scale",
    "tie-contradicts-tensors",
    "unexpected-tensor",
    "weight-not-finite",
    "weight-all-zero",
]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong: a finding's id, the tensor, module or file, and a sentence."""

    finding: Finding
    subject: str
    detail: str


def missing_scale(name: str, why: str) -> Problem:
    """Say that a scale is not there; ``why`` it should be."""
    return Problem(finding="scale-missing", subject=name, detail=f"{why}, its scale is not there")


def wrong_dtype(tensor: Tensor, expected: str) -> Problem:
    """Say that a tensor is of another type."""
    return Problem(
        finding="dtype-mismatch",
        subject=tensor.name,
        detail=f"it is {tensor.dtype}, {expected} is expected",
    )


def wrong_shape(tensor: Tensor, expected: str) -> Problem:
    """Say that a tensor has another shape; ``expected`` in words."""
    return Problem(
        finding="shape-mismatch",
        subject=tensor.name,
        detail=f"it is {list(tensor.shape)}; {expected}",
    )
