"""Qwen2.5-VL's forward pass over many small pictures at once, for training.

The same mathematics as in transformers (every training run compares the two), on a plain
mapping of the published tensor names. Transformers walks through pictures and windows one by one;
here all pictures of a batch have one size, whole windows of 56 pixels, and stand at one place in
their rows, so that everything is a few large operations of fixed shapes, which a CUDA graph can
hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, one_hot, scaled_dot_product_attention, silu

from qvlfp8.worker.lessons import PICTURE_AT
from qvlfp8.worker.scores import Fault

Weights = Mapping[str, Tensor]

PATCH = 14
WINDOW = 56
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


HEALTHY = Fault()


@dataclass
class Trace:
    """What training looks at beside the result.

    ``shares`` has for each vision block the spread (deviation over all tokens) of what the block
    adds to the stream, over the spread of the stream that it found.
    """

    features: Tensor
    shares: list[Tensor] = field(default_factory=list)
    first_layer: Tensor | None = None


def patches(pictures: Tensor) -> Tensor:
    """Cut uint8 pictures (count, height, width, 3) into patches (count, windows, 16, 588).

    Windows in reading order; in a window four cells and in a cell four patches, also so.
    """
    count, height, width, _ = pictures.shape
    mean, deviation = _standard(pictures.device)
    level = (pictures.float() / 255 - mean) / deviation
    rows, columns = height // WINDOW, width // WINDOW
    cut = level.view(count, rows, 2, 2, PATCH, columns, 2, 2, PATCH, 3)
    return cut.permute(0, 1, 5, 2, 6, 3, 7, 9, 4, 8).reshape(count, rows * columns, 16, -1)


def tower(weights: Weights, config: Mapping[str, Any], pictures: Tensor, fault: Fault = HEALTHY) -> Trace:
    """See: features (pictures, cells in reading order, width of the language model)."""
    vision = config["vision_config"]
    heads, width = vision["num_heads"], vision["hidden_size"]
    count, height, across, _ = pictures.shape
    rows, columns = height // WINDOW, across // WINDOW
    turns = _vision_turns(rows, columns, width // heads, pictures.device)
    # A still picture is two equal frames: the kernel's two halves see the same pixels.
    kernel = weights["visual.patch_embed.proj.weight"].sum(2).flatten(1)
    stream = linear(patches(pictures), kernel).float()
    shares = []
    for block in range(vision["depth"]):
        if block == fault.skipped_block:
            continue
        name = f"visual.blocks.{block}."
        full = block in vision["fullatt_block_indexes"] and not fault.all_windowed
        added = _vision_attention(weights, name, stream, turns, heads, full=full)
        middle = stream + added
        gated = _norm(weights, name + "norm2", middle)
        gated = silu(_linear(weights, name + "mlp.gate_proj", gated)) * _linear(
            weights, name + "mlp.up_proj", gated
        )
        after = middle + _linear(weights, name + "mlp.down_proj", gated)
        shares.append(_spread(after - stream) / _spread(stream))
        stream = after
    merged = _norm(weights, "visual.merger.ln_q", stream).view(count, rows * columns * 4, 4 * width)
    merged = gelu(_linear(weights, "visual.merger.mlp.0", merged))
    merged = _linear(weights, "visual.merger.mlp.2", merged)
    merged = (
        merged.view(count, rows, columns, 2, 2, -1).transpose(2, 3).reshape(count, rows * columns * 4, -1)
    )
    return Trace(features=merged, shares=shares)


def speak(
    weights: Weights, config: Mapping[str, Any], ids: Tensor, seen: Trace | None, size: tuple[int, int]
) -> Tensor:
    """Continue every row: logits (rows, tokens, vocabulary).

    ``seen`` holds the features of pictures of ``size`` (pixels) in the first rows, at
    ``PICTURE_AT``; the other rows have none. The first layer's output is left in it.
    """
    table = weights["model.embed_tokens.weight"]
    stream = one_hot(ids, len(table)).to(table.dtype) @ table
    pictured = 0
    if seen is not None:
        pictured, cells, _ = seen.features.shape
        before, after = stream[:pictured, :PICTURE_AT], stream[:pictured, PICTURE_AT + cells :]
        shown = torch.cat([before, seen.features.to(stream.dtype), after], dim=1)
        stream = torch.cat([shown, stream[pictured:]])
    stream = stream.float()
    turns = _text_turns(config, len(ids), pictured, ids.shape[1], size, ids.device)
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        stream = stream + _text_attention(weights, config, name, stream, turns)
        gated = _norm(weights, name + "post_attention_layernorm", stream)
        gated = silu(_linear(weights, name + "mlp.gate_proj", gated)) * _linear(
            weights, name + "mlp.up_proj", gated
        )
        stream = stream + _linear(weights, name + "mlp.down_proj", gated)
        if seen is not None and layer == 0:
            seen.first_layer = stream[:pictured, PICTURE_AT : PICTURE_AT + cells]
    return linear(_norm(weights, "model.norm", stream), table)


def _linear(weights: Weights, name: str, value: Tensor) -> Tensor:
    return linear(value, weights[name + ".weight"], weights.get(name + ".bias"))


def _norm(weights: Weights, name: str, value: Tensor) -> Tensor:
    return normed(value) * weights[name + ".weight"].float()


def normed(value: Tensor) -> Tensor:
    """Divide by the root of the mean square of the last axis, in F32."""
    value = value.float()
    return value * torch.rsqrt(value.square().mean(-1, keepdim=True) + 1e-6)


def _spread(value: Tensor) -> Tensor:
    return value.flatten(0, -2).var(0).mean().sqrt()


def _turn(value: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the two halves of each head (last axis) by angles given as cosine and sine."""
    one, two = value.float().chunk(2, dim=-1)
    cosine, sine = turns
    return (value * cosine + torch.cat([-two, one], dim=-1) * sine).to(value.dtype)


