"""The dimensions of the published models, from their config.json on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qvlfp8.reference.architecture import model_config, preprocessor_config

SIDE = 1036
"""The largest picture, in pixels: what 1024 x 1024 is resized to, 37 x 37 tokens."""

TOKENS_OF_LARGEST = (SIDE // 28) ** 2


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model: what of its config.json differs from the tiny reference model's."""

    name: str
    says: str
    tied: bool
    text: Mapping[str, Any] = field(default_factory=dict)
    vision: Mapping[str, Any] = field(default_factory=dict)


_TOWER = {
    "depth": 32,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "window_size": 112,
}
_TEXT = {
    "max_position_embeddings": 128000,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
}
_3B = {
    **_TEXT,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "max_window_layers": 70,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
}
_7B = {
    **_TEXT,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}

_ALL = (
    Size(
        name="3b",
        says="Qwen2.5-VL-3B-Instruct",
        tied=True,
        text=_3B,
        vision=_TOWER | {"out_hidden_size": 2048},
    ),
    Size(
        name="7b",
        says="Qwen2.5-VL-7B-Instruct",
        tied=False,
        text=_7B,
        vision=_TOWER | {"out_hidden_size": 3584},
    ),
    # For trying this out where there is no GPU.
    Size(
        name="thin",
        says="the widths of 3B, few layers",
        tied=True,
        text=_3B | {"num_hidden_layers": 2},
        vision=_TOWER | {"out_hidden_size": 2048, "depth": 4, "fullatt_block_indexes": [1, 3]},
    ),
    Size(name="tiny", says="the reference model's", tied=False, text={"max_position_embeddings": 4096}),
)

SIZES: Mapping[str, Size] = {size.name: size for size in _ALL}


def config(size: Size) -> dict[str, Any]:
    """config.json, flat like the published ones."""
    made = model_config(tied=size.tied) | dict(size.text)
    made["vision_config"] = made["vision_config"] | dict(size.vision)
    return made


def preprocessor() -> dict[str, Any]:
    """preprocessor_config.json: pictures up to :data:`SIDE` on a side."""
    return preprocessor_config() | {"min_pixels": 4 * 28 * 28, "max_pixels": SIDE * SIDE}
