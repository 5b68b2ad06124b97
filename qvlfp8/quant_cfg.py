"""From a recipe to the ``quant_cfg`` that each generation of ModelOpt understands.

ModelOpt takes a mapping of name patterns up to 0.43 (later keys win, ``"default"`` comes first) and
an ordered list of entries from 0.44 on (later entries win). Its shipped defaults move as well: from
0.45 on they switch ``*visual*`` off and know embeddings. So nothing here builds on them: every
quantizer is switched off, and then on again part by part, for linear layers and key-value caches
only. A recipe therefore means the same in every version.

Pure: standard library only, ModelOpt is not imported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypedDict

Part = Literal["language_model", "vision"]
PARTS: tuple[Part, ...] = ("language_model", "vision")
Scope = Literal["language_model", "vision", "vision_attention"]
SCOPES: tuple[Scope, ...] = ("language_model", "vision", "vision_attention")

OLDEST = (0, 33)
"""First ModelOpt release whose configuration is known here; it has read mappings ever since."""

FIRST_WITH_CAST = (0, 43)
"""First ModelOpt release that knows ``use_constant_amax``."""

FIRST_WITH_LISTS = (0, 44)
"""First ModelOpt release that takes a list (``QuantizerCfgEntry`` in its ``config.py``)."""

FP8: Mapping[str, object] = MappingProxyType({"num_bits": (4, 3), "axis": None})
"""E4M3 with one scale a tensor: what ModelOpt's own ``FP8_DEFAULT_CFG`` and ``FP8_KV_CFG`` set."""

FP8_CAST: Mapping[str, object] = MappingProxyType({**FP8, "use_constant_amax": True})
"""E4M3 over its own range, whatever the values are: nothing is measured, no scale is written."""

NVFP4: Mapping[str, object] = MappingProxyType(
    {
        "num_bits": (2, 1),
        "axis": None,
        "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)},
    }
)
"""E2M1 with an E4M3 scale for each 16 values, and one for those: ModelOpt's ``NVFP4_DEFAULT_CFG``."""

_LINEAR_FORMATS: Mapping[str, Mapping[str, object]] = MappingProxyType({"fp8": FP8, "nvfp4": NVFP4})
_KV_FORMATS: Mapping[str, Mapping[str, object]] = MappingProxyType({"fp8": FP8, "fp8-cast": FP8_CAST})

LINEAR = "nn.Linear"
"""ModelOpt's name for ``torch.nn.Linear``, by which both forms can restrict a pattern."""


class KvCache(TypedDict):
    """``attention`` names the parts whose keys and values are quantized; empty for none."""

    format: Literal["none", "fp8", "fp8-cast"]
    attention: Sequence[Part]


class Calibration(TypedDict):
    """``samples`` counts conversations; with ``image+text`` each of them shows pictures."""

    modality: Literal["none", "text", "image+text"]
    samples: int
    seed: int


class Recipe(TypedDict):
    """A recipe file as a worker receives it: plain JSON values, already validated, plus its id."""

    id: str
    scope: Sequence[Scope]
    format: Literal["fp8", "nvfp4", "fp8-dynamic"]
    kv_cache: KvCache
    calibration: Calibration
    exporter: Literal["modelopt-hf", "llmcompressor"]
    exclusions: Literal["as-exported", "portable"]


class NotExpressibleError(ValueError):
    """No configuration for this model and this ModelOpt means what the recipe says."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Switches quantizers on, with ``attributes``, or off: those whose full dotted name matches ``pattern``.

    Patterns are those of :mod:`fnmatch`. With ``linear`` only quantizers of linear layers count.
    """

    pattern: str
    attributes: Mapping[str, object] | None = None
    linear: bool = False


