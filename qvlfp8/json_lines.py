"""A JSON object with one long list, an entry of it a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

__all__ = ["json_lines"]


def json_lines(head: Mapping[str, object], name: str, entries: Iterable[object]) -> str:
    """The object as text: the members of ``head``, then the list ``name``.

    Lines can be searched and compared, as indented text can; but what is indented, json writes in Python,
    which takes far longer.
    """
    told = "".join(f" {_text(key)}: {_text(value)},\n" for key, value in head.items())
    listed = ",\n".join([f"  {_text(entry)}" for entry in entries])
    return f"{{\n{told} {_text(name)}: [\n{listed}\n ]\n}}\n"


_text = json.JSONEncoder(ensure_ascii=False).encode
