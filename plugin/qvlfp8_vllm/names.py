"""What tensor and parameter names tell: pure, without torch or vLLM."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

__all__ = ["is_stray", "is_vision", "unfilled_scales", "without_model"]

_STRAY = re.compile(r"(model\.)?visual\.blocks\.\d+\.attn\.([kv])_proj\.\2_scale")
_SCALES = frozenset({"weight_scale", "weight_scale_inv", "weight_scale_2", "input_scale"})


def without_model(tensor: str) -> str:
    """A checkpoint's tensor by the name that vLLM's model gives the tower."""
    return tensor[len("model.") :] if tensor.startswith("model.visual.") else tensor


def is_vision(tensor: str) -> bool:
    """Whether a checkpoint's tensor, or a model's parameter, belongs to the vision tower."""
    return without_model(tensor).startswith("visual.")


def is_stray(tensor: str) -> bool:
    """Whether a checkpoint's tensor is a KV cache scale of the vision attention, which has no KV cache."""
    return _STRAY.fullmatch(tensor) is not None


def unfilled_scales(
    fp8_weights: Iterable[str], parameters: Collection[str], now: Collection[str], ever: Collection[str]
) -> list[str]:
    """The scales of FP8 vision layers whose weight has come and whose scale has not, sorted.

    ``fp8_weights`` are the parameters of type FP8, ``parameters`` all. ``now`` are those that this call
    loaded, ``ever`` those of any call: an engine may later be given new weights alone.
    """
    layers = {
        name[: -len(".weight")]
        for name in fp8_weights
        if is_vision(name) and name.endswith(".weight") and name in now
    }
    scales = (f"{layer}.{scale}" for layer in layers for scale in _SCALES)
    return sorted(name for name in scales if name in parameters and name not in now and name not in ever)
