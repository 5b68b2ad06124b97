"""Digests of this package's own source: a changed worker makes what it measured out of date."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from qvlfp8.digest import of_file, of_json

PACKAGE = Path(__file__).resolve().parent


@cache
def of_worker(name: str) -> str:
    """SHA-256 (hex) over the source of a worker: a changed worker makes its records stale."""
    return of_modules("worker.__main__", "worker.protocol", f"worker.{name}")


@cache
def of_modules(*names: str) -> str:
    """SHA-256 (hex) over modules of this package and all of the package that they import."""
    return of_json({name: of_file(file_of(name)) for name in sorted(closure(*names))})


@cache
def of_judgement() -> str:
    """SHA-256 (hex) over what turns measurements into verdicts: changed, it may judge otherwise."""
    files = sorted({"judge", *closure("findings", "machine_faults")})
    return of_json({name: of_file(file_of(name)) for name in files})


@cache
def of_package() -> str:
    """SHA-256 (hex) over every module of this package: equal on machines that would do the same."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return of_json({path.relative_to(PACKAGE).as_posix(): of_file(path) for path in paths})


@cache
def of_trained_weights() -> str:
    """SHA-256 (hex) of the shipped weights of the trained reference model."""
    return of_file(PACKAGE / "reference" / "trained" / "model.safetensors")


def closure(*names: str) -> set[str]:
    """The modules (named relative to the package) that the given ones import, themselves included.

    Read from their text, so an import inside a function counts too.
    """
    found: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            # A module's package is imported before it, with all that the package imports.
            left += [name.rpartition(".")[0]] if "." in name else []
            left += _imports(name)
    return found


def file_of(name: str) -> Path:
    """The file of a module that is named relative to the package."""
    path = PACKAGE.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


# `from qvlfp8.a import b, c`, its names in brackets or not, and `import qvlfp8.a`.
_IMPORT = re.compile(
    r"^\s*(?:from\s+(qvlfp8[\w.]*)\s+import\s+(\([^)]*\)|[^\n]*)|import\s+(qvlfp8\.[\w.]+))", re.MULTILINE
)


@cache
def _imports(name: str) -> tuple[str, ...]:
    found = []
    for module, names, plain in _IMPORT.findall(file_of(name).read_text(encoding="utf-8")):
        found += [plain] if plain else [module, *(f"{module}.{n}" for n in re.findall(r"\w+", names))]
    own = (item.removeprefix("qvlfp8.") for item in found if item.startswith("qvlfp8."))
    return tuple(item for item in own if file_of(item).exists())
