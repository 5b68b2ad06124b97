"""Every finding that has a meaning here: what a diagnosis returns, and what a worker refuses with.

Apart from :mod:`qvlfp8.finding_kinds`, whose source is part of every judgement: how an explanation is worded
changes no verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from qvlfp8.finding_kinds import KINDS, Kind

__all__ = ["KNOWN", "REFUSALS"]

REFUSALS: Mapping[str, Kind] = MappingProxyType(
    {
        "recipe-not-expressible": Kind(
            severity="fail",
            meaning="this quantizer, or this release of it, has no configuration for what the recipe says",
            mend="take a newer release, or another recipe; the message says what is missing "
            "(recipes ending in -kv-cast need ModelOpt 0.43)",
        ),
        "recipe-matches-no-module": Kind(
            severity="fail",
            meaning="the recipe names a part in which this model has nothing that can be quantized",
            mend="take a recipe whose scope the model has",
        ),
        "recipe-not-honoured": Kind(
            severity="fail",
            meaning="other places were quantized than the recipe asks for, or some were not calibrated",
            mend="take another release of it; the message names the modules",
        ),
        "quantize-raised": Kind(
            severity="fail",
            meaning="the quantizer raised an exception while it quantized or exported",
            mend="read the message; take another release of it, or other versions beside it",
        ),
        "already-quantized": Kind(
            severity="fail",
            meaning="the model to be quantized is quantized already",
            mend="give the original, unquantized model",
        ),
        "dataset-unusable": Kind(
            severity="fail",
            meaning="the data set for calibration cannot be read, or has too few samples that can be used",
            mend="mend it, or name another (--dataset); the message says which rows",
        ),
        "not-a-checkpoint": Kind(
            severity="fail",
            meaning="the folder is no readable checkpoint",
            mend="copy config.json, tokenizer, chat template and weights anew; the message names the file",
        ),
        "unknown-model": Kind(
            severity="fail",
            meaning="the model is of a kind that is not known here",
            mend="known are Qwen2-VL, Qwen2.5-VL and Qwen3-VL",
        ),
        "unknown-quantization": Kind(
            severity="fail",
            meaning="the checkpoint declares a quantization that is not known here",
            mend="known are FP8 and NVFP4 of ModelOpt and llm-compressor",
        ),
        "unknown-dtype": Kind(
            severity="fail",
            meaning="the checkpoint has tensors of a type that torch cannot make",
            mend="quantize and export again",
        ),
        "model-unavailable": Kind(
            severity="fail",
            meaning="the model is no folder here, and cannot be had from the hub",
            mend="name a folder by its whole path, or download the model first",
        ),
    }
)
"""Why a worker would not do what it was asked: it measured nothing, and its message is what was seen."""

_FULLER = {
    "kv-scale-one": "none needed of a recipe that casts keys and values unscaled (-kv-cast); else quantize "
    "with ModelOpt 0.44 or newer, which writes the scales that it measured; 0.37 and 0.41 write none below 1",
    "kv-scale-defaulted": "none needed of a recipe that casts keys and values unscaled (-kv-cast); else "
    "calibrate the KV cache, as recipes lm-fp8 and vlm-fp8 do",
}
"""Mends that say more than the line that every judgement knows."""

KNOWN: Mapping[str, Kind] = MappingProxyType(
    {
        **{name: replace(kind, mend=_FULLER.get(name, kind.mend)) for name, kind in KINDS.items()},
        **REFUSALS,
    }
)
"""By id."""
