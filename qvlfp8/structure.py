"""Which tensors and linear modules a Qwen2.5-VL has, from its config.json alone.

One naming is canonical here, that of the published checkpoints: ``visual.``, ``model.`` (the
language model) and ``lm_head``. Transformers from 4.52 on and vLLM spell the same modules
differently, as the table ``_SPELLINGS`` says. Shapes and the defaults of absent fields are those of
transformers (``models/qwen2_5_vl``), the same from 4.56 to 5.14.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from qvlfp8.untrusted import printable

ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"
MODEL_TYPE = "qwen2_5_vl"
HEAD = "lm_head"

Part = Literal["vision", "language_model", "head"]
Shape = tuple[int, ...]

_SPELLINGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        # canonical: transformers >= 4.52, then vLLM
        "visual": ("model.visual",),
        "lm_head": ("language_model.lm_head",),
        "model": ("model.language_model", "language_model.model"),
    }
)

_OTHERS = tuple(other for others in _SPELLINGS.values() for other in others)

_TEXT_DEFAULTS: Mapping[str, int] = MappingProxyType(
    {
        "vocab_size": 152064,
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    }
)
_VISION_DEFAULTS: Mapping[str, int] = MappingProxyType(
    {
        "depth": 32,
        "hidden_size": 3584,
        "intermediate_size": 3420,
        "in_channels": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 3584,
    }
)


MAX_BLOCKS = 256
"""Most layers or vision blocks: twice what any published dense model has (Llama 3.1 405B: 126)."""

_COUNTS = frozenset({"num_hidden_layers", "depth"})


class UnknownModel(Exception):
    """The configuration is not a Qwen2.5-VL's, or a field of it makes no sense."""

    def __init__(self, problem: str) -> None:
        """Say it; what config.json brought into it cannot harm a terminal."""
        super().__init__(printable(problem))


