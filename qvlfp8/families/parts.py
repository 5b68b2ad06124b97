"""What the families share: reading sizes, the language model, and putting the parts together.

Shapes are those of transformers' classes; tests/integration/test_families.py asks the real ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from qvlfp8.structure import HEAD, Linear, Part, Shape, Structure, UnknownModel

Sizes = Mapping[str, int]


def read_sizes(config: object, defaults: Sizes, where: str) -> dict[str, int]:
    """Take the fields that ``defaults`` names from one object of config.json.

    Raises:
        UnknownModel: it is no object, or a field is no positive integer.
    """
    if not isinstance(config, Mapping):
        raise UnknownModel(f"the {where} part of config.json is not an object")
    sizes = {field: config.get(field, default) for field, default in defaults.items()}
    for field, value in sizes.items():
        if type(value) is not int or not 0 < value < 2**31:
            raise UnknownModel(f"{field} in the {where} part of config.json is {value!r}")
    return sizes


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether ``lm_head`` is the embedding: the outer field counts, then the one of ``text_config``."""
    nested = config.get("text_config")
    inner = nested.get("tie_word_embeddings", False) if isinstance(nested, Mapping) else False
    return bool(config.get("tie_word_embeddings", inner))


def linears(part: Part, prefix: str, modules: Iterable[tuple[str, int, int, bool]]) -> Iterator[Linear]:
    """Make linear modules of ``(name, out, in, bias)``."""
    for name, out, in_, bias in modules:
        yield Linear(name=f"{prefix}.{name}", out_features=out, in_features=in_, bias=bias, part=part)


def language_linears(text: Sizes, head_dim: int, *, bias: bool, out_bias: bool) -> Iterator[Linear]:
    """Give the decoder's linear modules and ``lm_head``; ``bias`` is that of query, key and value."""
    hidden, inner = text["hidden_size"], text["intermediate_size"]
    query, key_value = (head_dim * text[f"num_{kind}_heads"] for kind in ("attention", "key_value"))
    modules = (
        ("self_attn.q_proj", query, hidden, bias),
        ("self_attn.k_proj", key_value, hidden, bias),
        ("self_attn.v_proj", key_value, hidden, bias),
        ("self_attn.o_proj", hidden, query, out_bias),
        ("mlp.gate_proj", inner, hidden, False),
        ("mlp.up_proj", inner, hidden, False),
        ("mlp.down_proj", hidden, inner, False),
    )
    for layer in range(text["num_hidden_layers"]):
        yield from linears("language_model", f"model.layers.{layer}", modules)
    yield Linear(
        name=HEAD, out_features=text["vocab_size"], in_features=hidden, bias=False, part="head",
    )  # fmt: skip


def language_shapes(text: Sizes, attention_norms: Mapping[str, int]) -> Iterator[tuple[str, Shape]]:
    """Give the embedding and the norms; ``attention_norms``: those inside attention, and their width."""
    hidden = text["hidden_size"]
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    norms |= {f"self_attn.{name}": width for name, width in attention_norms.items()}
    yield "model.embed_tokens.weight", (text["vocab_size"], hidden)
    yield "model.norm.weight", (hidden,)
    for layer in range(text["num_hidden_layers"]):
        for name, width in norms.items():
            yield f"model.layers.{layer}.{name}.weight", (width,)


def layer_norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    """Give weight and bias of a layer norm."""
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def assemble(
    config: Mapping[str, Any],
    modules: Iterable[Linear],
    others: Iterable[tuple[str, Shape]],
    *,
    layers: int,
    vision_blocks: int,
) -> Structure:
    """Make the structure of its linear modules and the shapes of everything else."""
    shapes, held = dict(others), {linear.name: linear for linear in modules}
    for linear in held.values():
        shapes[f"{linear.name}.weight"] = (linear.out_features, linear.in_features)
        if linear.bias:
            shapes[f"{linear.name}.bias"] = (linear.out_features,)
    tied = is_tied(config)
    return Structure(
        shapes=MappingProxyType(dict(sorted(shapes.items()))),
        linears=MappingProxyType(held),
        attentions=tuple(f"model.layers.{layer}.self_attn" for layer in range(layers)),
        vision_blocks=vision_blocks,
        tied=tied,
        optional=frozenset({f"{HEAD}.weight"} if tied else ()),
    )
