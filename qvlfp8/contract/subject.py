"""What of a checkpoint no vLLM version changes: its tensors by place, and the forms of its declarations.

Layers that differ in nothing but their number are one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from qvlfp8 import structure
from qvlfp8.checkpoint import Checkpoint
from qvlfp8.contract import forms
from qvlfp8.contract.forms import QuantizationForm
from qvlfp8.contract.names import FUSED, SIBLINGS, Place, locate
from qvlfp8.contract.shapes import RIGHT, Shape, relation

__all__ = ["Entry", "Subject", "subject"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One tensor, or the same one of several like layers.

    ``order`` is vLLM's: of the first of the layers; ``last``: of the last. ``shape`` is a relation to what is
    expected there.
    """

    name: str
    place: Place
    dtype: str
    shape: str
    order: int
    last: int

    @property
    def words(self) -> str:
        """The name without the layer's number."""
        return self.name.replace(f".{self.place.index}.", ".{}.", 1)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A checkpoint's entries in vLLM's order, and the forms of its declarations.

    ``head_stored``: a tensor is named as lm_head's weight. ``odd``: the field of config.json that no probe
    has so. ``layers`` and ``blocks`` are the numbers that stand for all. ``exclusions``: ``FILE KEY`` -> the
    patterns that stand there.
    """

    checkpoint: Checkpoint
    entries: tuple[Entry, ...]
    layers: tuple[int, ...]
    blocks: tuple[int, ...]
    config: str
    quantization: QuantizationForm
    exclusions: Mapping[str, tuple[str, ...]]
    fp8_tensors: int
    head_stored: bool
    odd: str | None


def subject(checkpoint: Checkpoint) -> Subject:
    """Read a checkpoint once for all versions.

    Raises:
        UnknownModel: not a Qwen2.5-VL, or its sizes make no sense.
    """
    model = structure.from_config(checkpoint.config)
    files = {name: position for position, name in enumerate(checkpoint.weight_files)}
    ordered = sorted(checkpoint.tensors.values(), key=lambda t: (files.get(t.file.name, 0), t.name))
    entries = []
    for order, tensor in enumerate(ordered):
        place = locate(tensor.name, model)
        wanted = None if place.beyond else _expected(model, place.module, place.leaf)
        shape = RIGHT if wanted is None else relation(tensor.shape, wanted)
        entries.append(
            Entry(name=tensor.name, place=place, dtype=tensor.dtype, shape=shape, order=order, last=order)
        )
    exclusions = _exclusions(checkpoint)
    patterns = [pattern for patterns in exclusions.values() for pattern in patterns]
    kept, layers, blocks = _representatives(entries, model, patterns)
    return Subject(
        checkpoint=checkpoint,
        entries=tuple(kept),
        layers=layers,
        blocks=blocks,
        config=forms.read_config(checkpoint.config).key,
        quantization=forms.read_quantization(checkpoint.config, checkpoint.hf_quant_config),
        exclusions=exclusions,
        fp8_tensors=sum(tensor.dtype.startswith("F8_") for tensor in ordered),
        head_stored=any(tensor.name.endswith("lm_head.weight") for tensor in ordered),
        odd=forms.odd_field(checkpoint.config),
    )


def _expected(model: structure.Structure, module: str, leaf: str) -> Shape | None:
    """The right shape at a place, if there is one; a fused module has its parts' below each other."""
    if leaf.endswith("_scale"):
        return ()
    found = model.shapes.get(f"{module.replace('{}', '0')}.{leaf}")
    if found is None and module in FUSED:
        shapes = [shape for part in FUSED[module] if (shape := _expected(model, part, leaf))]
        if len(shapes) == len(FUSED[module]):
            return (sum(shape[0] for shape in shapes), *shapes[0][1:])
    if found is None and module in SIBLINGS:
        (whole,) = (whole for whole, parts in FUSED.items() if module in parts)
        fused = model.shapes.get(f"{whole.replace('{}', '0')}.{leaf}")
        return (fused[0] // len(FUSED[whole]), *fused[1:]) if fused else None
    return found


def _exclusions(checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    declared = {
        "config.json": checkpoint.config.get("quantization_config"),
        "hf_quant_config.json": checkpoint.hf_quant_config,
    }
    for file, content in declared.items():
        inner = content.get("quantization", content) if isinstance(content, Mapping) else {}
        for key in ("exclude_modules", "ignore"):
            patterns = inner.get(key) if isinstance(inner, Mapping) else None
            if isinstance(patterns, list):
                found[f"{file} {key}"] = tuple(map(str, patterns))
    return found


_NUMBERED = re.compile(r"\b(layers|blocks)\.(\d+)(?=\.)")
_LOOSE = re.compile(r"\d|[\[?]")
"""What is left of a pattern when layers that it names are taken out, and may mean several of them."""


def _representatives(
    entries: Sequence[Entry], model: structure.Structure, patterns: Sequence[str]
) -> tuple[list[Entry], tuple[int, ...], tuple[int, ...]]:
    """The entries of one layer of each sort, in the order of the first of its sort to be read.

    Layers are of one sort if they have the same tensors and the same exclusions name them.
    """
    kept: list[Entry] = []
    of_layer: dict[tuple[str, int], list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.place.index is None or entry.place.no_such_layer:
            kept.append(entry)
        else:
            of_layer[entry.place.module.partition(".{}")[0], entry.place.index].append(entry)
    loose = any(_LOOSE.search(_NUMBERED.sub("", pattern)) for pattern in patterns)
    named: dict[tuple[str, int], set[str]] = defaultdict(set)
    for pattern in patterns:
        for match in _NUMBERED.finditer(pattern):
            named[match[1], int(match[2])].add(_NUMBERED.sub(r"\1.{}", pattern))
    chosen: dict[str, list[int]] = {}
    for stem, count in (("model.layers", len(model.attentions)), ("visual.blocks", model.vision_blocks)):
        sorts: dict[Hashable, list[list[Entry]]] = {}
        for number in range(count):
            held = of_layer.get((stem, number), [])
            sign = frozenset((e.place.spelling, e.place.key, e.dtype, e.shape, e.words) for e in held)
            own = number if loose else frozenset(named.get((stem.partition(".")[2], number), ()))
            if (sign, own) not in sorts:
                chosen.setdefault(stem, []).append(number)
            sorts.setdefault((sign, own), []).append(held)
        for like in sorts.values():
            if len(like) == 1:
                kept += like[0]
                continue
            orders: dict[str, list[int]] = defaultdict(list)
            for entry in (entry for held in like for entry in held):
                orders[entry.words].append(entry.order)
            kept += [
                replace(entry, order=min(orders[entry.words]), last=max(orders[entry.words]))
                for entry in like[0]
            ]
    kept.sort(key=lambda entry: entry.order)
    return kept, tuple(chosen.get("model.layers", ())), tuple(chosen.get("visual.blocks", ()))