@dataclass(frozen=True, kw_only=True)
class Linear:
    """One linear module: canonical name, weight of shape ``(out_features, in_features)``."""

    name: str
    out_features: int
    in_features: int
    bias: bool
    part: Part


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A model's modules and tensors, all by canonical name.

    ``optional`` are tensors that may be absent: ``lm_head.weight`` if tied to the embedding.
    ``attentions`` are the modules that hold a key-value cache: the language model's, in order.
    """

    shapes: Mapping[str, Shape]
    linears: Mapping[str, Linear]
    attentions: tuple[str, ...]
    vision_blocks: int
    tied: bool
    optional: frozenset[str]


def canonical(name: str) -> str:
    """Give the canonical spelling of a module or tensor name; unknown names come back unchanged."""
    if not name.startswith(_OTHERS):
        return name
    for ours, others in _SPELLINGS.items():
        for other in others:
            if name == other or name.startswith(other + "."):
                return ours + name.removeprefix(other)
    return name


def spellings(name: str) -> tuple[str, ...]:
    """Give every spelling of a canonical name, the canonical one first."""
    for ours, others in _SPELLINGS.items():
        if name == ours or name.startswith(ours + "."):
            return (name, *(other + name.removeprefix(ours) for other in others))
    return (name,)


def part_of(name: str) -> Part | None:
    """Say to which part a canonical module or tensor name belongs; None for a foreign name."""
    match name.split(".", 1)[0]:
        case "visual":
            return "vision"
        case "model":
            return "language_model"
        case "lm_head":
            return "head"
        case _:
            return None


def from_config(config: Mapping[str, Any]) -> Structure:
    """Derive the structure from config.json, flat (as published) or with a ``text_config``.

    Raises:
        UnknownModel: another architecture, or a size that is no positive integer or does not
            divide.
    """
    architectures = config.get("architectures", [ARCHITECTURE])
    known = isinstance(architectures, list) and ARCHITECTURE in architectures
    if config.get("model_type") != MODEL_TYPE or not known:
        raise UnknownModel(
            f"this is {config.get('model_type')!r} ({architectures}), not a Qwen2.5-VL; "
            f"give a checkpoint whose config.json says {MODEL_TYPE!r} and {ARCHITECTURE!r}"
        )
    nested = config.get("text_config")
    text = _sizes(config if nested is None else nested, _TEXT_DEFAULTS, "text")
    vision = _sizes(config.get("vision_config", {}), _VISION_DEFAULTS, "vision_config")
    if text["hidden_size"] % text["num_attention_heads"]:
        raise UnknownModel("hidden_size is not a multiple of num_attention_heads")
    tied = _is_tied(config)
    linears = (*_language_linears(text), *_vision_linears(vision), _head(text))
    shapes = dict(_language_shapes(text)) | dict(_vision_shapes(vision))
    for linear in linears:
        shapes[f"{linear.name}.weight"] = (linear.out_features, linear.in_features)
        if linear.bias:
            shapes[f"{linear.name}.bias"] = (linear.out_features,)
    return Structure(
        shapes=MappingProxyType(dict(sorted(shapes.items()))),
        linears=MappingProxyType({linear.name: linear for linear in linears}),
        attentions=tuple(f"model.layers.{layer}.self_attn" for layer in range(text["num_hidden_layers"])),
        vision_blocks=vision["depth"],
        tied=tied,
        optional=frozenset({f"{HEAD}.weight"} if tied else ()),
    )


def _sizes(config: object, defaults: Mapping[str, int], where: str) -> dict[str, int]:
    if not isinstance(config, Mapping):
        raise UnknownModel(f"the {where} part of config.json is not an object")
    sizes = {}
    for field, default in defaults.items():
        value = config.get(field, default)
        if type(value) is not int or not 0 < value < 2**31:
            raise UnknownModel(f"{field} in the {where} part of config.json is {value!r}")
        if field in _COUNTS and value > MAX_BLOCKS:
            raise UnknownModel(f"{field} in the {where} part of config.json is {value}, above {MAX_BLOCKS}")
        sizes[field] = value
    return sizes


def _is_tied(config: Mapping[str, Any]) -> bool:
    """The outer field counts (transformers 5 drops the inner one); untied if neither is there."""
    nested = config.get("text_config")
    inner = nested.get("tie_word_embeddings", False) if isinstance(nested, dict) else False
    return bool(config.get("tie_word_embeddings", inner))


def _language_linears(text: Mapping[str, int]) -> Iterator[Linear]:
    hidden, inner = text["hidden_size"], text["intermediate_size"]
    key_value = hidden // text["num_attention_heads"] * text["num_key_value_heads"]
    modules = (
        ("self_attn.q_proj", hidden, hidden, True),
        ("self_attn.k_proj", key_value, hidden, True),
        ("self_attn.v_proj", key_value, hidden, True),
        ("self_attn.o_proj", hidden, hidden, False),
        ("mlp.gate_proj", inner, hidden, False),
        ("mlp.up_proj", inner, hidden, False),
        ("mlp.down_proj", hidden, inner, False),
    )
    for layer in range(text["num_hidden_layers"]):
        for name, out, in_, bias in modules:
            yield Linear(
                name=f"model.layers.{layer}.{name}", out_features=out, in_features=in_,
                bias=bias, part="language_model",
            )  # fmt: skip


def _vision_linears(vision: Mapping[str, int]) -> Iterator[Linear]:
    hidden, inner = vision["hidden_size"], vision["intermediate_size"]
    merged = hidden * vision["spatial_merge_size"] ** 2
    modules = (
        ("attn.qkv", 3 * hidden, hidden),
        ("attn.proj", hidden, hidden),
        ("mlp.gate_proj", inner, hidden),
        ("mlp.up_proj", inner, hidden),
        ("mlp.down_proj", hidden, inner),
    )
    sizes = [
        (f"blocks.{block}.{name}", out, in_) for block in range(vision["depth"]) for name, out, in_ in modules
    ]
    sizes += [
        ("merger.mlp.0", merged, merged),
        ("merger.mlp.2", vision["out_hidden_size"], merged),
    ]
    for name, out, in_ in sizes:
        yield Linear(name=f"visual.{name}", out_features=out, in_features=in_, bias=True, part="vision")


def _head(text: Mapping[str, int]) -> Linear:
    return Linear(
        name=HEAD, out_features=text["vocab_size"], in_features=text["hidden_size"],
        bias=False, part="head",
    )  # fmt: skip


def _language_shapes(text: Mapping[str, int]) -> Iterator[tuple[str, Shape]]:
    """Everything but the linear modules: the embedding and the norms."""
    hidden = text["hidden_size"]
    yield "model.embed_tokens.weight", (text["vocab_size"], hidden)
    yield "model.norm.weight", (hidden,)
    for layer in range(text["num_hidden_layers"]):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{norm}.weight", (hidden,)


def _vision_shapes(vision: Mapping[str, int]) -> Iterator[tuple[str, Shape]]:
    """Everything but the linear modules: the patch embedding, a convolution, and the norms."""
    hidden, patch = vision["hidden_size"], vision["patch_size"]
    yield (
        "visual.patch_embed.proj.weight",
        (hidden, vision["in_channels"], vision["temporal_patch_size"], patch, patch),
    )
    yield "visual.merger.ln_q.weight", (hidden,)
    for block in range(vision["depth"]):
        for norm in ("norm1", "norm2"):
            yield f"visual.blocks.{block}.{norm}.weight", (hidden,)
