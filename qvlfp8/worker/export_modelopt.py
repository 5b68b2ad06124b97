"""NVIDIA ModelOpt as a producer: a quantizer configuration, calibration by a forward loop, its own export."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qvlfp8.quant_cfg import Recipe, Scope, quant_cfg
from qvlfp8.worker import audit
from qvlfp8.worker.audit import Audit
from qvlfp8.worker.modelopt_patches import pack_nvfp4_without_a_gpu
from qvlfp8.worker.producer import Batches
from qvlfp8.worker.protocol import progress

SHARD = "1GB"
"""The largest file of a checkpoint: several are hashed and copied at once, and few bytes wait in memory."""


def versions() -> dict[str, str]:
    """Import ModelOpt, and what of it is imported late."""
    import modelopt
    import modelopt.torch.export
    import modelopt.torch.quantization

    return {"modelopt": modelopt.__version__}


def configuration(recipe: Recipe, places: Mapping[Scope, str]) -> dict[str, Any]:
    """Give the argument of ``modelopt.torch.quantization.quantize``: see :mod:`qvlfp8.quant_cfg`."""
    import modelopt

    if recipe["format"] == "nvfp4":
        pack_nvfp4_without_a_gpu()
    return quant_cfg(recipe, modelopt.__version__, places)


def quantize(model: Any, configuration: Mapping[str, Any], batches: Batches) -> None:
    """Quantize, with a forward loop through the whole model."""
    import modelopt.torch.quantization as mtq
    import torch

    def forward_loop(whole_model: Any) -> None:
        for done, batch in enumerate(batches, 1):
            whole_model(**batch, use_cache=False)
            progress("calibrating", done, len(batches))

    with torch.no_grad():
        mtq.quantize(model, configuration, forward_loop)


def check(model: Any, recipe: Recipe, places: Mapping[Scope, str]) -> Audit:
    """Compare enabled and calibrated quantizers with the recipe."""
    return audit.check(model, recipe, places)


def save(model: Any, folder: Path) -> None:
    """Export as ModelOpt does for the hub's loaders and vLLM."""
    import torch
    from modelopt.torch.export import export_hf_checkpoint

    with torch.inference_mode():
        export_hf_checkpoint(model, export_dir=folder, **_in_shards(export_hf_checkpoint))


def _in_shards(export: Any) -> dict[str, str]:
    """The argument that bounds a file, where this ModelOpt has one: the host's memory holds one at a time."""
    return {"max_shard_size": SHARD} if "max_shard_size" in inspect.signature(export).parameters else {}
