"""Does a checkpoint hold what its own configuration declares, and what its recipe asked for?

Each ``check_…`` looks at one thing and yields problems; none of them decides by raising. Names in a
problem are those of the file; what is missing is named canonically (:mod:`qvlfp8.structure`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qvlfp8.conformance.case import Case, of_checkpoint
from qvlfp8.conformance.files import check_both_configs, check_files
from qvlfp8.conformance.kv_cache import KV_SCALES, check_kv_scales, expected_kv_scales
from qvlfp8.conformance.linears import check_linears
from qvlfp8.conformance.problem import Finding, Problem
from qvlfp8.conformance.scope import check_scope
from qvlfp8.conformance.stored import FP8, STATIC_FP8
from qvlfp8.conformance.tensors import check_foreign, check_structure, check_tie
from qvlfp8.conformance.values import check_scale_values, check_weight_values

__all__ = [
    "FP8",
    "KV_SCALES",
    "SCALES",
    "Case",
    "Finding",
    "Problem",
    "check_all",
    "check_both_configs",
    "check_files",
    "check_foreign",
    "check_kv_scales",
    "check_linears",
    "check_scale_values",
    "check_scope",
    "check_structure",
    "check_tie",
    "check_weight_values",
    "expected_kv_scales",
    "of_checkpoint",
]

SCALES = tuple(STATIC_FP8.scales)
"""The scales beside a weight in ModelOpt's FP8."""


def check_all(case: Case, recipe: Mapping[str, Any] | None) -> Iterator[Problem]:
    """Run every check; with a recipe also those against its scope."""
    measured = recipe is not None and recipe["kv_cache"]["format"] != "fp8-cast"
    yield from check_files(case.checkpoint)
    yield from check_both_configs(case)
    yield from check_structure(case)
    yield from check_tie(case)
    yield from check_weight_values(case)
    yield from check_linears(case)
    yield from check_kv_scales(case, calibrated=measured)
    yield from check_scale_values(case)
    yield from check_foreign(case)
    if recipe is not None:
        yield from check_scope(case, recipe)
