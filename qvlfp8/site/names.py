"""Names of files that come of what a record says: nothing in them leaves the folder."""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ["slug"]


@lru_cache(maxsize=4096)
def slug(text: str) -> str:
    """Lower-case letters, digits, hyphens and full stops inside; the same for the same text."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:120] or "none"
