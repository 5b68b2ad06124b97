"""Qwen2-VL: the language model of Qwen2.5-VL, and a tower with layer norms and a plain, two-layer MLP.

Shapes and the defaults of absent fields are those of transformers (``models/qwen2_vl``), the same from 4.56
to 5.14. The published configs are flat; transformers from 4.52 on writes a ``text_config``.
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
        "vocab_size": 152064,
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    }
)
# hidden_size is the language model's width here: what the merger gives.
_VISION: Sizes = MappingProxyType(
    {
        "depth": 32,
        "embed_dim": 1280,
        "hidden_size": 3584,
        "mlp_ratio": 4,
        "in_channels": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
)


def structure_of(config: Mapping[str, Any]) -> Structure:
    """Derive the structure from config.json, flat or nested.

    Raises:
        UnknownModel: a size that is no positive integer or does not divide.
    """
    nested = config.get("text_config")
    text = read_sizes(config if nested is None else nested, _TEXT, "text")
    vision = read_sizes(config.get("vision_config", {}), _VISION, "vision_config")
    head_dim, rest = divmod(text["hidden_size"], text["num_attention_heads"])
    if rest:
        raise UnknownModel("hidden_size is not a multiple of num_attention_heads")
    return assemble(
        config,
        (*language_linears(text, head_dim, bias=True, out_bias=False), *_vision_linears(vision)),
        (*language_shapes(text, {}), *_vision_shapes(vision)),
        layers=text["num_hidden_layers"],
        vision_blocks=vision["depth"],
    )


def _vision_linears(vision: Sizes) -> Iterator[Linear]:
    width, inner = vision["embed_dim"], vision["embed_dim"] * vision["mlp_ratio"]
    merged = width * vision["spatial_merge_size"] ** 2
    modules = (
        ("attn.qkv", 3 * width, width, True),
        ("attn.proj", width, width, True),
        ("mlp.fc1", inner, width, True),
        ("mlp.fc2", width, inner, True),
    )
    for block in range(vision["depth"]):
        yield from linears("vision", f"visual.blocks.{block}", modules)
    ends = (("mlp.0", merged, merged, True), ("mlp.2", vision["hidden_size"], merged, True))
    yield from linears("vision", "visual.merger", ends)


def _vision_shapes(vision: Sizes) -> Iterator[tuple[str, Shape]]:
    """The patch embedding, a convolution without bias, and the norms."""
    width, patch = vision["embed_dim"], vision["patch_size"]
    yield (
        "visual.patch_embed.proj.weight",
        (width, vision["in_channels"], vision["temporal_patch_size"], patch, patch),
    )
    yield from layer_norm("visual.merger.ln_q", width)
    for block in range(vision["depth"]):
        yield from layer_norm(f"visual.blocks.{block}.norm1", width)
        yield from layer_norm(f"visual.blocks.{block}.norm2", width)
