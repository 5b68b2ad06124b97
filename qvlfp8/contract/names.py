"""Where in the model a tensor's name points, whatever its layer: the key of a loader's answer.

Loaders treat layers alike, and unknown names by where they leave the known tree. So a name is a spelling of
the part, a module of the tree with its numbers taken out, how far the name goes beyond it, and its last word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from qvlfp8.structure import Structure

__all__ = [
    "FUSED",
    "LEAVES",
    "MODULES",
    "NO_SUCH_LAYER",
    "SIBLINGS",
    "Place",
    "Spelling",
    "collapse",
    "kind_of",
    "locate",
    "spell",
]

Spelling = str
"""Which prefixes a name has: ``published``, ``transformers`` (from 4.52 on) or ``vllm``."""

_PREFIXES: Mapping[str, Mapping[str, str]] = {
    "published": {"visual": "visual", "model": "model", "lm_head": "lm_head"},
    "transformers": {"visual": "model.visual", "model": "model.language_model", "lm_head": "lm_head"},
    "vllm": {
        "visual": "visual",
        "model": "language_model.model",
        "lm_head": "language_model.lm_head",
    },
}

NO_SUCH_LAYER = "+"
"""In place of a layer's number: there is no such layer."""

_LAYER = "model.layers.{}"
_BLOCK = "visual.blocks.{}"

Beyond = Literal["", "?", "?part", "?leaf"]
"""Unknown words of a name: none, some, some with a word that loaders rename (``k_proj``; it may be the
name's last), or some that begin with a parameter's (``weight``), below which nothing can be."""

_PART = re.compile(r"q_proj|k_proj|v_proj|gate_proj|up_proj")

FUSED: Mapping[str, tuple[str, ...]] = {
    f"{_LAYER}.self_attn.qkv_proj": tuple(f"{_LAYER}.self_attn.{p}_proj" for p in "qkv"),
    f"{_LAYER}.mlp.gate_up_proj": (f"{_LAYER}.mlp.gate_proj", f"{_LAYER}.mlp.up_proj"),
    f"{_BLOCK}.mlp.gate_up_proj": (f"{_BLOCK}.mlp.gate_proj", f"{_BLOCK}.mlp.up_proj"),
    f"{_BLOCK}.attn.qkv": tuple(f"{_BLOCK}.attn.{p}" for p in "qkv"),
}
"""Modules that vLLM makes of several, and those; a checkpoint may hold either."""

SIBLINGS: Mapping[str, tuple[str, ...]] = {part: parts for parts in FUSED.values() for part in parts}
"""Part -> all that are fused with it, itself included."""

MODULES: tuple[str, ...] = (
    "",
    "model",
    "model.embed_tokens",
    "model.norm",
    "model.layers",
    _LAYER,
    f"{_LAYER}.input_layernorm",
    f"{_LAYER}.post_attention_layernorm",
    f"{_LAYER}.self_attn",
    *(f"{_LAYER}.self_attn.{name}_proj" for name in "qkvo"),
    f"{_LAYER}.self_attn.attn",
    f"{_LAYER}.self_attn.rotary_emb",
    f"{_LAYER}.mlp",
    *(f"{_LAYER}.mlp.{name}_proj" for name in ("gate", "up", "down")),
    "lm_head",
    "visual",
    "visual.patch_embed",
    "visual.patch_embed.proj",
    "visual.merger",
    "visual.merger.ln_q",
    "visual.merger.mlp",
    "visual.merger.mlp.0",
    "visual.merger.mlp.2",
    "visual.blocks",
    _BLOCK,
    f"{_BLOCK}.norm1",
    f"{_BLOCK}.norm2",
    f"{_BLOCK}.attn",
    f"{_BLOCK}.attn.qkv",
    f"{_BLOCK}.attn.proj",
    *(f"{_BLOCK}.attn.{name}" for name in "qkv"),
    *(f"{_BLOCK}.attn.{name}_proj" for name in "qkv"),
    f"{_BLOCK}.mlp",
    *(f"{_BLOCK}.mlp.{name}_proj" for name in ("gate", "up", "down")),
    *(module for module in FUSED if module.endswith("_proj")),
)
"""The tree: the published modules, those that vLLM makes of them, and those that stray tensors name."""

_KNOWN = frozenset(MODULES)

