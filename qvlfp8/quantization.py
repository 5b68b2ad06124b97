"""What a checkpoint's quantization configuration declares, in whichever form it is written.

ModelOpt writes two: hf_quant_config.json (``quantization`` with ``exclude_modules`` and
``kv_cache_quant_algo``) and ``quantization_config`` in config.json (``ignore`` and
``kv_cache_scheme``). vLLM accepts either form in either place, and so does :func:`read`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from qvlfp8.structure import spellings


class UnknownQuantization(Exception):
    """The configuration is not one of ModelOpt's for static FP8, or its fields make no sense."""


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
    wildcard it also names everything below it, as vLLM reads ``visual``.
    """
    names = spellings(module)
    return any(
        fnmatchcase(name, pattern) or name.startswith(f"{pattern}.") for pattern in patterns for name in names
    )


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
    return tuple(patterns)


def _kv_is_fp8(inner: Mapping[str, Any]) -> bool:
    match inner.get("kv_cache_scheme", inner.get("kv_cache_quant_algo")):
        case None:
            return False
        case "FP8" | {"num_bits": 8, "type": "float"}:
            return True
        case other:
            raise UnknownQuantization(f"its KV cache is {other!r}; only FP8 is known")
