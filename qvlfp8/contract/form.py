"""The form of a checkpoint: all of it that counts for a loader, without the numbers.

For kinds that no contract was recorded of, vLLM was shown one small checkpoint of each form that producers
write (:mod:`qvlfp8.contract.samples`), and what it did holds for every regular checkpoint of that form. A
checkpoint is regular if it has just the tensors that its form has at its sizes, and all layers are alike.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from qvlfp8.contract.forms import read_config
from qvlfp8.contract.names import spell
from qvlfp8.contract.stored import CACHES, STORED, Cache, Header, Stored, headers
from qvlfp8.describe import PARTS, Described
from qvlfp8.structure import HEAD, Part, Structure, canonical

__all__ = ["LISTS", "Form", "Irregular", "attentions", "expected", "form_of", "spelled"]


class Irregular(Exception):
    """The checkpoint is no regular one; says the first difference."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """A form, in words that are the same for all checkpoints that have it; the family is ``model_type``.

    ``tensors``: how each part is stored, cache scales, the head. ``names``: their spelling. ``config``: how
    config.json is written. ``declared``: how the quantization is, with a digest of all keys and words.
    ``exclusions``: each list, sorted, ``{}`` for the layers' numbers.
    """

    family: str
    tensors: str
    names: str
    config: str
    declared: str
    exclusions: str

    def unlike(self, other: Form) -> Iterator[str]:
        """The names of the fields that differ."""
        for field in fields(self):
            if getattr(self, field.name) != getattr(other, field.name):
                yield field.name


def form_of(described: Described) -> Form:
    """Find the form of a checkpoint that describe knows.

    Raises:
        Irregular: it is not regular.
    """
    description, config = described.description, described.checkpoint.config
    if description.missing_files:
        absent = [name for name in description.missing_files if name != "chat_template.jinja"]
        if absent:
            raise Irregular(f"{absent[0]} is missing")
    return Form(
        family=description.family,
        tensors=_tensors(described),
        names=description.spelling,
        config=_config(config),
        declared=_declared(config.get("quantization_config"), described.checkpoint.hf_quant_config),
        exclusions=_exclusions(described),
    )


def spelled(name: str, spelling: str) -> str:
    """A canonical name as :attr:`qvlfp8.describe.Description.spelling` has it."""
    return spell(name, "transformers" if spelling == "transformers>=4.52" else spelling)


def attentions(model: Structure, cache: Cache) -> Iterator[str]:
    """The modules below which the cache scales stand."""
    if cache != "none":
        yield from model.attentions
    if cache == "modelopt+vision":
        yield from (f"visual.blocks.{block}.attn" for block in range(model.vision_blocks))


def expected(
    model: Structure, parts: Mapping[Part, Stored], cache: Cache, *, head: bool
) -> dict[str, Header]:
    """What a regular checkpoint holds, by canonical name.

    Raises:
        Irregular: a side of a module is no multiple of what its way of storing takes.
    """
    found: dict[str, Header] = {name: ("BF16", shape) for name, shape in model.shapes.items()}
    for linear in model.linears.values():
        del found[f"{linear.name}.weight"]
        if linear.part == "head" and not head:
            continue
        of_module = headers(parts[linear.part], linear.out_features, linear.in_features)
        if of_module is None:
            raise Irregular(f"{linear.name} is {linear.out_features} by {linear.in_features}")
        found |= {f"{linear.name}.{leaf}": header for leaf, header in of_module.items()}
    for attention in attentions(model, cache):
        found |= {f"{attention}.{leaf}": header for leaf, header in CACHES[cache].items()}
    return found


def _tensors(described: Described) -> str:
    actual = _canonical(described)
    head = f"{HEAD}.weight" in actual or f"{HEAD}.weight_packed" in actual
    parts: dict[Part, Stored] = {
        part: "bf16" if part == "head" and not head else _way(described.structure, part, actual)
        for part in PARTS
    }
    cache = _cache(actual)
    wanted = expected(described.structure, parts, cache, head=head)
    for name in sorted(wanted.keys() | actual.keys()):
        if name not in actual:
            raise Irregular(f"{name} is not there")
        if name not in wanted:
            raise Irregular(f"{name} is one tensor more")
        if actual[name] != wanted[name]:
            raise Irregular(f"{name} is {_header(actual[name])}, not {_header(wanted[name])}")
    stored = [f"{part} {way}" for part, way in parts.items() if part != "head" or head]
    tied = "tied" if described.structure.tied else "untied"
    return f"{', '.join(stored)}; {tied}{'' if head else ', no head'}; cache scales: {cache}"


def _canonical(described: Described) -> dict[str, Header]:
    """The tensors by canonical name, each of them spelled in the one way."""
    spelling = described.description.spelling
    if spelling == "mixed":
        raise Irregular("tensors are named in more than one way")
    found = {}
    for name, tensor in described.checkpoint.tensors.items():
        plain = canonical(name)
        if spelled(plain, spelling) != name:
            raise Irregular(f"{name} is named otherwise than the rest")
        found[plain] = (tensor.dtype, tuple(tensor.shape))
    return found


def _way(model: Structure, part: Part, actual: Mapping[str, Header]) -> Stored:
    """How the first module of a part is stored; the others are held against it."""
    first = next(linear for linear in model.linears.values() if linear.part == part)
    stem = f"{first.name}."
    held = {name.removeprefix(stem): header for name, header in actual.items() if name.startswith(stem)}
    held.pop("bias", None)
    for leaf in {leaf for leaves in CACHES.values() for leaf in leaves}:
        held.pop(leaf.rpartition(".")[2], None)
    for way in STORED:
        if held == headers(way, first.out_features, first.in_features):
            return way
    words = ", ".join(f"{leaf} {_header(header)}" for leaf, header in sorted(held.items()))
    raise Irregular(f"{first.name} is stored as no producer stores it: {words or 'not at all'}")


def _cache(actual: Mapping[str, Header]) -> Cache:
    if any(name.startswith("visual.") and name.endswith((".k_scale", ".v_scale")) for name in actual):
        return "modelopt+vision"
    if any(name.endswith((".k_proj.k_scale", ".v_proj.v_scale")) for name in actual):
        return "modelopt"
    scales = (".self_attn.k_scale", ".self_attn.v_scale")
    return "compressed" if any(name.endswith(scales) for name in actual) else "none"


def _header(header: Header) -> str:
    dtype, shape = header
    return f"{dtype} {list(shape)}"


_TRUE = ("attention_bias", "use_sliding_window")
"""Fields of the language model that change what is built, where they are true."""


def _config(config: Mapping[str, Any]) -> str:
    text = config.get("text_config")
    inner = text if isinstance(text, Mapping) else config
    vision = config.get("vision_config")
    vision = vision if isinstance(vision, Mapping) else {}
    for where, section in (("config.json", config), ("text_config", text), ("vision_config", vision)):
        allowed = {"quantization_config"} if section is config else set()
        for key in section if isinstance(section, Mapping) else ():
            if key not in allowed and ("quant" in key or "compress" in key or key == "auto_map"):
                raise Irregular(f"{where} has a field {key!r}")
    words = [read_config(config).key, f"architectures={json.dumps(config.get('architectures'))}"]
    words += [f"{where} rope={_rope(section)}" for where, section in (("outer", config), ("text", text))]
    words += [f"vision={vision.get('model_type')}", f"vision rope={_rope(vision)}"]
    words += ["sizes outside too"] if inner is not config and "hidden_size" in config else []
    words += [field for field in _TRUE if inner.get(field)]
    words += ["head_dim"] if inner.get("head_dim") is not None else []
    return "; ".join(words)


def _rope(section: object) -> str:
    """The keys of what a section says of positions, with their words; numbers are left out."""
    if not isinstance(section, Mapping):
        return "none"
    found = []
    for key in ("rope_scaling", "rope_parameters"):
        said = section.get(key)
        if isinstance(said, Mapping):
            inner = ",".join(f"{k}={v}" if isinstance(v, str | bool) else k for k, v in sorted(said.items()))
            found.append(f"{key}({inner})")
    return "+".join(found) or "none"


LISTS = ("ignore", "exclude_modules")
"""Keys under which exclusions stand."""

_FREE = ("version", "observer")
"""Keys whose words say nothing to a loader."""


def _declared(inline: object, separate: object) -> str:
    """Method and keys of both files; two with the same words are declared alike, but for the exclusions."""
    words = []
    for file, content in (("config.json", inline), ("hf_quant_config.json", separate)):
        if isinstance(content, Mapping):
            inner = content.get("quantization", content)
            kind = content.get("quant_method"), inner.get("quant_algo") or inner.get("format")
            text = json.dumps(_skeleton(content), sort_keys=True)
            digest = hashlib.sha256(text.encode()).hexdigest()[:8]
            words.append(f"{file} {' '.join(str(word) for word in kind if word)} #{digest}")
    return "; ".join(words)


def _skeleton(value: object, key: str = "") -> object:
    if key in LISTS:
        return None if value is None else "a list"
    if key in _FREE and isinstance(value, str):
        return "a word"
    if isinstance(value, Mapping):
        return {name: _skeleton(inner, name) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_skeleton(inner) for inner in value]
    return value


_NUMBER = re.compile(r"\b(layers|blocks|deepstack_merger_list)\.(\d+)(?=\.|$)")


def _exclusions(described: Described) -> str:
    held = described.checkpoint
    words = []
    for file, content in (
        ("config.json", held.config.get("quantization_config")),
        ("hf_quant_config.json", held.hf_quant_config),
    ):
        inner = content.get("quantization", content) if isinstance(content, Mapping) else {}
        for key in LISTS:
            patterns = inner.get(key) if isinstance(inner, Mapping) else None
            if patterns is not None:
                collapsed = _collapsed(list(map(str, patterns)), described.structure)
                words.append(f"{file} {key}: {', '.join(collapsed)}")
    return "; ".join(words)


def _collapsed(patterns: Sequence[str], model: Structure) -> list[str]:
    mergers = {
        name.split(".")[2] for name in model.linears if name.startswith("visual.deepstack_merger_list.")
    }
    counts = {
        "layers": len(model.attentions), "blocks": model.vision_blocks, "deepstack_merger_list": len(mergers),
    }  # fmt: skip
    numbers: dict[tuple[str, str], set[int]] = {}
    for pattern in patterns:
        stems = _NUMBER.findall(pattern)
        if len(stems) > 1:
            raise Irregular(f"the exclusion {pattern!r} names two layers")
        if stems:
            stem, number = stems[0]
            numbers.setdefault((_NUMBER.sub(r"\1.{}", pattern), stem), set()).add(int(number))
    for (pattern, stem), found in numbers.items():
        if found != set(range(counts[stem])):
            raise Irregular(f"the exclusion {pattern!r} stands for {len(found)} of {counts[stem]} {stem}")
    return sorted({_NUMBER.sub(r"\1.{}", pattern) for pattern in patterns})
