"""What is shown to a vLLM to record its contract: the bases, and each with one thing changed.

A probe's key says what it is about; :mod:`qvlfp8.contract.condense` reads the answers by key.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qvlfp8.contract import forms
from qvlfp8.contract.control import BASES, SCALAR, Base, Header, config
from qvlfp8.contract.names import FUSED, LEAVES, MODULES, SIBLINGS, collapse, kind_of, locate, spell
from qvlfp8.contract.shapes import different, relation

__all__ = ["Probe", "probes", "write"]

Key = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One checkpoint to show: a base and what is changed in it."""

    key: Key
    base: str
    files: Mapping[str, Any] = field(default_factory=dict)
    put: Mapping[str, Header] = field(default_factory=dict)
    drop: Sequence[str] = ()

    @property
    def as_json(self) -> dict[str, Any]:
        """A line of what the worker reads."""
        changed = {"files": self.files, "put": self.put, "drop": list(self.drop)}
        return {"base": self.base, **{name: value for name, value in changed.items() if value}}


def write(folder: Path, asked: Iterable[Probe]) -> dict[str, str]:
    """Write the worker's two files; returns its parameters."""
    bases, cases = folder / "bases.json", folder / "cases.jsonl"
    bases.write_text(json.dumps({name: base.as_json for name, base in BASES.items()}), encoding="utf-8")
    with cases.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(probe.as_json) + "\n" for probe in asked)
    return {"bases": str(bases), "cases": str(cases)}


def probes() -> list[Probe]:
    """Everything that is shown, in a fixed order."""
    found = [
        *_bases(), *_parameters(), *_dropped(), *_fused(), *_strays(), *_respelled(), *_reshaped(),
        *_retyped(), *_exclusions(), *_configs(), *_ahead(), *_quantizations(),
    ]  # fmt: skip
    # Alike leaves share a key, as does a name that is spelled in two ways: one of them is shown.
    return list({probe.key: probe for probe in found}.values())


_LINEARS = frozenset(collapse(linear) for linear in BASES["fp8"].model.linears)
_WHOLE = {part: whole for whole, parts in FUSED.items() if whole in _LINEARS for part in parts}


def _bases() -> Iterator[Probe]:
    for name in BASES:
        yield Probe(key=("base", name), base=name)


def _parameters() -> Iterator[Probe]:
    """Next to nothing is loaded, so that vLLM's parameters are listed as never loaded."""
    for name, base in BASES.items():
        left = [tensor for tensor in base.tensors if tensor != "model.embed_tokens.weight"]
        yield Probe(key=("parameters", name), base=name, drop=left)
    yield Probe(
        key=("parameters", "embedding"),
        base="fp8",
        drop=[t for t in BASES["fp8"].tensors if t != "model.norm.weight"],
    )


def _first_layer(base: Base) -> Iterator[str]:
    """The tensors of layer and block 0, and those that belong to none."""
    for name in base.tensors:
        if locate(name, base.model).index in (None, 0):
            yield name


def _dropped() -> Iterator[Probe]:
    for name in ("fp8", "excluded", "bf16", "fp8-head"):
        for tensor in _first_layer(BASES[name]):
            yield Probe(key=("drop", name, tensor), base=name, drop=[tensor])
    for name in ("fp8-tied", "bf16-tied"):
        yield Probe(
            key=("drop", name, "model.embed_tokens.weight"), base=name, drop=["model.embed_tokens.weight"]
        )


def _fused() -> Iterator[Probe]:
    """What vLLM fuses, fused in the checkpoint."""
    for name, (module, parts) in itertools.product(("fp8", "excluded"), FUSED.items()):
        base = BASES[name]
        if module in _LINEARS:
            continue
        for leaf in ("weight", "bias", "weight_scale", "input_scale"):
            if header := _expected(base, module, leaf):
                yield Probe(
                    key=("fused", name, f"{module}/{leaf}"), base=name, put={f"{_full(module)}.{leaf}":
                    header}, drop=[f"{_full(part)}.{leaf}" for part in parts],
                )  # fmt: skip


def _stray_header(leaf: str) -> Header:
    return SCALAR if leaf.endswith("scale") else ("BF16", (8,))


def _full(module: str, index: int = 0) -> str:
    return module.replace("{}", str(index))


_WORD = {"other": "strange", "other_scale": "strange_scale"}

_OF_LINEARS = ("weight", "bias", "weight_scale", "input_scale", "k_scale", "v_scale", "kv_scale")
_FEW = (
    "",
    "weight",
    "bias",
    "weight_scale",
    "k_scale",
    "q_scale",
    "kv_scale",
    "inv_freq",
    "other",
    "other_scale",
)


