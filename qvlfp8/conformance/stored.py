"""How the linear modules of each producer's formats are stored: the weight, and the scales beside it.

Seen in exports of ModelOpt 0.37 to 0.47 (FP8, NVFP4) and of llm-compressor 0.14 (FP8, FP8_DYNAMIC).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from qvlfp8.declared import Declaration, UnknownDeclaration
from qvlfp8.structure import Linear, Shape

FP8 = "F8_E4M3"
GROUP = 16
"""Values of NVFP4 that share a scale."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A tensor of scales: its types, its shapes for a module, and what that is in words."""

    dtypes: tuple[str, ...]
    shapes: Callable[[Linear], tuple[Shape, ...]]
    says: str


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A way to store a module: ``weight`` of a type, ``per_element`` values in each, and scales by suffix."""

    title: str
    dtype: str
    scales: Mapping[str, Scale]
    per_element: int = 1

    def weight_shape(self, linear: Linear) -> Shape:
        """Give the shape of a module's weight; a row of NVFP4 is packed."""
        return linear.out_features, -(-linear.in_features // self.per_element)


def _one(*dtypes: str) -> Scale:
    return Scale(dtypes=dtypes, shapes=lambda _linear: ((), (1,)), says="a scale has one element")


ONE = _one("F32")
"""A scale of one F32: ModelOpt's of tensors, of activations, and of keys and values."""

_GROUPS = Scale(
    dtypes=(FP8,),
    shapes=lambda linear: ((linear.out_features, -(-linear.in_features // GROUP)),),
    says=f"one scale for {GROUP} values of a row is expected",
)
_WIDE = ("BF16", "F16", "F32")
_ROWS = Scale(
    dtypes=_WIDE, shapes=lambda linear: ((linear.out_features, 1),), says="one scale for a row is expected"
)


def _stored(title: str, dtype: str, scales: Mapping[str, Scale], per_element: int = 1) -> Stored:
    return Stored(title=title, dtype=dtype, scales=MappingProxyType(dict(scales)), per_element=per_element)


STATIC_FP8 = _stored("FP8", FP8, {"weight_scale": ONE, "input_scale": ONE})
"""ModelOpt's FP8; also what is looked for where nothing is declared."""

NVFP4 = _stored("NVFP4", "U8", {"weight_scale": _GROUPS, "weight_scale_2": ONE, "input_scale": ONE}, 2)
"""ModelOpt's NVFP4: two values a byte, scales of 16 values in E4M3, and a scale of those."""


def stored_as(declared: Declaration) -> Stored:
    """Give the way in which a configuration says that modules are stored.

    Raises:
        UnknownDeclaration: what a checkpoint of that kind must hold is not known here.
    """
    match declared.method:
        case "none" | "modelopt-kv-cache-only" | "modelopt-fp8":
            return STATIC_FP8
        case "modelopt-nvfp4":
            return NVFP4
        case "compressed-tensors-fp8":
            return _compressed_fp8(declared)
        case "compressed-tensors-nvfp4":
            raise UnknownDeclaration("compressed-tensors' NVFP4, of which explain knows more")


def _compressed_fp8(declared: Declaration) -> Stored:
    if declared.kv_cache is not None:
        raise UnknownDeclaration("compressed-tensors with a quantized KV cache")
    by_strategy = {"tensor": _one(*_WIDE), "channel": _ROWS}
    weights = by_strategy.get(declared.strategy or "")
    if weights is None:
        raise UnknownDeclaration(f"compressed-tensors' FP8 with scales per {declared.strategy}")
    scales = {"weight_scale": weights}
    if declared.activations == "static":
        scales["input_scale"] = _one(*_WIDE)
    return _stored("FP8", FP8, scales)
