"""Digests: of JSON values in canonical form, and of files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def of_json(value: object) -> str:
    """SHA-256 (hex) of a JSON value, independent of key order and spacing."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def of_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