def _strays() -> Iterator[Probe]:
    """Each place that the base does not fill."""
    for name in ("fp8", "bf16", "excluded"):
        for module, leaf in itertools.product(MODULES, LEAVES):
            if name != "excluded" or (
                leaf in _OF_LINEARS and module in _LINEARS | set(FUSED) | set(SIBLINGS)
            ):
                yield from _stray(name, "published", module, leaf)
        if name == "excluded":
            continue
        for module, leaf in itertools.product(MODULES, _FEW):
            yield from _stray(name, "published", module, leaf, beyond="strange")
            yield from _stray(name, "published", module, leaf, beyond="weight")
            if not module.startswith("visual"):
                yield from _stray(name, "published", module, leaf, beyond="strange.k_proj")
        for module, leaf in itertools.product((m for m in MODULES if "{}" in m), _FEW):
            yield from _stray(name, "published", module, leaf, index=7)
    for spelling in ("transformers", "vllm"):
        for module, leaf in itertools.product(MODULES, _FEW):
            if module:
                yield from _stray("fp8", spelling, module, leaf)
        for module in MODULES[1:]:
            yield from _stray("fp8", spelling, module, "weight", beyond="strange")
    for name, leaf, spelling in itertools.product(
        ("fp8-tied", "fp8-head-tied", "bf16-tied", "fp8-head"), LEAVES, ("published", "vllm")
    ):
        yield from _stray(name, spelling, "lm_head", leaf)
        yield from _stray(name, spelling, "lm_head", leaf, beyond="strange")


def _stray(
    name: str, spelling: str, module: str, leaf: str, *, beyond: str = "", index: int = 0
) -> Iterator[Probe]:
    base = BASES[name]
    words = [_full(module, index), beyond, _WORD.get(leaf, leaf)]
    tensor = ".".join(word for word in words if word)
    place = locate(tensor, base.model)
    if kind_of(place.module) != place.module or place.key in _KEYS[name]:
        return
    header = _expected(base, place.module, place.leaf) or _stray_header(leaf)
    yield Probe(key=("stray", name, spelling, place.key), base=name, put={spell(tensor, spelling): header})


