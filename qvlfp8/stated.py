"""What config.json and a quantization state, read leniently: for findings, which never fail on a form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["exclusions", "is_tied"]


def is_tied(config: Mapping[str, Any]) -> bool | None:
    """What config.json says of lm_head, wherever it says it; None if it does not."""
    for section in (config, config.get("text_config") or {}):
        if "tie_word_embeddings" in section:
            return bool(section["tie_word_embeddings"])
    return None


def exclusions(quantization: Mapping[str, Any] | None) -> list[str]:
    """The patterns of modules left unquantized, under whichever key the producer wrote them."""
    section = (quantization or {}).get("quantization", quantization) or {}
    found = section.get("exclude_modules", section.get("ignore")) or ()
    return [str(pattern) for pattern in found]
