"""What a checkpoint's quantization configuration declares, in whichever form it is written.

ModelOpt writes two: hf_quant_config.json (``quantization`` with ``exclude_modules`` and
``kv_cache_quant_algo``) and ``quantization_config`` in config.json (``ignore`` and
``kv_cache_scheme``). vLLM accepts either form in either place, and so does :func:`read`.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from functools import lru_cache
from itertools import accumulate
from typing import Any

from qvlfp8.structure import spellings
from qvlfp8.untrusted import printable

MAX_EXCLUSIONS = 4_096
"""Most excluded modules; a 72B model has 720 linear modules in all."""

MAX_WILDCARDS = 64
"""Most of them with a wildcard elsewhere than at the end: each is tried on each module."""

_LONGEST_PATTERN = 512


class UnknownQuantization(Exception):
    """The configuration is not one of ModelOpt's for static FP8, or its fields make no sense."""

    def __init__(self, problem: str) -> None:
        """Say it; what the configuration brought into it cannot harm a terminal."""
        super().__init__(printable(problem))


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A quantization configuration in one form.

    ``fp8``: linear modules that no exclusion names have FP8 weights with static per-tensor scales.
    ``kv_fp8``: the key-value cache is FP8. ``producer``: name and version of what wrote it.
    """

    fp8: bool = False
    kv_fp8: bool = False
    exclusions: tuple[str, ...] = ()
    producer: Mapping[str, Any] = field(default_factory=dict)


def read(quantization: Mapping[str, Any] | None) -> Scheme:
    """Read a quantization configuration; None is a model that is not quantized.

    Raises:
        UnknownQuantization: another method than ModelOpt's FP8, or a field of the wrong type.
    """
    if quantization is None:
        return Scheme()
    method = quantization.get("quant_method", "modelopt")
    inner = quantization.get("quantization", quantization)
    if not isinstance(inner, Mapping):
        raise UnknownQuantization("its field 'quantization' is not an object; export it again")
    if method != "modelopt" or inner.get("quant_algo") not in ("FP8", None):
        raise UnknownQuantization(
            f"it says {method!r} with {inner.get('quant_algo')!r}; only ModelOpt's 'FP8' is known"
        )
    producer = quantization.get("producer")
    return Scheme(
        fp8=inner.get("quant_algo") == "FP8",
        kv_fp8=_kv_is_fp8(inner),
        exclusions=_exclusions(inner),
        producer=producer if isinstance(producer, Mapping) else {},
    )


def excludes(patterns: Iterable[str], module: str) -> bool:
    """Say whether a pattern names the module (canonical), in any of the module's spellings.

    A pattern matches as a shell wildcard (``*`` crosses dots), as ModelOpt writes them; without a
    wildcard it also names everything below it, as vLLM reads ``visual``. What begins with a bare ``model``
    (``model*``) names the language model: see :func:`spelled`.
    """
    plain, open_ = _compiled(tuple(patterns))
    return plain.names_one_of(spellings(module)) or open_.names_one_of(spelled(module, "model*"))


def spelled(module: str, pattern: str) -> tuple[str, ...]:
    """Give the spellings of a module (canonical) that a pattern can mean.

    Of a pattern that begins with ``model`` and says no more before its first wildcard, those of the vision
    tower that begin so are left out. ModelOpt 0.47 writes ``model*`` where it left the language model alone,
    and names the tower ``visual.…`` beside it; vLLM takes it for the language model, too.
    """
    names = spellings(module)
    if not is_open(pattern):
        return names
    return tuple(name for name in names if not name.startswith("model.visual"))


def is_open(pattern: str) -> bool:
    """Whether a pattern says no more than ``model.`` before its first wildcard, and something."""
    said = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    return said != "" and "model.".startswith(said)


def without(patterns: Iterable[str], modules: Iterable[str]) -> list[str]:
    """Give the patterns that name (see :func:`excludes`) none of the modules (canonical)."""
    listed = list(modules)
    names = sorted(name for module in listed for name in spellings(module))
    of_open = sorted(name for module in listed for name in spelled(module, "model*"))
    return [p for p in patterns if not _names_any(p, of_open if is_open(p) else names)]


def _names_any(pattern: str, names: Sequence[str]) -> bool:
    """Whether a pattern names one of many sorted names; most patterns can be looked up."""

    def begins(beginning: str) -> bool:
        at = bisect_left(names, beginning)
        return at < len(names) and names[at].startswith(beginning)

    if _is_plain(pattern):
        at = bisect_left(names, pattern)
        return begins(f"{pattern}.") or (at < len(names) and names[at] == pattern)
    if pattern.endswith("*") and _is_plain(pattern[:-1]):
        return begins(pattern[:-1])
    return begins(f"{pattern}.") or any(map(re.compile(translate(pattern)).match, names))


class _Patterns:
    """Many patterns, tried on a name at once: an export may exclude each module of a tower by its name."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._plain = frozenset(patterns)
        starred = {pattern for pattern in self._plain if pattern.endswith("*") and _is_plain(pattern[:-1])}
        self._beginnings = frozenset(pattern[:-1] for pattern in starred)
        self._lengths = sorted({len(beginning) for beginning in self._beginnings})
        self._others = [
            re.compile(translate(pattern)) for pattern in self._plain - starred if not _is_plain(pattern)
        ]

    def names_one_of(self, names: Iterable[str]) -> bool:
        return any(map(self._names, names))

    def _names(self, name: str) -> bool:
        return (
            name in self._plain
            or any(start in self._plain for start in accumulate(name.split(".")[:-1], "{}.{}".format))
            or any(name[:length] in self._beginnings for length in self._lengths if length <= len(name))
            or any(other.match(name) for other in self._others)
        )


