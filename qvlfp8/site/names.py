"""Names of files that come of what a record says: nothing in them leaves the folder."""

from __future__ import annotations

import re

__all__ = ["slug"]


def slug(text: str) -> str:
    """Lower-case letters, digits, hyphens and full stops inside; the same for the same text."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:120] or "none"
