"""In which format a linear module is really stored, from the headers of its tensors.

ModelOpt packs NVFP4 into ``weight`` (U8, half as wide) beside ``weight_scale`` (F8_E4M3, one for 16) and
``weight_scale_2``; compressed-tensors calls them ``weight_packed``, ``weight_scale`` and
``weight_global_scale``. FP8 scales are one (``tensor``), one a row (``channel``) or one for
128 by 128 (``block``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from qvlfp8.structure import Linear
from qvlfp8.tensorfile import Tensor

Kind = Literal["bf16", "f16", "f32", "fp8", "nvfp4", "missing", "other"]
Granularity = Literal["tensor", "channel", "block", "group", "missing", "unknown"]
"""How far a weight scale reaches; ``missing``: there is none, ``unknown``: its shape fits nothing."""

_PLAIN: Mapping[str, Kind] = {"BF16": "bf16", "F16": "f16", "F32": "f32"}
_GROUP = 16
_BLOCK = 128


@dataclass(frozen=True, kw_only=True)
class Format:
    """How a weight is stored; the last two are None where the weight is not quantized.

    ``activations``: ``static`` if a scale of the input is stored, else ``none`` (computed while serving,
    or not used: the configuration says which). ``dtype`` is the header's, for a ``kind`` of ``other``.
    """

    kind: Kind
    weights: Granularity | None = None
    activations: Literal["static", "none"] | None = None
    dtype: str | None = None

    @property
    def quantized(self) -> bool:
        """Whether the weight is FP8 or NVFP4."""
        return self.kind in {"fp8", "nvfp4"}

    def __str__(self) -> str:
        if not self.quantized:
            return self.dtype or self.kind if self.kind == "other" else self.kind.upper()
        stored = "static" if self.activations == "static" else "no"
        return f"{self.kind.upper()} (weights per {self.weights}, {stored} activation scales)"


def format_of(linear: Linear, tensors: Mapping[str, Tensor]) -> Format:
    """Say how a linear module is stored.

    Args:
        linear: the module as the model's structure has it.
        tensors: the checkpoint's, by canonical name.
    """
    name = linear.name
    packed = tensors.get(f"{name}.weight_packed")
    if packed is not None:
        return _nvfp4(linear, tensors, packed, "weight_global_scale", "input_global_scale")
    weight = tensors.get(f"{name}.weight")
    if weight is None:
        return Format(kind="missing")
    if plain := _PLAIN.get(weight.dtype):
        return Format(kind=plain)
    if weight.dtype == "U8":
        return _nvfp4(linear, tensors, weight, "weight_scale_2", "input_scale")
    if weight.dtype != "F8_E4M3":
        return Format(kind="other", dtype=weight.dtype)
    return Format(
        kind="fp8",
        weights=_granularity(linear, tensors.get(f"{name}.weight_scale")),
        activations="static" if f"{name}.input_scale" in tensors else "none",
    )


def _nvfp4(
    linear: Linear, tensors: Mapping[str, Tensor], weight: Tensor, global_scale: str, input_scale: str
) -> Format:
    if weight.dtype != "U8" or weight.shape != (linear.out_features, linear.in_features // 2):
        return Format(kind="other", dtype=weight.dtype)
    scale, outer = tensors.get(f"{linear.name}.weight_scale"), tensors.get(f"{linear.name}.{global_scale}")
    weights: Granularity = "missing"
    if scale is not None and outer is not None:
        fits = scale.shape == (linear.out_features, -(-linear.in_features // _GROUP))
        weights = "group" if fits and scale.dtype == "F8_E4M3" else "unknown"
    static = f"{linear.name}.{input_scale}" in tensors
    return Format(kind="nvfp4", weights=weights, activations="static" if static else "none")


def _granularity(linear: Linear, scale: Tensor | None) -> Granularity:
    if scale is None:
        return "missing"
    match scale.shape:
        case () | (1,):
            return "tensor"
        case (rows,) | (rows, 1) if rows == linear.out_features:
            return "channel"
        case (rows, columns) if (rows, columns) == (
            -(-linear.out_features // _BLOCK),
            -(-linear.in_features // _BLOCK),
        ):
            return "block"
        case _:
            return "unknown"
