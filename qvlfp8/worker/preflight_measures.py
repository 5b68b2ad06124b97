"""What a load did to a vLLM model, as JSON: modules in FP8, and lists of what went where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qvlfp8.checkpoint import Checkpoint
from qvlfp8.worker.write_watch import Cover, Target, WriteWatch

if TYPE_CHECKING:
    import torch

__all__ = ["describe_load", "describe_model"]


def describe_model(model: torch.nn.Module) -> dict[str, Any]:
    """How many parameters, and how many linear modules of each side vLLM built in FP8."""
    import torch
    from vllm.model_executor.layers.linear import LinearBase

    names = ("vision", "language_model", "vision_total", "language_model_total")
    modules = dict.fromkeys(names, 0)
    for name, module in model.named_modules():
        if not isinstance(module, LinearBase):
            continue
        side = "vision" if name.startswith("visual.") else "language_model"
        modules[f"{side}_total"] += 1
        weight = getattr(module, "weight", None)
        modules[side] += weight is not None and weight.dtype == torch.float8_e4m3fn
    return {"parameters": sum(1 for _ in model.named_parameters()), "fp8_modules": modules}


def _defaulted_scales(model: torch.nn.Module) -> set[str]:
    """Parameters that vLLM fills in itself when a checkpoint has none: those of its KV cache method."""
    from vllm.model_executor.layers.quantization.kv_cache import BaseKVCacheMethod

    return {
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if isinstance(getattr(module, "quant_method", None), BaseKVCacheMethod)
        for parameter, _ in module.named_parameters(recurse=False)
    }


def describe_load(model: torch.nn.Module, watch: WriteWatch, checkpoint: Checkpoint) -> dict[str, Any]:
    """What was written, in part or never, what was converted, cut or dropped, and the KV scales."""
    optional = _defaulted_scales(model)
    parameters = [target for target in watch.targets.values() if target.is_parameter]
    untouched = [target.name for target in parameters if target.written.touched == 0]
    partial = [t for t in parameters if 0 < t.written.touched < t.written.elements]
    scales = [name for name in checkpoint.tensors if name.endswith((".k_scale", ".v_scale"))]
    lists: dict[str, list[Any]] = {
        "never_loaded": sorted(name for name in untouched if name not in optional),
        "partly_written": [_extent(t.name, t.written) for t in partial if not _is_fused_scale(t)],
        "fused_scales": [_extent(t.name, t.written) for t in partial if _is_fused_scale(t)],
        "defaulted": sorted(name for name in untouched if name in optional),
        "multiply_written": [t.name for t in parameters if t.written.repeated],
        "casts": sorted(_pairs(watch.casts), key=lambda cast: "float8" not in str(cast)),
        "reshapes": _pairs(watch.reshapes),
        "truncated": [
            _extent(name, cover) for name, cover in watch.read.items() if cover.touched < cover.elements
        ],
        "dropped": sorted(set(checkpoint.tensors) - set(watch.read)),
    }
    return {
        **lists,
        "kv_scales": {
            "in_checkpoint": len(scales),
            "written": sum(name in watch.read for name in scales),
            "unpaired": _unpaired(untouched, optional),
        },
    }


def _unpaired(untouched: list[str], optional: set[str]) -> list[str]:
    """KV cache scales without a tensor beside one (of K or V of the same layer) that has one."""
    twins = {".k_scale": ".v_scale", ".v_scale": ".k_scale"}
    missing = [name for name in untouched if name in optional and name[-8:] in twins]
    return sorted(name for name in missing if name[:-8] + twins[name[-8:]] not in missing)


def _is_fused_scale(target: Target) -> bool:
    """A scale with one entry a shard, of which a tensor of the same name filled one."""
    (source, *others) = target.sources
    return (
        not others
        and target.written.touched == 1
        and target.name.endswith("_scale")
        and source.endswith(target.name.removeprefix("language_model."))
    )


def _extent(name: str, cover: Cover) -> dict[str, Any]:
    return {"name": name, "touched": cover.touched, "total": cover.elements}


def _pairs(changes: Mapping[tuple[str, str], tuple[Any, Any]]) -> list[dict[str, Any]]:
    return [
        {"tensor": tensor, "parameter": parameter, "from": old, "to": new}
        for (tensor, parameter), (old, new) in changes.items()
    ]