_SAME_KIND: Mapping[str, str] = {
    f"{_LAYER}.mlp.up_proj": f"{_LAYER}.mlp.gate_proj",
    f"{_LAYER}.post_attention_layernorm": f"{_LAYER}.input_layernorm",
    f"{_BLOCK}.norm2": f"{_BLOCK}.norm1",
    f"{_BLOCK}.mlp.up_proj": f"{_BLOCK}.mlp.gate_proj",
    "visual.merger.mlp.2": f"{_BLOCK}.mlp.down_proj",
}
"""Modules whose tensors are loaded like another's: the other is asked about."""


def kind_of(module: str) -> str:
    """The module that stands for all of its kind; most stand for themselves."""
    return _SAME_KIND.get(module, module)


LEAVES = (
    "",
    "weight",
    "bias",
    "weight_scale",
    "input_scale",
    "k_scale",
    "v_scale",
    "kv_scale",
    "q_scale",
    "prob_scale",
    "inv_freq",
    "other_scale",
    "other",
)
"""Last words of a name; ``other`` and ``other_scale`` stand for all that are not listed. A module's own name
has none."""

_NAMED_LEAVES = frozenset(LEAVES) - {"other", "other_scale"}
_PARAMETERS = frozenset({"weight", "bias"})

_ALIKE = {
    "v_scale": "k_scale",
    "input_scale": "weight_scale",
    "prob_scale": "other_scale",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a name points.

    ``module`` is one of :data:`MODULES`; ``beyond``: there are unknown words between it and the ``leaf``, one
    of them maybe that of a fused part. ``index`` is the layer's or block's number, if the module has one;
    ``no_such_layer``: the model has fewer.
    """

    spelling: Spelling
    module: str
    beyond: Beyond = ""
    leaf: str
    index: int | None = None
    no_such_layer: bool = False

    @property
    def key(self) -> str:
        """The place without spelling and number, such as ``model.layers.{}.mlp.up_proj/weight``.

        Of places where nothing can be, those with alike leaves are one.
        """
        if self.no_such_layer:
            return f"{self.module.replace('{}', NO_SUCH_LAYER)}/{_ALIKE.get(self.leaf, self.leaf)}"
        if self.beyond:
            return f"{self.module}/{self.beyond}/{_ALIKE.get(self.leaf, self.leaf)}"
        return f"{self.module}/{self.leaf}"


_RESPELLED = tuple(
    (prefix, spelling, part)
    for spelling, prefixes in _PREFIXES.items()
    for part, prefix in prefixes.items()
    if prefix != part
)


def _published(name: str) -> tuple[Spelling, str]:
    for prefix, spelling, part in _RESPELLED:
        if name == prefix or name.startswith(prefix + "."):
            return spelling, part + name.removeprefix(prefix)
    return "published", name


def spell(name: str, spelling: Spelling) -> str:
    """Give a published name (or pattern) the prefix of another spelling."""
    part, dot, rest = name.partition(".")
    return _PREFIXES[spelling].get(part, part) + dot + rest


_NUMBER = re.compile(r"(?<=\.)(0|[1-9]\d{0,5})(?=\.|$)")


def collapse(name: str) -> str:
    """A published name with the numbers of layers and blocks taken out."""
    for stem in ("model.layers.", "visual.blocks."):
        if name.startswith(stem):
            return stem + re.sub(r"^(0|[1-9]\d{0,5})(?=\.|$)", "{}", name[len(stem) :], count=1)
    return name


def locate(name: str, model: Structure) -> Place:
    """Find the place of a tensor's name, in any spelling."""
    place = _located(name)
    layers = model.vision_blocks if place.module.startswith("visual.") else len(model.attentions)
    return replace(place, no_such_layer=True) if place.index is not None and place.index >= layers else place


@lru_cache(maxsize=1 << 16)
def _located(name: str) -> Place:
    spelling, published = _published(name)
    words = collapse(published).split(".")
    if ".".join(words) in _KNOWN:
        words.append("")
    length = len(words) - 1
    while length and ".".join(words[:length]) not in _KNOWN:
        length -= 1
    module = ".".join(words[:length])
    last = words[-1]
    leaf = last if last in _NAMED_LEAVES else "other_scale" if last.endswith("_scale") else "other"
    index = None
    if "{}" in module:
        index = int(published[len(module.partition("{}")[0]) :].partition(".")[0])
    beyond: Beyond = ""
    if not module.startswith("visual") and _PART.search(".".join(words[length:])):
        beyond = "?part"
    elif len(words) - length > 1:
        beyond = "?leaf" if words[length] in _PARAMETERS else "?"
    return Place(spelling=spelling, module=module, beyond=beyond, leaf=leaf, index=index)