def release(modelopt: str) -> tuple[int, int]:
    """Take major and minor number from a ModelOpt version such as ``0.45.0`` or ``0.47.0rc1``.

    Raises:
        NotExpressibleError: the text is no version, or one before :data:`OLDEST`.
    """
    found = re.match(r"(\d+)\.(\d+)", modelopt)
    if found is None:
        raise NotExpressibleError(f"{modelopt!r} is no ModelOpt version such as 0.45.0")
    number = (int(found[1]), int(found[2]))
    if number < OLDEST:
        raise NotExpressibleError(
            f"the configuration of ModelOpt {modelopt} is not known; take {OLDEST[0]}.{OLDEST[1]} or later"
        )
    return number


def rules(recipe: Recipe, modelopt: str, places: Mapping[Scope, str]) -> list[Rule]:
    """Say the recipe in rules, of which the last that applies to a quantizer decides.

    Args:
        recipe: what to quantize.
        modelopt: version of the ModelOpt that will read it.
        places: where each part of the loaded model is: the beginning of its modules' dotted names, a
            dot at its end (``model.visual.``), as a pattern of :mod:`fnmatch`
            (``model.visual.blocks.*.attn.``). None can match elsewhere by accident.

    Raises:
        NotExpressibleError: a format that ModelOpt, or this ModelOpt, does not have, a part that the
            model does not have, or a ``kv_cache`` that contradicts itself.
    """
    kv = recipe["kv_cache"]
    if recipe["format"] not in _LINEAR_FORMATS:
        raise NotExpressibleError(f"format {recipe['format']!r} is none of ModelOpt's")
    if (kv["format"] == "none") != (not kv["attention"]):
        raise NotExpressibleError(
            f"kv_cache.format is {kv['format']!r} and kv_cache.attention {list(kv['attention'])}; "
            "name parts with a format, and none without"
        )
    if kv["format"] == "fp8-cast" and release(modelopt) < FIRST_WITH_CAST:
        raise NotExpressibleError(
            f"ModelOpt {modelopt} measures keys and values; fp8-cast needs 0.43 or later"
        )
    if absent := sorted({*recipe["scope"], *kv["attention"]} - set(places)):
        raise NotExpressibleError(f"the model has no part {' and no part '.join(absent)}")
    linear = [
        Rule(
            pattern=f"{places[scope]}*{kind}_quantizer",
            attributes=_LINEAR_FORMATS[recipe["format"]],
            linear=True,
        )
        for scope in SCOPES
        if scope in recipe["scope"]
        for kind in ("weight", "input")
    ]
    key_value = [
        Rule(pattern=f"{places[part]}*[kv]_bmm_quantizer", attributes=_KV_FORMATS[kv["format"]])
        for part in PARTS
        if part in kv["attention"]
    ]
    return [Rule(pattern="*"), *linear, *key_value]


def as_mapping(chosen: Sequence[Rule]) -> dict[str, dict[str, Any]]:
    """Write rules as ModelOpt up to 0.43 reads them; the rule for ``*`` becomes ``"default"``."""
    mapping: dict[str, dict[str, Any]] = {}
    for rule in chosen:
        place = mapping.setdefault(LINEAR, {}) if rule.linear else mapping
        key = "default" if rule.pattern == "*" and not rule.linear else rule.pattern
        place[key] = {"enable": False} if rule.attributes is None else {**rule.attributes, "enable": True}
    return mapping


def as_entries(chosen: Sequence[Rule]) -> list[dict[str, Any]]:
    """Write rules as ModelOpt from 0.44 on reads them."""
    return [
        {"quantizer_name": rule.pattern, "enable": rule.attributes is not None}
        | ({} if rule.attributes is None else {"cfg": dict(rule.attributes)})
        | ({"parent_class": LINEAR} if rule.linear else {})
        for rule in chosen
    ]


def quant_cfg(recipe: Recipe, modelopt: str, places: Mapping[Scope, str]) -> dict[str, Any]:
    """Make the argument of ``modelopt.torch.quantization.quantize`` that means the recipe.

    Args and errors are those of :func:`rules` and :func:`release`.
    """
    chosen = rules(recipe, modelopt, places)
    written = as_entries(chosen) if release(modelopt) >= FIRST_WITH_LISTS else as_mapping(chosen)
    return {"quant_cfg": written, "algorithm": "max"}
