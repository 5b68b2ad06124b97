"""Qwen3-VL, dense: norms on queries and keys, learned positions, and mergers after several vision blocks.

Shapes and the defaults of absent fields are those of transformers (``models/qwen3_vl``), the same from 4.57
to 5.14. Its configs are always nested.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from qvlfp8.families.parts import (
    Sizes,
    assemble,
    language_linears,
    language_shapes,
    layer_norm,
    linears,
    read_sizes,
)
from qvlfp8.structure import Linear, Shape, Structure, UnknownModel

_TEXT: Sizes = MappingProxyType(
    {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
    }
)
_VISION: Sizes = MappingProxyType(
    {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "in_channels": 3,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 3584,
        "num_position_embeddings": 2304,
    }
)
_DEEPSTACK = (8, 16, 24)


def structure_of(config: Mapping[str, Any]) -> Structure:
    """Derive the structure from config.json.

    Raises:
        UnknownModel: a size that is no positive integer, or ``deepstack_visual_indexes`` is no list.
    """
    nested = config.get("text_config", {})
    text = read_sizes(nested, _TEXT, "text")
    outer = config.get("vision_config", {})
    vision = read_sizes(outer, _VISION, "vision_config")
    indexes = outer.get("deepstack_visual_indexes", _DEEPSTACK)
    if not isinstance(indexes, (list, tuple)) or len(indexes) > vision["depth"]:
        raise UnknownModel(f"deepstack_visual_indexes in vision_config is {indexes!r}")
    bias, head_dim = nested.get("attention_bias", False), text["head_dim"]
    if not isinstance(bias, bool):
        raise UnknownModel(f"attention_bias in the text part of config.json is {bias!r}")
    mergers = ["merger", *(f"deepstack_merger_list.{index}" for index in range(len(indexes)))]
    return assemble(
        config,
        (*language_linears(text, head_dim, bias=bias, out_bias=bias), *_vision_linears(vision, mergers)),
        (*language_shapes(text, {"q_norm": head_dim, "k_norm": head_dim}), *_vision_shapes(vision, mergers)),
        layers=text["num_hidden_layers"],
        vision_blocks=vision["depth"],
    )


def _vision_linears(vision: Sizes, mergers: list[str]) -> Iterator[Linear]:
    width, inner = vision["hidden_size"], vision["intermediate_size"]
    merged = width * vision["spatial_merge_size"] ** 2
    modules = (
        ("attn.qkv", 3 * width, width, True),
        ("attn.proj", width, width, True),
        ("mlp.linear_fc1", inner, width, True),
        ("mlp.linear_fc2", width, inner, True),
    )
    for block in range(vision["depth"]):
        yield from linears("vision", f"visual.blocks.{block}", modules)
    ends = (("linear_fc1", merged, merged, True), ("linear_fc2", vision["out_hidden_size"], merged, True))
    for merger in mergers:
        yield from linears("vision", f"visual.{merger}", ends)


def _vision_shapes(vision: Sizes, mergers: list[str]) -> Iterator[tuple[str, Shape]]:
    """The patch embedding, a convolution with bias, the positions, and the norms."""
    width, patch = vision["hidden_size"], vision["patch_size"]
    merged = width * vision["spatial_merge_size"] ** 2
    yield (
        "visual.patch_embed.proj.weight",
        (width, vision["in_channels"], vision["temporal_patch_size"], patch, patch),
    )
    yield "visual.patch_embed.proj.bias", (width,)
    yield "visual.pos_embed.weight", (vision["num_position_embeddings"], width)
    for merger in mergers:
        # The last merger norms patches, the others what they have merged.
        yield from layer_norm(f"visual.{merger}.norm", width if merger == "merger" else merged)
    for block in range(vision["depth"]):
        yield from layer_norm(f"visual.blocks.{block}.norm1", width)
        yield from layer_norm(f"visual.blocks.{block}.norm2", width)