def _vision_attention(
    weights: Weights, name: str, stream: Tensor, turns: tuple[Tensor, Tensor], heads: int, *, full: bool
) -> Tensor:
    """Attention of a vision block: within windows, or ``full``: over the whole picture."""
    count, windows, tokens, _ = stream.shape
    mixed = _linear(weights, name + "attn.qkv", _norm(weights, name + "norm1", stream))
    query, key, value = mixed.view(count, windows, tokens, 3, heads, -1).unbind(3)
    query, key = _turn(query, turns), _turn(key, turns)
    groups = (count, windows * tokens) if full else (count * windows, tokens)
    query, key, value = (
        part.to(value.dtype).reshape(*groups, heads, -1).transpose(1, 2) for part in (query, key, value)
    )
    said = scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(stream.shape)
    return _linear(weights, name + "attn.proj", said)


def _text_attention(
    weights: Weights, config: Mapping[str, Any], name: str, stream: Tensor, turns: tuple[Tensor, Tensor]
) -> Tensor:
    """Causal attention of a language layer, with grouped key-value heads."""
    rows, tokens, width = stream.shape
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    heard = _norm(weights, name + "input_layernorm", stream)
    query, key, value = (
        _linear(weights, f"{name}self_attn.{part}_proj", heard).view(rows, tokens, -1, width // heads)
        for part in "qkv"
    )
    query, key = _turn(query, turns), _turn(key, turns)
    key, value = (part.repeat_interleave(heads // shared, dim=2) for part in (key, value))
    said = scaled_dot_product_attention(
        *(part.to(value.dtype).transpose(1, 2) for part in (query, key, value)), is_causal=True
    )
    return _linear(weights, name + "self_attn.o_proj", said.transpose(1, 2).reshape(stream.shape))


@cache
def _standard(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the published preprocessor, by colour channel."""
    return torch.tensor(MEAN, device=device), torch.tensor(DEVIATION, device=device)


@cache
def _vision_turns(rows: int, columns: int, head: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines for patches in window order: (windows, 16, 1, head)."""
    order = torch.arange(rows * columns * 16).view(rows, columns, 2, 2, 2, 2)
    window, cell, patch = order // 16, order % 16 // 4, order % 4
    down = window // columns * 4 + cell // 2 * 2 + patch // 2
    across = window % columns * 4 + cell % 2 * 2 + patch % 2
    rates = 10000.0 ** -(torch.arange(0, head // 2, 2) / (head // 2))
    angles = torch.stack([down.flatten(), across.flatten()], dim=1).float()[:, :, None] * rates
    return _cosine_sine(angles.flatten(1).view(rows * columns, 16, 1, -1), device)


@cache
def _text_turns_of(
    theta: float,
    sections: Sequence[int],
    pictured: tuple[int, int] | None,
    tokens: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of a row with a picture of (rows, columns) cells, or none: (tokens, 1, head)."""
    places = torch.arange(tokens).expand(3, -1).clone()
    if pictured:
        rows, columns = pictured
        grid = torch.arange(rows * columns)
        shown = torch.stack([torch.zeros_like(grid), grid // columns, grid % columns]) + PICTURE_AT
        places[:, PICTURE_AT : PICTURE_AT + len(grid)] = shown
        places[:, PICTURE_AT + len(grid) :] += max(rows, columns) - len(grid)
    half = sum(sections)
    rates = theta ** -(torch.arange(half) / half)
    axis = torch.repeat_interleave(torch.arange(3), torch.tensor(sections))
    return _cosine_sine((places[axis].T.float() * rates)[:, None], device)


def _text_turns(
    config: Mapping[str, Any],
    rows: int,
    pictured: int,
    tokens: int,
    size: tuple[int, int],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of all rows: (rows, tokens, 1, head)."""
    sections = tuple(config["rope_scaling"]["mrope_section"])
    grid = (size[0] // 28, size[1] // 28)
    shown, plain = (
        _text_turns_of(config["rope_theta"], sections, held, tokens, device) for held in (grid, None)
    )
    cosine, sine = (
        torch.cat([one.expand(pictured, -1, -1, -1), other.expand(rows - pictured, -1, -1, -1)])
        for one, other in zip(shown, plain, strict=True)
    )
    return cosine, sine


def _cosine_sine(angles: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    both = torch.cat([angles, angles], dim=-1)
    return both.cos().to(device), both.sin().to(device)
