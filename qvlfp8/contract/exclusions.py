"""How a vLLM matches the exclusions of a checkpoint against the names of its own modules."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from fnmatch import fnmatch
from functools import lru_cache

from qvlfp8.contract.data import Matching

__all__ = ["Disagree", "Unexplained", "fit", "quantized"]


class Unexplained(Exception):
    """This vLLM does something that no rule of the contract can say."""


class Disagree(Exception):
    """Of the parts of a fused module some are excluded and some are not: vLLM refuses that."""


@lru_cache(maxsize=256)
def _spelled(
    patterns: tuple[str, ...], matching: Matching, prefixes: tuple[tuple[str, str], ...]
) -> tuple[str, ...]:
    """The patterns as the version keeps them."""
    found = list(patterns)
    if matching.star:
        found = []
        for pattern in patterns:
            splits = len(pattern) >= 2 and pattern.endswith("*") and pattern[-2] != "."
            found += [pattern[:-1], pattern[:-1] + ".*"] if splits else [pattern]
    if matching.mapped:
        found = [_renamed(pattern, prefixes) for pattern in found]
    return tuple(found)


def _renamed(name: str, prefixes: Iterable[tuple[str, str]]) -> str:
    for old, new in prefixes:
        if name.startswith(old):
            name = new + name.removeprefix(old)
    return name


def _matches(
    patterns: Sequence[str], module: str, matching: Matching, packed: Mapping[str, Sequence[str]]
) -> bool:
    if matching.whole and module in patterns:
        return True
    if matching.fused:
        last = module.rpartition(".")[2]
        if last in packed:
            named = [module.replace(last, part) in patterns for part in packed[last]]
            if any(named) and not all(named):
                raise Disagree(module)
            if all(named):
                return True
        elif module in patterns:
            return True
    inner = module.removeprefix("language_model.")
    if matching.substring and any(
        pattern in module or pattern in inner for pattern in patterns if matching.equal or pattern != module
    ):
        return True
    return matching.wildcard and any(fnmatch(module, pattern) for pattern in patterns)


def quantized(
    patterns: Sequence[str],
    modules: Iterable[str],
    matching: Matching,
    *,
    prefixes: Sequence[Sequence[str]],
    packed: Mapping[str, Sequence[str]],
) -> frozenset[str] | None:
    """The modules, by vLLM's names with numbers, that no pattern leaves out; None: vLLM refuses the list."""
    spelled = _spelled(tuple(patterns), matching, tuple((old, new) for old, new in prefixes))
    try:
        return frozenset(module for module in modules if not _matches(spelled, module, matching, packed))
    except Disagree:
        return None


def fit(
    observed: Sequence[tuple[tuple[str, ...], frozenset[str] | None]],
    *,
    modules: Sequence[str],
    prefixes: Sequence[Sequence[str]],
    packed: Mapping[str, Sequence[str]],
) -> Matching:
    """Find the rules that give every observed answer: the modules that stay quantized, None if vLLM refused.

    Raises:
        Unexplained: no rules do; the message names a list that the nearest ones get wrong.
    """
    # Every numbered module that was seen, and no other: the control has two layers and two blocks.
    everything = {m.replace("{}", str(i)) for m in modules for i in (0, 1)}
    best: tuple[int, str] = (len(observed) + 1, "")
    rules = [field.name for field in fields(Matching)]
    for chosen in itertools.product((False, True), repeat=len(rules)):
        matching = Matching(**dict(zip(rules, chosen, strict=True)))
        wrong = [
            patterns
            for patterns, answer in observed
            if quantized(patterns, everything, matching, prefixes=prefixes, packed=packed) != answer
        ]
        if not wrong:
            return matching
        best = min(best, (len(wrong), f"{matching}: {wrong[0]}"))
    raise Unexplained(
        f"no rules explain how exclusions are matched; the nearest fail {best[0]} lists: {best[1]}"
    )
