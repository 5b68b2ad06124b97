"""Whether configuration, weight and scales of a linear module agree."""

from __future__ import annotations

from collections.abc import Iterator

from qvlfp8.conformance.case import Case
from qvlfp8.conformance.problem import Problem, missing_scale


def check_linears(case: Case) -> Iterator[Problem]:
    """Check that configuration, weight and scales of every linear module agree."""
    for linear in case.model.linears.values():
        weight = case.tensors.get(f"{linear.name}.weight")
        if weight is None:
            continue
        quantized, declared = case.is_quantized(linear), case.declared_quantized(linear)
        if quantized != declared:
            says = "quantizes the module" if declared else "leaves the module unquantized"
            yield Problem(
                finding="config-contradicts-tensors",
                subject=weight.name,
                detail=f"the configuration {says}, the weight is {weight.dtype}",
            )
        for scale in case.stored.scales:
            found = case.tensors.get(f"{linear.name}.{scale}")
            if quantized and found is None:
                yield missing_scale(f"{linear.name}.{scale}", f"the weight is {case.stored.title}")
            if not quantized and found is not None:
                yield Problem(
                    finding="unexpected-tensor",
                    subject=found.name,
                    detail=f"a scale, but the weight is {weight.dtype}",
                )
