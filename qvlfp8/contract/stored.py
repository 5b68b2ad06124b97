"""How producers store what they quantize, by the tensors of one module: names, types and shapes.

As the exports of :mod:`qvlfp8.contract.samples` hold them: ModelOpt's FP8 and NVFP4, then those of
llm-compressor, whose scales are BF16 and have a side of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

__all__ = ["CACHES", "STORED", "Cache", "Header", "Leaf", "Stored", "headers"]

Header = tuple[str, tuple[int, ...]]
"""Type and shape of a tensor."""

Stored = Literal[
    "bf16", "fp8", "fp8-static", "fp8-channel", "fp8-block", "nvfp4", "nvfp4-packed", "nvfp4-packed-16"
]
Cache = Literal["none", "modelopt", "modelopt+vision", "compressed"]
"""Scales of the key-value cache; ``+vision``: strays of the tower beside those of the language model."""


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One tensor of a module: its shape follows from the module's outputs and inputs.

    ``multiple``: the numbers that outputs and inputs are multiples of, or the shape is no whole one.
    """

    dtype: str
    shape: Callable[[int, int], tuple[int, ...]]
    multiple: tuple[int, int] = (1, 1)


def _whole(out: int, in_: int) -> tuple[int, ...]:
    return out, in_


def _none(_out: int, _in: int) -> tuple[int, ...]:
    return ()


def _one(_out: int, _in: int) -> tuple[int, ...]:
    return (1,)


_FP8 = Leaf(dtype="F8_E4M3", shape=_whole)
_SCALAR = Leaf(dtype="F32", shape=_none)
_BF16_ONE, _F32_ONE = Leaf(dtype="BF16", shape=_one), Leaf(dtype="F32", shape=_one)
_PACKED = Leaf(dtype="U8", shape=lambda out, in_: (out, in_ // 2), multiple=(1, 16))
_GROUPS = Leaf(dtype="F8_E4M3", shape=lambda out, in_: (out, in_ // 16), multiple=(1, 16))
_BLOCKS = Leaf(dtype="BF16", shape=lambda out, in_: (out // 128, in_ // 128), multiple=(128, 128))

STORED: Mapping[Stored, Mapping[str, Leaf]] = MappingProxyType(
    {
        "bf16": {"weight": Leaf(dtype="BF16", shape=_whole)},
        "fp8": {"weight": _FP8, "weight_scale": _SCALAR, "input_scale": _SCALAR},
        "fp8-static": {"weight": _FP8, "weight_scale": _BF16_ONE, "input_scale": _BF16_ONE},
        "fp8-channel": {
            "weight": _FP8,
            "weight_scale": Leaf(dtype="BF16", shape=lambda out, _in: (out, 1)),
        },
        "fp8-block": {"weight": _FP8, "weight_scale": _BLOCKS},
        "nvfp4": {
            "weight": _PACKED, "weight_scale": _GROUPS, "weight_scale_2": _SCALAR, "input_scale": _SCALAR,
        },
        "nvfp4-packed": {
            "weight_packed": _PACKED, "weight_scale": _GROUPS, "weight_global_scale": _F32_ONE,
            "input_global_scale": _F32_ONE,
        },
        "nvfp4-packed-16": {
            "weight_packed": _PACKED, "weight_scale": _GROUPS, "weight_global_scale": _F32_ONE,
        },
    }
)  # fmt: skip
"""Each way, by the last words of a module's tensors; its bias is BF16 in all."""

CACHES: Mapping[Cache, Mapping[str, Header]] = MappingProxyType(
    {
        "none": {},
        "modelopt": {"k_proj.k_scale": ("F32", ()), "v_proj.v_scale": ("F32", ())},
        "modelopt+vision": {"k_proj.k_scale": ("F32", ()), "v_proj.v_scale": ("F32", ())},
        "compressed": {"k_scale": ("BF16", (1,)), "v_scale": ("BF16", (1,))},
    }
)
"""What stands below each attention."""


def headers(way: Stored, out: int, in_: int) -> dict[str, Header] | None:
    """A module's tensors by their last words; None if no whole shape comes of its sides."""
    leaves = STORED[way]
    if any(out % leaf.multiple[0] or in_ % leaf.multiple[1] for leaf in leaves.values()):
        return None
    return {name: (leaf.dtype, leaf.shape(out, in_)) for name, leaf in leaves.items()}
