"""Digests: of JSON values in canonical form, and of files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path


def of_json(value: object) -> str:
    """SHA-256 (hex) of a JSON value, independent of key order and spacing."""
    return of_text(canonical(value))


def canonical(value: object) -> str:
    """The one text of a JSON value that is digested."""
    return _ENCODER.encode(value)


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def joined(members: Mapping[str, str]) -> str:
    """The canonical text of an object, of those of its members: what many share is encoded once."""
    return "{" + ",".join([f"{_name(name)}:{members[name]}" for name in sorted(members)]) + "}"


_name = lru_cache(maxsize=4096)(canonical)


def of_text(text: str) -> str:
    """SHA-256 (hex) of a text; of a canonical one as :func:`of_json` of its value."""
    return hashlib.sha256(text.encode()).hexdigest()


def of_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
