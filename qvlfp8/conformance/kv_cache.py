"""The scales of the key-value cache: the language model's alone, all or none."""

from __future__ import annotations

from collections.abc import Iterator

from qvlfp8.conformance.case import Case
from qvlfp8.conformance.problem import Problem, missing_scale
from qvlfp8.structure import Structure

KV_SCALES = ("k_proj.k_scale", "v_proj.v_scale")


def check_kv_scales(case: Case, *, calibrated: bool) -> Iterator[Problem]:
    """Check that the KV scales of the language model are all there, or none if there may be none.

    ModelOpt writes no scale for a quantizer with a constant range; vLLM then takes 1.0. So an FP8
    cache without any scale is sound unless ``calibrated`` says that the recipe measured them.
    """
    found = case.kv_scales("language_model")
    if not case.kv_fp8:
        for name in found:
            yield Problem(
                finding="config-contradicts-tensors",
                subject=case.tensors[name].name,
                detail="a KV cache scale, but the configuration has no FP8 KV cache",
            )
    elif found or calibrated:
        for name in expected_kv_scales(case.model):
            if name not in case.tensors:
                yield missing_scale(name, "the configuration has an FP8 KV cache")


def expected_kv_scales(model: Structure) -> list[str]:
    """Give the canonical names of all KV cache scales of the language model."""
    return [f"{attention}.{scale}" for attention in model.attentions for scale in KV_SCALES]
