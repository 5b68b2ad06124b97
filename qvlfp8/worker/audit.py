"""Which modules of a live model really are quantized, held against what the recipe says.

Producers go by name patterns and do not complain of one that matches nothing, or too much. So
the model itself is asked, after calibration and before the export. What is expected comes from
module types and positions, not from the patterns that they were given. :func:`check` is for ModelOpt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from qvlfp8.quant_cfg import PARTS, Part, Recipe, Scope
from qvlfp8.worker.protocol import Refused


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What was found, for each part of the model.

    ``modules`` counts linear layers, [quantized, all]; ``kv_attention`` attentions with scales for
    keys and values.
    """

    modules: dict[Part, list[int]]
    kv_attention: dict[Part, int]


def places(model: Any) -> dict[Scope, str]:
    """Find where each part of a loaded vision-language model is.

    The beginning of the dotted names of its modules, a dot at its end, as a pattern of :mod:`fnmatch`:
    ``model.visual.``, ``model.visual.blocks.*.attn.``. By structure, because names differ between
    families and releases of transformers: a part is the topmost module that was built from its part of
    the configuration, and its attentions are what ModelOpt takes for one, classes called ``…Attention``.
    Only before quantization: that replaces classes.

    Raises:
        Refused: ``unknown-model`` if the model has no such part, or attentions in several kinds of places.
    """
    configs = {"language_model": model.config.text_config, "vision": model.config.vision_config}
    found: dict[Scope, str] = {}
    for part in PARTS:
        built = [
            name
            for name, module in model.named_modules()
            if type(getattr(module, "config", None)) is type(configs[part])
        ]
        if not built:
            config = type(configs[part]).__name__
            raise Refused(
                "unknown-model",
                f"no {part} in {type(model).__name__}: no module is built from a {config}",
            )
        found[part] = min(built, key=len) + "."
    spelled = {
        re.sub(r"\.\d+\.", ".*.", f"{name}.")
        for name, module in model.named_modules()
        if name.startswith(found["vision"]) and type(module).__name__.endswith("Attention")
    }
    if len(spelled) != 1:
        raise Refused(
            "unknown-model",
            f"the vision attention of {type(model).__name__} is in {len(spelled)} kinds of places: "
            f"{', '.join(sorted(spelled)) or 'none'}",
        )
    found["vision_attention"] = spelled.pop()
    return found


def check(model: Any, recipe: Recipe, places: Mapping[Scope, str]) -> Audit:
    """Compare the model's enabled and calibrated quantizers with the recipe.

    Args:
        model: the model after ``modelopt.torch.quantization.quantize``.
        recipe: what it was quantized by.
        places: from :func:`places`, of the model as it was before.

    Raises:
        Refused: ``recipe-matches-no-module`` if a part of the recipe has nothing to quantize,
            ``recipe-not-honoured`` if a quantizer is missing, uncalibrated, or one too many.
    """
    named = {scope: linears(model, place) for scope, place in places.items()}
    attentions = {part: _attentions(model, places[part]) for part in PARTS}
    refuse_empty(recipe, recipe["scope"], named, "linear layer")
    refuse_empty(recipe, recipe["kv_cache"]["attention"], attentions, "attention")
    expected = {
        f"{name}.{kind}_quantizer"
        for scope in recipe["scope"]
        for name in named[scope]
        for kind in ("weight", "input")
    } | {
        f"{name}.{kind}_bmm_quantizer"
        for part in recipe["kv_cache"]["attention"]
        for name in attentions[part]
        for kind in ("k", "v")
    }
    enabled, calibrated = _quantizers(model)
    modality = recipe["calibration"]["modality"]
    refuse_differences(
        recipe,
        {
            "of its quantizers are off": expected - enabled,
            "quantizers that it does not name are on": enabled - expected,
            f"of its quantizers saw no value while calibrating on {modality}": (
                (expected & enabled) - calibrated
            ),
        },
    )
    return Audit(
        modules={
            part: [
                sum(f"{name}.weight_quantizer" in calibrated for name in named[part]),
                len(named[part]),
            ]
            for part in PARTS
        },
        kv_attention={
            part: sum(f"{name}.k_bmm_quantizer" in calibrated for name in names)
            for part, names in attentions.items()
        },
    )


def linears(model: Any, place: str) -> set[str]:
    """Give the names of the linear layers below a place."""
    from torch import nn

    return {
        name
        for name, module in model.named_modules()
        if fnmatchcase(name, f"{place}*") and isinstance(module, nn.Linear)
    }


def _attentions(model: Any, place: str) -> set[str]:
    """Modules to which ModelOpt attached quantizers for keys and values."""
    return {
        name
        for name, module in model.named_modules()
        if fnmatchcase(name, f"{place}*") and hasattr(module, "k_bmm_quantizer")
    }


def _quantizers(model: Any) -> tuple[set[str], set[str]]:
    """Names of the enabled quantizers, and of those that have a usable maximum: measured, or a constant."""
    import torch
    from modelopt.torch.quantization.nn import TensorQuantizer

    enabled, calibrated = set(), set()
    for name, module in model.named_modules():
        if isinstance(module, TensorQuantizer) and module.is_enabled:
            enabled.add(name)
            amax = getattr(module, "_amax", None)
            measured = amax is not None and bool((torch.isfinite(amax) & (amax > 0)).all())
            if measured or getattr(module, "_use_constant_amax", False):
                calibrated.add(name)
    return enabled, calibrated


def refuse_empty(recipe: Recipe, parts: Sequence[Scope], found: Mapping[Any, set[str]], what: str) -> None:
    """Refuse a recipe of which a part has nothing to quantize."""
    if empty := [part for part in parts if not found[part]]:
        raise Refused(
            "recipe-matches-no-module",
            f"recipe {recipe['id']} names {' and '.join(empty)}, "
            f"where this model has no {what} that can be quantized",
        )


def refuse_differences(recipe: Recipe, differences: Mapping[str, set[str]]) -> None:
    """Refuse a model that differs from the recipe: what is said of each set of modules, where it has any."""
    complaints = [
        f"{len(names)} {what} (first: {min(names)})" for what, names in differences.items() if names
    ]
    if complaints:
        raise Refused("recipe-not-honoured", f"recipe {recipe['id']}: {'; '.join(complaints)}")
