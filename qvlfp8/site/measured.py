"""What a stage measured, as names and texts that are short enough to read. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qvlfp8.cells import Stage
from qvlfp8.collapse import collapse
from qvlfp8.site.untrusted import line

__all__ = ["Value", "values_of"]

_LEFT_OUT = frozenset(
    {
        "answers",
        "log_marks",
        "options",
        "exam_digest",
        "quant_cfg",
        "configuration",
        "checkpoint_digest",
        "problems",
    }
)
"""What is shown elsewhere on the page, or is long and in the record."""

_NAMES: Mapping[str, str] = {
    "changed": "answers that change with the picture",
    "changed_bf16": "the same of BF16",
    "mean_kl": "mean divergence from BF16 (nats)",
    "p99_kl": "99th percentile of the divergence (nats)",
    "max_kl": "greatest divergence (nats)",
    "top1_agreement": "likeliest tokens that are BF16's",
    "not_finite": "tokens that are not finite",
    "positions": "tokens compared",
    "output_tokens_per_second": "output tokens a second",
    "of_bf16": "speed as a share of BF16's",
    "seconds": "seconds",
    "memory_mb": "memory (MB)",
}
_SHARES = frozenset({"changed", "changed_bf16", "top1_agreement", "of_bf16"})
_DEEP = 2


@dataclass(frozen=True, kw_only=True)
class Value:
    """One thing that is known: its name and its text."""

    name: str
    text: str


def values_of(stage: Stage, measured: Mapping[str, Any]) -> Iterator[Value]:
    """Everything that was measured, apart from what is empty or shown elsewhere."""
    for name, value in measured.items():
        if name in _LEFT_OUT or value in (None, [], {}, ""):
            continue
        yield Value(name=_named(stage, name), text=line(_text(name, value)))


def _named(stage: Stage, name: str) -> str:
    if stage in {"load", "quantize"} and name == "seconds":
        return "seconds it took"
    return line(_NAMES.get(name, name.replace("_", " ")), 80)


def _text(name: str, value: Any, depth: int = 0) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1%}" if name in _SHARES else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        if all(isinstance(item, str) for item in value):
            return ", ".join(collapse(value))
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict) and depth < _DEEP:
        return ", ".join(f"{key}: {_text(key, item, depth + 1)}" for key, item in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