def _expected(base: Base, module: str, leaf: str) -> Header | None:
    """Of a module that vLLM fuses, all parts below each other; of a part of a fused one, its share."""
    if whole := base.tensors.get(f"{_full(_WHOLE.get(module, ''))}.{leaf}"):
        dtype, shape = whole
        return dtype, (shape[0] // 3, *shape[1:]) if shape else ()
    parts = [base.tensors.get(f"{_full(part)}.{leaf}") for part in FUSED.get(module, ())]
    found = [part for part in parts if part is not None]
    if not found or len(found) < len(parts):
        return (
            ("BF16", base.model.shapes["lm_head.weight"]) if (module, leaf) == ("lm_head", "weight") else None
        )
    dtype, shape = found[0]
    return dtype, (sum(part[1][0] for part in found), *shape[1:]) if shape else ()


_KEYS = {name: {locate(tensor, base.model).key for tensor in base.tensors} for name, base in BASES.items()}


def _respelled() -> Iterator[Probe]:
    for name in ("fp8", "bf16", "excluded", "fp8-tied", "fp8-head"):
        base = BASES[name]
        for spelling in ("transformers", "vllm"):
            for tensor in _first_layer(base):
                other = spell(tensor, spelling)
                if other != tensor:
                    yield Probe(
                        key=("respelled", name, spelling, tensor), base=name, drop=[tensor],
                        put={other: base.tensors[tensor]},
                    )  # fmt: skip


def _of_each_kind(base: Base) -> Iterator[tuple[str, Header]]:
    """One tensor for each kind of module, of the first layer."""
    for tensor in _first_layer(base):
        module = locate(tensor, base.model).module
        if kind_of(module) == module:
            yield tensor, base.tensors[tensor]


_KV = (
    "model.layers.0.self_attn.k_proj.k_scale", "model.layers.0.self_attn.v_proj.v_scale",
    "model.layers.0.self_attn.k_scale", "model.layers.0.self_attn.v_scale",
)  # fmt: skip


def _changeable(name: str) -> Iterator[tuple[str, Header]]:
    """The tensors whose shape and type are changed; what no state changes, in one only."""
    for tensor, header in _of_each_kind(BASES[name]):
        head = tensor.startswith("lm_head.")
        if name == "fp8" or (name == "excluded" and _is_linear(tensor)) or (name == "fp8-head" and head):
            yield tensor, header
    if name == "fp8":
        yield from dict.fromkeys(_KV, SCALAR).items()


def _reshaped() -> Iterator[Probe]:
    for name in ("fp8", "excluded", "fp8-head"):
        for tensor, (dtype, shape) in _changeable(name):
            for other in different(shape):
                yield Probe(
                    key=("reshaped", name, tensor, relation(other, shape)),
                    base=name,
                    put={tensor: (dtype, other)},
                )


def _is_linear(tensor: str) -> bool:
    return collapse(tensor.rpartition(".")[0]) in _LINEARS


_TYPES = ("BF16", "F16", "F32", "F8_E4M3", "I8")


def _retyped() -> Iterator[Probe]:
    for name in ("fp8", "excluded", "fp8-head"):
        for tensor, (dtype, shape) in _changeable(name):
            for other in _TYPES:
                if other != dtype or tensor in _KV:
                    key = ("retyped", name, tensor, other)
                    yield Probe(key=key, base=name, put={tensor: (other, shape)})


def exclusion_patterns() -> list[tuple[str, ...]]:
    """Lists of patterns: each spelling of each kind of module, as it is, with a star, and below it."""
    modules = (
        "visual", "model", "lm_head", "visual.blocks", "visual.merger", "visual.blocks.0",
        "visual.blocks.0.attn.qkv", "visual.blocks.0.attn", "visual.blocks.0.mlp.down_proj",
        "visual.merger.mlp.0", "visual.patch_embed", "model.layers", "model.layers.0",
        "model.layers.0.self_attn", "model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj",
        "model.layers.0.self_attn.qkv_proj", "model.layers.0.self_attn.q_proj",
        "model.layers.0.mlp.gate_proj", "model.embed_tokens",
    )  # fmt: skip
    lists: list[tuple[str, ...]] = [()]
    for module in modules:
        for spelled in dict.fromkeys(spell(module, s) for s in ("published", "transformers", "vllm")):
            lists += [(spelled,), (spelled + "*",), (spelled + ".*",)]
    plain = (
        "*visual*", "*lm_head*", "*self_attn*", "*qkv*", "*.mlp.*", "*down_proj", "down_proj", "q_proj",
        "attn", "blocks.0", "visual.", "model.layers.visual*", "visual.blocks.?.attn*", "visual.blocks.[0]*",
        "VISUAL*", "*", "re:.*visual.*", "blocks.0.attn.qkv", "layers.0", "self_attn.o_proj",
        "language_model", "language_model.*",
    )  # fmt: skip
    lists += [(pattern,) for pattern in plain]
    attention = [f"model.layers.0.self_attn.{name}_proj" for name in "qkv"]
    mlp = ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"]
    for names in (attention, mlp, attention[:2], attention[1:]):
        for spelling in ("published", "transformers", "vllm"):
            named = [spell(name, spelling) for name in names]
            lists += [tuple(named), tuple(name + "*" for name in named)]
    for stem in ("model.layers.0.mlp.", "language_model.model.layers.0.mlp."):
        lists += [(stem + "gate_up_proj", stem + "gate_proj"), (stem + "gate_up_proj*", stem + "up_proj")]
    lists += [
        ("lm_head", "visual"),
        ("visual", *attention, *mlp),
        ("lm_head", "model.visual*", "visual.merger*"),
    ]
    return list(dict.fromkeys(lists))


def _exclusions() -> Iterator[Probe]:
    for patterns in exclusion_patterns():
        files = {"config.json": config() | {"quantization_config": forms.plain(patterns)}}
        yield Probe(key=("exclusion", *patterns), base="bf16", files=files)


def _configs() -> Iterator[Probe]:
    for form in forms.all_configs():
        for name in ("fp8", "fp8-tied"):
            files = {"config.json": form.render() | {"quantization_config": forms.plain(("lm_head",))}}
            yield Probe(key=("config", name, form.key), base=name, files=files)


def _ahead() -> Iterator[Probe]:
    """A tensor whose refusal names no tensor, in each form that some version takes for no writer of text."""
    for form in forms.all_configs():
        if form.text_architectures is False and form.text_rope == "transformers-5":
            files = {"config.json": form.render() | {"quantization_config": forms.plain(("lm_head",))}}
            stray = {"model.layers.0.mlp.down_proj.weight": ("BF16", (4, 4))}
            yield Probe(key=("ahead", form.key), base="fp8", files=files, put=stray)


def _quantizations() -> Iterator[Probe]:
    for form in forms.all_quantizations():
        yield Probe(key=("quantization", form.key), base="bf16", files=form.render())
