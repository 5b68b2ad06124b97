"""The part of this project that answers ``qvlfp8 explain``, as one archive for the browser.

It holds what :data:`ENTRIES` names and all of this package that they import, the recorded data that answers
come from, and the modules of ``packaging`` that are needed; everything else is the standard library.
"""

from __future__ import annotations

import ast
import zipfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path, PurePosixPath

from qvlfp8 import source
from qvlfp8.contract import data, form_data

__all__ = ["ENTRIES", "archive", "files"]

ENTRIES = ("checked", "json_depth")
"""The modules that the page calls, named relative to the package."""

_PACKAGING = ("specifiers", "version")
"""The modules of packaging that the project imports there."""

_EPOCH = (1980, 1, 1, 0, 0, 0)


def archive() -> bytes:
    """Give the files as a zip archive without compression; equal files give equal bytes."""
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as written:
        for name, content in files().items():
            written.writestr(zipfile.ZipInfo(name, _EPOCH), content)
    return packed.getvalue()


def files() -> Mapping[str, bytes]:
    """Give the archive's files by name, sorted."""
    own = source.closure(*ENTRIES)
    found = {_inside(source.file_of(name)): source.file_of(name).read_bytes() for name in own}
    found["qvlfp8/__init__.py"] = (source.PACKAGE / "__init__.py").read_bytes()
    for file in (*data.FOLDER.glob("*.json"), *form_data.FOLDER.glob("*.json"), form_data.SAMPLES):
        found[_inside(file)] = file.read_bytes()
    home = _packaging()
    for name in _closure(home, _PACKAGING):
        found[f"packaging/{name}.py"] = (home / f"{name}.py").read_bytes()
    return dict(sorted(found.items()))


def _inside(file: Path) -> str:
    return str(PurePosixPath("qvlfp8", *file.relative_to(source.PACKAGE).parts))


def _packaging() -> Path:
    found = find_spec("packaging")
    if found is None or found.origin is None:  # the project depends on it
        raise ModuleNotFoundError("packaging")
    return Path(found.origin).parent


def _closure(home: Path, names: tuple[str, ...]) -> set[str]:
    """Modules of a flat package that the given ones import from it, themselves included."""
    found: set[str] = set()
    left = ["__init__", *names]
    while left:
        name = left.pop()
        if name not in found and (home / f"{name}.py").is_file():
            found.add(name)
            left += _siblings((home / f"{name}.py").read_text(encoding="utf-8"))
    return found


def _siblings(text: str) -> Iterator[str]:
    """What a module imports by ``from .a import b`` and ``from . import a``, inside functions too."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            yield from (alias.name for alias in node.names) if node.module is None else (node.module,)
