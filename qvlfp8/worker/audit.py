"""Which modules of a live model really are quantized, held against what the recipe says.

ModelOpt goes by name patterns and does not complain of one that matches nothing, or too much. So
the model itself is asked, after calibration and before the export. What is expected comes from
module types and positions, not from the patterns that ModelOpt was given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from qvlfp8.quant_cfg import PARTS, Part, Recipe
from qvlfp8.worker.protocol import Refused

_CLASSES: Mapping[str, Part] = MappingProxyType(
    {
        "Qwen2_5_VLTextModel": "language_model",
        "Qwen2_5_VisionTransformerPretrainedModel": "vision",
    }
)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What was found, for each part of the model.

    ``modules`` counts linear layers, [quantized, all]; ``kv_attention`` attentions with scales for
    keys and values.
    """

    modules: dict[Part, list[int]]
    kv_attention: dict[Part, int]


def part_prefixes(model: Any) -> dict[Part, str]:
    """Find the dotted name of each part of a loaded model, a dot at its end (``model.visual.``).

    Found by class, because transformers 4.52 moved the names. Only before quantization: that
    replaces classes.

    Raises:
        Refused: ``unknown-model`` if this transformers calls a part by a class not known here.
    """
    found = {
        _CLASSES[type(module).__name__]: f"{name}."
        for name, module in model.named_modules()
        if type(module).__name__ in _CLASSES
    }
    if absent := [part for part in PARTS if part not in found]:
        raise Refused(
            "unknown-model",
            f"no {' and no '.join(absent)} in {type(model).__name__}: none of its modules is "
            f"a {' or a '.join(_CLASSES)}",
        )
    return found


def check(model: Any, recipe: Recipe, prefixes: Mapping[Part, str]) -> Audit:
    """Compare the model's enabled and calibrated quantizers with the recipe.

    Args:
        model: the model after ``modelopt.torch.quantization.quantize``.
        recipe: what it was quantized by.
        prefixes: from :func:`part_prefixes`.

    Raises:
        Refused: ``recipe-matches-no-module`` if a part of the recipe has nothing to quantize,
            ``recipe-not-honoured`` if a quantizer is missing, uncalibrated, or one too many.
    """
    linears = {part: _linears(model, prefixes[part]) for part in PARTS}
    attentions = {part: _attentions(model, prefixes[part]) for part in PARTS}
    _refuse_empty(recipe, recipe["scope"], linears, "linear layer")
    _refuse_empty(recipe, recipe["kv_cache"]["attention"], attentions, "attention")
    expected = {
        f"{name}.{kind}_quantizer"
        for part in recipe["scope"]
        for name in linears[part]
        for kind in ("weight", "input")
    } | {
        f"{name}.{kind}_bmm_quantizer"
        for part in recipe["kv_cache"]["attention"]
        for name in attentions[part]
        for kind in ("k", "v")
    }
    enabled, calibrated = _quantizers(model)
    _refuse_differences(recipe, expected, enabled, calibrated)
    return Audit(
        modules={
            part: [sum(f"{name}.weight_quantizer" in calibrated for name in names), len(names)]
            for part, names in linears.items()
        },
        kv_attention={
            part: sum(f"{name}.k_bmm_quantizer" in calibrated for name in names)
            for part, names in attentions.items()
        },
    )


def _linears(model: Any, prefix: str) -> set[str]:
    from torch import nn

    return {
        name
        for name, module in model.named_modules()
        if name.startswith(prefix) and isinstance(module, nn.Linear)
    }


def _attentions(model: Any, prefix: str) -> set[str]:
    """Modules to which ModelOpt attached quantizers for keys and values."""
    return {
        name
        for name, module in model.named_modules()
        if name.startswith(prefix) and hasattr(module, "k_bmm_quantizer")
    }


def _quantizers(model: Any) -> tuple[set[str], set[str]]:
    """Names of the enabled quantizers, and of those that calibration gave a usable maximum."""
    import torch
    from modelopt.torch.quantization.nn import TensorQuantizer

    enabled, calibrated = set(), set()
    for name, module in model.named_modules():
        if isinstance(module, TensorQuantizer) and module.is_enabled:
            enabled.add(name)
            amax = getattr(module, "_amax", None)
            if amax is not None and bool((torch.isfinite(amax) & (amax > 0)).all()):
                calibrated.add(name)
    return enabled, calibrated


def _refuse_empty(recipe: Recipe, parts: Sequence[Part], found: Mapping[Part, set[str]], what: str) -> None:
    if empty := [part for part in parts if not found[part]]:
        raise Refused(
            "recipe-matches-no-module",
            f"recipe {recipe['id']} names {' and '.join(empty)}, "
            f"where this model has no {what} that ModelOpt can quantize",
        )


def _refuse_differences(recipe: Recipe, expected: set[str], enabled: set[str], calibrated: set[str]) -> None:
    modality = recipe["calibration"]["modality"]
    differences = {
        "of its quantizers are off": expected - enabled,
        "quantizers that it does not name are on": enabled - expected,
        f"of its quantizers saw no value while calibrating on {modality}": (
            (expected & enabled) - calibrated
        ),
    }
    complaints = [
        f"{len(names)} {what} (first: {min(names)})" for what, names in differences.items() if names
    ]
    if complaints:
        raise Refused("recipe-not-honoured", f"recipe {recipe['id']}: {'; '.join(complaints)}")
