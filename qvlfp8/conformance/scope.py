"""Whether what a recipe names is quantized, in its format, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qvlfp8.conformance.case import Case
from qvlfp8.conformance.problem import Finding, Problem
from qvlfp8.declared import Declaration
from qvlfp8.structure import Linear


def check_scope(case: Case, recipe: Mapping[str, Any]) -> Iterator[Problem]:
    """Check that what the recipe names is quantized as it says, and nothing else."""
    yield from _check_format(case.declared, recipe["format"])
    places: dict[str, list[Linear]] = {"language_model": [], "vision": [], "vision_attention": [], "head": []}
    divided = "vision_attention" in recipe["scope"]
    for linear in case.model.linears.values():
        inside = divided and linear.part == "vision" and ".attn." in linear.name
        places["vision_attention" if inside else linear.part].append(linear)
    for place, linears in places.items():
        if place in recipe["scope"]:
            others = [linear.name for linear in linears if not case.is_quantized(linear)]
            yield from _outside("scope-not-quantized", place, others, linears, f"not {case.stored.title}")
        else:
            found = [linear.name for linear in linears if case.is_quantized(linear)]
            yield from _outside("quantized-outside-scope", place, found, linears, case.stored.title)
    wanted = recipe["kv_cache"]["format"] != "none"
    if wanted != case.kv_fp8:
        yield Problem(
            finding="scope-not-quantized" if wanted else "quantized-outside-scope",
            subject="kv_cache",
            detail=f"the recipe says {recipe['kv_cache']['format']}, the configuration does not",
        )


def _check_format(declared: Declaration, wanted: str) -> Iterator[Problem]:
    found = _format(declared)
    if found not in {None, wanted}:
        detail = f"the recipe says {wanted}, the configuration {found}"
        yield Problem(finding="quantized-otherwise", subject="format", detail=detail)


def _format(declared: Declaration) -> str | None:
    """The format in a recipe's words; None where no linear module is declared quantized."""
    match declared.method:
        case "none" | "modelopt-kv-cache-only":
            return None
        case "modelopt-fp8":
            return "fp8"
        case "modelopt-nvfp4":
            return "nvfp4"
        case "compressed-tensors-fp8" if (declared.strategy, declared.activations) == ("channel", "dynamic"):
            return "fp8-dynamic"
        case other:
            return f"{other}, scales per {declared.strategy}, activations {declared.activations}"


def _outside(
    finding: Finding, place: str, modules: Sequence[str], linears: Sequence[Linear], what: str
) -> Iterator[Problem]:
    if modules:
        detail = f"{len(modules)} of {len(linears)} linear modules are {what}, {modules[0]} first"
        yield Problem(finding=finding, subject=place, detail=detail)
