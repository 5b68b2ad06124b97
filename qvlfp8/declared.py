"""What a quantization configuration says, of whichever producer: ModelOpt's or compressed-tensors'.

The forms were seen, not guessed: exports of ModelOpt 0.37 to 0.47 (FP8, NVFP4) in both files, and of
llm-compressor 0.14 with compressed-tensors 0.19 (schemes FP8, FP8_DYNAMIC, FP8_BLOCK, NVFP4, NVFP4A16).
:mod:`qvlfp8.quantization` reads ModelOpt's FP8 for ``repair``; this reads more, for ``explain`` and
``inspect``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from qvlfp8.modules import Matcher, UnreadableExpression, expressions, wildcards

Method = Literal[
    "none",
    "modelopt-fp8",
    "modelopt-nvfp4",
    "modelopt-kv-cache-only",
    "compressed-tensors-fp8",
    "compressed-tensors-nvfp4",
]
"""How linear modules that are not excluded are stored; ``none``: nothing is declared, so BF16."""

Activations = Literal["static", "dynamic", "none"]
"""Whether the scales of activations are stored, computed while serving, or not used."""


class UnknownDeclaration(Exception):
    """A configuration of another method, or with fields that make no sense; says what it is."""


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """One quantization configuration.

    ``exclusions`` are as written; ``targets`` likewise (``Linear`` is every linear module). ``kv_cache`` is
    the declared format of the key-value cache, None if it is not quantized.
    """

    method: Method = "none"
    activations: Activations = "none"
    producer: str | None = None
    producer_version: str | None = None
    exclusions: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    kv_cache: Literal["fp8"] | None = None
    group_size: int | None = None
    strategy: str | None = None
    """How far a weight's scale reaches, in compressed-tensors' word: ``tensor``, ``channel``, ``block``, …"""

    def quantizes(self) -> Matcher:
        """Give the function that says whether a linear module (canonical name) is declared quantized.

        Raises:
            UnknownDeclaration: an expression in it is not plain enough to be evaluated.
        """
        if self.method in {"none", "modelopt-kv-cache-only"}:
            return lambda _module: False
        try:
            if self.method in {"modelopt-fp8", "modelopt-nvfp4"}:
                excluded, targeted = wildcards(self.exclusions), expressions(["Linear"])
            else:
                excluded, targeted = expressions(self.exclusions), expressions(self.targets)
        except UnreadableExpression as error:
            raise UnknownDeclaration(str(error)) from None
        return lambda module: targeted(module) and not excluded(module)


def read(quantization: Mapping[str, Any] | None) -> Declaration:
    """Read a quantization configuration in any of its forms; None is a model that is not quantized.

    Raises:
        UnknownDeclaration: another method (gptq, awq, bitsandbytes, block-wise ``fp8``, …) or format.
    """
    if quantization is None:
        return Declaration()
    inner = quantization.get("quantization", quantization)
    if not isinstance(inner, Mapping):
        raise UnknownDeclaration("a field 'quantization' that is not an object")
    match quantization.get("quant_method", "modelopt" if "quant_algo" in inner else None):
        case "modelopt" | "modelopt_fp4" as method:
            return _modelopt(quantization, inner, method)
        case "compressed-tensors":
            return _compressed_tensors(quantization)
        case other:
            raise UnknownDeclaration(f"the quantization method {_short(other)}")


_MODELOPT: Mapping[object, tuple[Method, Activations]] = {
    "FP8": ("modelopt-fp8", "static"),
    "NVFP4": ("modelopt-nvfp4", "static"),
    None: ("modelopt-kv-cache-only", "none"),
}


def _modelopt(outer: Mapping[str, Any], inner: Mapping[str, Any], method: str) -> Declaration:
    algorithm = inner.get("quant_algo")
    known = _MODELOPT.get(algorithm) if isinstance(algorithm, str | None) else None
    if known is None:
        raise UnknownDeclaration(f"ModelOpt's algorithm {_short(algorithm)}")
    if method == "modelopt_fp4" and algorithm != "NVFP4":
        raise UnknownDeclaration(f"{method!r} with the algorithm {_short(algorithm)}")
    producer = outer.get("producer")
    named = producer if isinstance(producer, Mapping) else {}
    size = inner.get("group_size", _group_size_of_groups(inner))
    if known[0] == "modelopt-nvfp4" and size not in {None, 16}:
        raise UnknownDeclaration(f"NVFP4 with groups of {_short(size)}")
    return Declaration(
        method=known[0],
        activations=known[1],
        producer=_text(named.get("name")) or "modelopt",
        producer_version=_text(named.get("version")),
        exclusions=_names(inner.get("ignore", inner.get("exclude_modules")), "excluded modules"),
        targets=("Linear",),
        kv_cache=_kv_cache(inner.get("kv_cache_scheme", inner.get("kv_cache_quant_algo"))),
        group_size=16 if known[0] == "modelopt-nvfp4" else None,
    )


def _group_size_of_groups(inner: Mapping[str, Any]) -> object:
    """config.json says the group size inside ``config_groups`` only."""
    match inner.get("config_groups"):
        case {"group_0": {"weights": {"group_size": size}}}:
            return size
        case _:
            return None


def _compressed_tensors(config: Mapping[str, Any]) -> Declaration:
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) != 1:
        count = len(groups) if isinstance(groups, Mapping) else "no"
        raise UnknownDeclaration(f"compressed-tensors with {count} groups of modules")
    (group,) = groups.values()
    match group:
        case {"weights": {"num_bits": 8, "type": "float"}}:
            method: Method = "compressed-tensors-fp8"
            expected = (8, "float-quantized")
        case {"weights": {"num_bits": 4, "type": "float", "group_size": 16}}:
            method = "compressed-tensors-nvfp4"
            expected = (4, "nvfp4-pack-quantized")
        case {"weights": {"num_bits": bits, "type": kind}}:
            raise UnknownDeclaration(
                f"compressed-tensors with weights of {_short(bits)} bits, {_short(kind)}"
            )
        case _:
            raise UnknownDeclaration("compressed-tensors with a group that has no weights")
    bits, packed = expected
    stored = group.get("format") or config.get("format")
    if stored != packed:
        raise UnknownDeclaration(f"compressed-tensors' format {_short(stored)}")
    return Declaration(
        method=method,
        activations=_activations(group.get("input_activations"), bits),
        producer="compressed-tensors",
        producer_version=_text(config.get("version")),
        exclusions=_names(config.get("ignore"), "ignored modules"),
        targets=_names(group.get("targets"), "targets"),
        kv_cache=_kv_cache(config.get("kv_cache_scheme")),
        group_size=16 if bits == 4 else None,
        strategy=_text(group["weights"].get("strategy")),
    )


def _activations(scheme: object, bits: int) -> Activations:
    match scheme:
        case None:
            return "none"
        case {"num_bits": width, "type": "float", **rest} if width == bits:
            # NVFP4's "local" has a stored global scale and computes those of the groups.
            return "dynamic" if rest.get("dynamic") is True else "static"
        case _:
            raise UnknownDeclaration(f"activations quantized as {_short(scheme)}")


def _kv_cache(scheme: object) -> Literal["fp8"] | None:
    match scheme:
        case None:
            return None
        case "FP8" | {"num_bits": 8, "type": "float"}:
            return "fp8"
        case _:
            raise UnknownDeclaration(f"the KV cache {_short(scheme)}")


def _names(value: object, what: str) -> tuple[str, ...]:
    listed = [] if value is None else value
    if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
        raise UnknownDeclaration(f"{what} that are not a list of names")
    return tuple(listed)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


METHODS: tuple[Method, ...] = get_args(Method)
"""Every method, in the order of the type."""