@lru_cache(maxsize=8)
def _compiled(patterns: tuple[str, ...]) -> tuple[_Patterns, _Patterns]:
    """Those whose beginning says which part they mean, and those that are :func:`is_open`."""
    return (
        _Patterns(pattern for pattern in patterns if not is_open(pattern)),
        _Patterns(pattern for pattern in patterns if is_open(pattern)),
    )


def _is_plain(pattern: str) -> bool:
    return not {"*", "?", "["} & set(pattern)


def portable(quantization: Mapping[str, Any]) -> dict[str, Any]:
    """Spell a configuration so that every vLLM from 0.10.0 on reads it alike.

    Whatever names the vision tower becomes plain ``visual``, the one spelling that every version matches,
    and the flat form says its exclusions and KV cache under the older keys as well (FACTS 4).
    """
    inner = dict(quantization.get("quantization", quantization))
    patterns = _exclusions(inner)
    spelled = list(dict.fromkeys("visual" if "visual" in name else name for name in patterns))
    inner["exclude_modules"] = spelled
    if "ignore" in inner:
        inner["ignore"] = spelled
        inner["kv_cache_quant_algo"] = "FP8" if _kv_is_fp8(inner) else None
    if "quantization" in quantization:
        return {**quantization, "quantization": inner}
    return inner


def _exclusions(inner: Mapping[str, Any]) -> tuple[str, ...]:
    patterns = inner.get("ignore", inner.get("exclude_modules")) or []
    if not isinstance(patterns, list) or not all(isinstance(item, str) for item in patterns):
        raise UnknownQuantization("its list of excluded modules is not a list of names")
    inner_wildcards = sum(not _is_plain(pattern.removesuffix("*")) for pattern in patterns)
    for what, number, most in (
        ("modules", len(patterns), MAX_EXCLUSIONS),
        ("with a wildcard inside", inner_wildcards, MAX_WILDCARDS),
        ("characters in one name", max(map(len, patterns), default=0), _LONGEST_PATTERN),
    ):
        if number > most:
            raise UnknownQuantization(
                f"its list of excluded modules has {number} {what}; {most} at most are read"
            )
    return tuple(patterns)


def _kv_is_fp8(inner: Mapping[str, Any]) -> bool:
    match inner.get("kv_cache_scheme", inner.get("kv_cache_quant_algo")):
        case None:
            return False
        case "FP8" | {"num_bits": 8, "type": "float"}:
            return True
        case other:
            raise UnknownQuantization(f"its KV cache is {other!r}; only FP8 is known")
