"""Which modules a quantization configuration names: ModelOpt's wildcards, compressed-tensors' expressions.

A checkpoint is untrusted and a regular expression can be made to take for ever, so only plain ones are read:
what producers write (``re:.*visual.*``, ``re:.*layers.*_proj$``), and nothing that backtracks much.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fnmatch import translate

from qvlfp8.quantization import is_open, spelled
from qvlfp8.structure import spellings

Matcher = Callable[[str], bool]
"""Says whether a module, by canonical name, is named."""

MAX_EXPRESSIONS = 32
"""Most regular expressions of one list."""

MAX_WILDCARDS = 1024
"""Most shell wildcards of one list; names without a wildcard are not counted."""

_WILDCARDS = 2
_UNSAFE = re.compile(r"\(\?(?!:)|[)\]][*+{]|\\[1-9AbBGZ]|\{|\|.*\|.*\|.*\|.*\|.*\|.*\|.*\|")


class UnreadableExpression(Exception):
    """A regular expression that is not plain, or too many of them or of wildcards."""


def wildcards(patterns: Iterable[str]) -> Matcher:
    """Match as ModelOpt writes them; the same verdicts as ``quantization.excludes``, for many modules.

    A pattern is a shell wildcard (``*`` crosses dots); one without a wildcard names everything below it too.

    Raises:
        UnreadableExpression: there are more than :data:`MAX_WILDCARDS`.
    """
    held = frozenset(patterns)
    if (count := sum(bool(set(pattern) & set("*?[")) for pattern in held)) > MAX_WILDCARDS:
        raise UnreadableExpression(f"{count} wildcards in one list")
    opened = frozenset(filter(is_open, held))
    of_open, others = _wildcards(opened), _wildcards(held - opened)
    return lambda module: any(map(others, spellings(module))) or any(map(of_open, spelled(module, "model*")))


def _wildcards(patterns: frozenset[str]) -> Matcher:
    """Match one spelling of a name."""
    shell = [translate(pattern) for pattern in patterns if set(pattern) & set("*?[")]
    compiled = re.compile("|".join(shell)) if shell else None
    return lambda name: (
        any(prefix in patterns for prefix in _prefixes(name))
        or (compiled is not None and compiled.match(name) is not None)
    )


def expressions(names: Iterable[str], *, kind: str = "Linear") -> Matcher:
    """Match as compressed-tensors does: a module's name, its class, or ``re:`` and an expression.

    Args:
        names: entries of ``ignore`` or ``targets``.
        kind: the class of the modules that are asked about.

    Raises:
        UnreadableExpression: an expression is not plain, or there are more than :data:`MAX_EXPRESSIONS`.
    """
    held = frozenset(names)
    texts = sorted(name.removeprefix("re:") for name in held if name.startswith("re:"))
    if len(texts) > MAX_EXPRESSIONS:
        raise UnreadableExpression(f"{len(texts)} regular expressions in one list")
    compiled = [_plain(text) for text in texts]

    def named(module: str) -> bool:
        return kind in held or any(
            name in held or any(expression.match(name) for expression in compiled)
            for name in spellings(module)
        )

    return named


def _prefixes(name: str) -> Iterable[str]:
    yield name
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _plain(text: str) -> re.Pattern[str]:
    # Matching is from the start only, so a trailing `.*` says nothing.
    kept = re.sub(r"(?<!\\)(\.\*)+$", "", text)
    inner = re.sub(r"(\\d|\[0-9\])[+*]", "", kept)
    if len(text) > 200 or _UNSAFE.search(inner) or len(re.findall(r"[*+]", inner)) > _WILDCARDS:
        raise UnreadableExpression(f"the regular expression {text[:60]!r}")
    if inner.count("?") - inner.count("(?:") > _WILDCARDS:
        raise UnreadableExpression(f"the regular expression {text[:60]!r}")
    try:
        return re.compile(kept)
    except (re.error, OverflowError, RecursionError) as error:
        raise UnreadableExpression(f"the regular expression {text[:60]!r} ({error})") from None
