"""Digests: of JSON values in canonical form, of files, of a worker's source."""

from __future__ import annotations

import ast
import hashlib
import json
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def of_json(value: object) -> str:
    """SHA-256 (hex) of a JSON value, independent of key order and spacing."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def of_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@cache
def of_worker(name: str) -> str:
    """SHA-256 (hex) over the source of a worker: a changed worker makes its records stale."""
    return of_modules("worker.__main__", "worker.protocol", f"worker.{name}")


@cache
def of_modules(*names: str) -> str:
    """SHA-256 (hex) over modules of this package and all of the package that they import."""
    return of_json({name: of_file(_source(name)) for name in sorted(closure(*names))})


def closure(*names: str) -> set[str]:
    """The modules (named relative to the package) that the given ones import, themselves included.

    Read from their syntax, so an import inside a function counts too.
    """
    found: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += _imports(name)
    return found


def _source(name: str) -> Path:
    path = PACKAGE.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _imports(name: str) -> tuple[str, ...]:
    found = []
    for node in ast.walk(ast.parse(_source(name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    own = (item.removeprefix("qvlfp8.") for item in found if item.startswith("qvlfp8."))
    return tuple(item for item in own if _source(item).exists())
