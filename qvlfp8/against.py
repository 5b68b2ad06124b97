"""How two checkpoints differ: what is quantized, what is excluded, settings, tensors by name, type and shape.

Names are compared canonically, so two spellings of one tensor are no difference; that the spelling differs is
one line. Layer numbers are collapsed: what holds for 28 layers is said once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qvlfp8.collapse import collapse
from qvlfp8.describe import PARTS, Described, PartFormats
from qvlfp8.tensorfile import Tensor

__all__ = ["Change", "Difference", "as_json", "difference", "lines"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One thing that both have, and what it is in each."""

    what: str
    a: str
    b: str


@dataclass(frozen=True, kw_only=True)
class Difference:
    """All differences; every field empty: none.

    ``about``: producer, method and what else is one value for each; ``scope``: how a part's modules are
    stored; ``exclusions``: entries by file, as written; ``config``: fields of config.json that change what
    is computed; tensors by canonical name, collapsed.
    """

    about: tuple[Change, ...]
    scope: tuple[Change, ...]
    exclusions: tuple[Change, ...]
    config: tuple[Change, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    dtypes: tuple[Change, ...]
    shapes: tuple[Change, ...]

    def __bool__(self) -> bool:
        return any(asdict(self).values())


def difference(a: Described, b: Described) -> Difference:
    """Compare two checkpoints as ``describe.look`` gives them; values of tensors are not looked at."""
    both = [name for name in a.tensors if name in b.tensors]
    return Difference(
        about=tuple(_changes(_about(a), _about(b))),
        scope=tuple(_changes(_scope(a), _scope(b))),
        exclusions=tuple(_exclusions(a, b)),
        config=tuple(_changes(_settings(a.checkpoint.config), _settings(b.checkpoint.config))),
        only_in_a=tuple(collapse(name for name in a.tensors if name not in b.tensors)),
        only_in_b=tuple(collapse(name for name in b.tensors if name not in a.tensors)),
        dtypes=tuple(_grouped(both, a.tensors, b.tensors, lambda tensor: tensor.dtype)),
        shapes=tuple(_grouped(both, a.tensors, b.tensors, lambda tensor: str(list(tensor.shape)))),
    )


def as_json(found: Difference) -> dict[str, Any]:
    """Give the difference as JSON values."""
    return asdict(found)


def lines(found: Difference, a: str = "A", b: str = "B") -> Iterator[str]:
    """Say the difference in lines for people; ``a`` and ``b`` are what to call the two."""
    if not found:
        yield "no difference in scope, exclusions, configuration, tensors, types or shapes"
        return
    groups = {
        "": found.about,
        "linear modules, ": found.scope,
        "exclusions, ": found.exclusions,
        "config.json, ": found.config,
        "type of ": found.dtypes,
        "shape of ": found.shapes,
    }
    for title, changes in groups.items():
        for change in changes:
            yield f"{title}{change.what}: {a} {change.a}, {b} {change.b}"
    for where, names in ((a, found.only_in_a), (b, found.only_in_b)):
        for name in names:
            yield f"{name}: only in {where}"


def _about(held: Described) -> dict[str, str]:
    of = held.description
    return {
        "model": f"{of.title}, {of.layers} layers, {of.vision_blocks} vision blocks, {of.hidden_size} wide",
        "producer": f"{of.producer or 'none'} {of.producer_version or ''}".rstrip(),
        "method": of.method,
        "activation scales": of.activations,
        "KV cache": of.kv_cache.declared or "not quantized",
        "KV cache scales": f"{of.kv_cache.scales} of {of.kv_cache.expected}",
        "KV cache scales of the vision tower": ", ".join(of.kv_cache.stray) or "none",
        "configuration is taken from": held.checkpoint.quantization_source or "nowhere",
        "embedding and lm_head": "tied" if of.tied else "not tied",
        "lm_head": "stored" if of.head_stored else "not stored",
        "spelling of tensor names": of.spelling,
        "form of config.json": "nested" if of.nested_config else "flat",
        "type of what is not quantized": of.dtype,
        "missing files": ", ".join(of.missing_files) or "none",
    }


def _scope(held: Described) -> dict[str, str]:
    return {part: _stored(held.description.part(part)) for part in PARTS}


def _stored(part: PartFormats) -> str:
    return ", ".join(f"{count} {form}" for form, count in part.formats) or "none stored"


def _exclusions(a: Described, b: Described) -> Iterator[Change]:
    theirs = [{claim.file: claim for claim in held.description.claims} for held in (a, b)]
    for file in sorted(set(theirs[0]) | set(theirs[1])):
        one, other = (claims[file].exclusions if file in claims else None for claims in theirs)
        if one is None or other is None:
            yield Change(what=file, a=_listed(one, ()), b=_listed(other, ()))
        elif set(one) != set(other):
            yield Change(what=file, a=_listed(one, other), b=_listed(other, one))


def _listed(entries: tuple[str, ...] | None, others: tuple[str, ...]) -> str:
    if entries is None:
        return "says nothing"
    alone = collapse(entry for entry in entries if entry not in others)
    kept = len(set(entries) & set(others))
    also = f" (and {kept} that both have)" if kept else ""
    return (", ".join(alone) or "none") + also


def _changes(a: Mapping[str, str], b: Mapping[str, str]) -> Iterator[Change]:
    for what in dict.fromkeys((*a, *b)):
        one, other = a.get(what, "absent"), b.get(what, "absent")
        if one != other:
            yield Change(what=what, a=one, b=other)


_IGNORED = frozenset(
    {
        "_name_or_path", "architectures", "attn_implementation", "dtype", "initializer_range", "model_type",
        "quantization_config", "text_config", "tie_word_embeddings", "torch_dtype", "transformers_version",
        "use_cache",
    }
)  # fmt: skip
"""Fields that are compared elsewhere, or change nothing that is computed."""


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    """The fields of config.json in one form: flat, and rotary positions as older transformers have them.

    A field that is null is as good as absent.
    """
    nested = config.get("text_config")
    flat = {**(nested if isinstance(nested, Mapping) else {}), **config}
    rope = flat.pop("rope_parameters", None) or flat.get("rope_scaling")
    if isinstance(rope, Mapping):
        flat.pop("rope_scaling", None)
        flat = {"rope_theta": rope.get("rope_theta"), "mrope_section": rope.get("mrope_section")} | flat
    vision = flat.pop("vision_config", None)
    if isinstance(vision, Mapping):
        flat |= {f"vision_config.{name}": value for name, value in vision.items() if name not in _IGNORED}
    return {name: _shown(value) for name, value in flat.items() if name not in _IGNORED and value is not None}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _grouped(
    names: Iterable[str],
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    value: Callable[[Tensor], str],
) -> Iterator[Change]:
    """Tensors with the same pair of values together, so that layers collapse."""
    pairs: dict[tuple[str, str], list[str]] = {}
    for name in names:
        pair = value(a[name]), value(b[name])
        if pair[0] != pair[1]:
            pairs.setdefault(pair, []).append(name)
    for (one, other), held in pairs.items():
        for what in collapse(held):
            yield Change(what=what, a=one, b=other)
