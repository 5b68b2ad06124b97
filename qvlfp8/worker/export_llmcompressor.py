"""llm-compressor as a producer: a scheme, names that it ignores, compressed-tensors' format.

It goes by names and does not complain of one that matches nothing: transformers 4.52 renamed the vision tower
from ``visual`` to ``model.visual``, and a checkpoint made by an older pattern has a quantized tower
(llm-compressor#2641). So both spellings are given, and the live model is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qvlfp8.quant_cfg import PARTS, NotExpressibleError, Part, Recipe, Scope
from qvlfp8.worker import audit
from qvlfp8.worker.audit import Audit
from qvlfp8.worker.producer import Batches

_IGNORED: Mapping[Part, tuple[str, ...]] = {
    "vision": ("re:visual.*", "re:model.visual.*"),
    "language_model": ("re:model.layers.*", "re:model.language_model.*", "re:language_model.*"),
}
"""Names before and since transformers 4.52."""


def versions() -> dict[str, str]:
    """Import llm-compressor, and what of it is imported late."""
    import compressed_tensors
    import llmcompressor
    import llmcompressor.modifiers.quantization

    return {
        "llmcompressor": llmcompressor.__version__,
        "compressed-tensors": compressed_tensors.__version__,
    }


def configuration(recipe: Recipe, places: Mapping[Scope, str]) -> dict[str, Any]:
    """Give the arguments of ``QuantizationModifier``."""
    del places
    if recipe["format"] != "fp8-dynamic":
        raise NotExpressibleError(f"format {recipe['format']!r} is none that is asked of llm-compressor here")
    if "vision_attention" in recipe["scope"] or recipe["kv_cache"]["format"] != "none":
        raise NotExpressibleError("of llm-compressor whole parts are asked, and no quantized KV cache")
    left = [pattern for part in PARTS if part not in recipe["scope"] for pattern in _IGNORED[part]]
    return {"targets": "Linear", "scheme": "FP8_DYNAMIC", "ignore": ["re:.*lm_head", *left]}


def quantize(model: Any, configuration: Mapping[str, Any], batches: Batches) -> None:
    """Quantize weights; with dynamic activations nothing is calibrated."""
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    del batches
    oneshot(model=model, recipe=QuantizationModifier(**configuration))


def check(model: Any, recipe: Recipe, places: Mapping[Scope, str]) -> Audit:
    """Compare the modules that have a scheme, and scales that are finite and above zero, with the recipe."""
    import torch

    linears = {part: audit.linears(model, places[part]) for part in PARTS}
    audit.refuse_empty(recipe, recipe["scope"], linears, "linear layer")
    expected = {name for part in PARTS if part in recipe["scope"] for name in linears[part]}
    modules = dict(model.named_modules())
    enabled = {name for name, module in modules.items() if _is_dynamic_fp8(module)}
    others = {name for name, module in modules.items() if getattr(module, "quantization_scheme", None)}
    scaled = {
        name
        for name in enabled
        if bool((torch.isfinite(scale := modules[name].weight_scale.float()) & (scale > 0)).all())
    }
    audit.refuse_differences(
        recipe,
        {
            "of its linear layers are not FP8 with dynamic activations": expected - enabled,
            "modules that it does not name are quantized": others - expected,
            "of its linear layers have a scale that is no number above zero": (expected & enabled) - scaled,
        },
    )
    return Audit(
        modules={part: [len(linears[part] & scaled), len(linears[part])] for part in PARTS},
        kv_attention=dict.fromkeys(PARTS, 0),
    )


def _is_dynamic_fp8(module: Any) -> bool:
    """Whether its weights have a scale a row, and its activations one a token, found while serving."""
    scheme = getattr(module, "quantization_scheme", None)
    weights, inputs = getattr(scheme, "weights", None), getattr(scheme, "input_activations", None)
    return (
        (_words(weights), _words(inputs)) == (("float", 8, "channel", False), ("float", 8, "token", True))
        and getattr(scheme, "output_activations", None) is None
    )  # fmt: skip


def _words(arguments: Any) -> tuple[object, ...]:
    """Type, bits, strategy and whether it is dynamic, as plain values."""
    found = (getattr(arguments, name, None) for name in ("type", "num_bits", "strategy", "dynamic"))
    return tuple(getattr(value, "value", value) for value in found)


def save(model: Any, folder: Path) -> None:
    """Write the weights compressed, in FP8."""
    model.save_pretrained(folder, save_compressed=True)
