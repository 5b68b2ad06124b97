"""What a stage measured, as names, texts, lists and tables that are short enough to read. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from qvlfp8.cells import Stage
from qvlfp8.collapse import collapse
from qvlfp8.site.untrusted import line, plain

__all__ = ["Table", "Value", "value_of", "values_of"]

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
    "peak_gpu_mb": "most GPU memory (MB)",
    "kv_cache_dtype": "KV cache",
    "kv_scales": "KV cache scales",
    "kv_attention": "attentions with a KV cache quantizer",
    "fp8_modules": "modules of vLLM's model in FP8",
    "fp8_tensors": "FP8 tensors",
    "casts": "tensors that vLLM took in another type",
    "defaulted": "optional scales that got no tensor",
    "never_loaded": "parameters that got no tensor",
    "dropped": "tensors that nothing read",
    "exclusions": "excluded from quantization",
    "exclusions_without_effect": "exclusions that name nothing",
    "scope_quantized": "linear layers quantized",
    "modules": "linear layers quantized",
    "runner": "vLLM runs it to",
    "stage_reached": "came as far as",
    "tie_word_embeddings": "lm_head is tied to the embeddings",
}
_SHARES = frozenset({"changed", "changed_bf16", "top1_agreement", "of_bf16"})
_OF_TOTAL = frozenset({"modules", "scope_quantized"})
"""Pairs: how many modules of a part are quantized, and how many there are."""

_DEEP = 3
"""Mappings within mappings that are laid out; what lies deeper is shown as JSON."""

_MOST_ROWS = 12
_IN_A_LINE = 2
"""Names that stand in one line; more make a list."""


class Table(NamedTuple):
    """Rows of equal form: ``left_out`` of them are in the record alone."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left_out: int = 0


class Value(NamedTuple):
    """One thing that is known: its name, and its text, parts, items or table; ``raw`` is JSON."""

    name: str
    text: str = ""
    parts: tuple[Value, ...] = ()
    items: tuple[str, ...] = ()
    table: Table | None = None
    raw: str = ""

    @property
    def wide(self) -> bool:
        """Whether it takes more than the width of a word or a number."""
        return bool(self.items or self.table or self.raw)


def values_of(stage: Stage, measured: Mapping[str, Any]) -> Iterator[Value]:
    """All that was measured, apart from what is empty or shown elsewhere; what is short comes first."""
    found = [
        value_of(_named(stage, name), name, value)
        if _is_plain(value)
        else _value_of(_named(stage, name), name, to_json(value))
        for name, value in measured.items()
        if name not in _LEFT_OUT and not _is_empty(value)
    ]
    yield from sorted(found, key=lambda value: (value.wide, bool(value.parts)))


@lru_cache(maxsize=4096)
def _value_of(label: str, name: str, value: bytes) -> Value:
    """Of a value as JSON: what loaders say of one checkpoint is mostly the same in every vLLM."""
    return value_of(label, name, from_json(value))


def value_of(label: str, name: str, value: Any, depth: int = 0) -> Value:
    """One measured value under a label; its own ``name`` says how its numbers are to be read."""
    match value:
        case dict() if depth < _DEEP and value:
            # What stands in a mapping of pairs are pairs.
            own = name if name in _OF_TOTAL else None
            parts = tuple(
                value_of(_named(None, str(key)), own or str(key), item, depth + 1)
                for key, item in _with_totals(value)
                if not _is_empty(item)
            )
            return Value(name=label, parts=parts) if parts else Value(name=label, text="nothing")
        case [int(), int()] if name in _OF_TOTAL:
            return Value(name=label, text=f"{value[0]:,} of {value[1]:,}")
        case list() if value and all(isinstance(item, str) for item in value):
            items = tuple(line(item) for item in collapse(value))
            if len(items) <= _IN_A_LINE:
                return Value(name=label, text=", ".join(items))
            return Value(name=label, items=items)
        case list() if value and all(isinstance(item, dict) for item in value):
            return Value(name=label, table=_table(value))
        case list() if all(_is_plain(item) for item in value):
            return Value(name=label, text=line(", ".join(_text(name, item) for item in value)))
        case dict() | list():
            return Value(name=label, raw=plain(json.dumps(value, ensure_ascii=False, indent=1)))
        case _:
            return Value(name=label, text=_shown(name, value))


def _with_totals(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """A mapping's items; ``x`` and ``x_total`` are one."""
    for key, value in values.items():
        if (total := values.get(f"{key}_total")) is not None:
            yield key, f"{_text(key, value)} of {_text(key, total)}"
        elif key.removesuffix("_total") == key or key.removesuffix("_total") not in values:
            yield key, value


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = [
        key
        for key in dict.fromkeys(key for row in rows for key in row)
        if not all(_is_empty(row.get(key)) for row in rows)
    ]
    return Table(
        columns=tuple(line(str(key).replace("_", " "), 80) for key in columns),
        rows=tuple(
            tuple("" if _is_empty(row.get(key)) else _shown(key, row[key]) for key in columns)
            for row in rows[:_MOST_ROWS]
        ),
        left_out=max(0, len(rows) - _MOST_ROWS),
    )


def _is_empty(value: Any) -> bool:
    return value is None or value in _EMPTY


_EMPTY: tuple[Any, ...] = ([], {}, "")


def _is_plain(value: Any) -> bool:
    return not isinstance(value, dict | list)


@lru_cache(maxsize=4096)
def _named(stage: Stage | None, name: str) -> str:
    if stage in {"load", "quantize"} and name == "seconds":
        return "seconds it took"
    return line(_NAMES.get(name, name.replace("_", " ")), 80)


def _shown(name: str, value: Any) -> str:
    """As one line; a number has nothing that could do harm but its length."""
    text = _text(name, value)
    return text if isinstance(value, int | float) and len(text) < _LONG else line(text)


_LONG = 100


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1%}" if name in _SHARES else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list) and all(_is_plain(item) for item in value):
        return ", ".join(_text(name, item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
