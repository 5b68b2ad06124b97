"""Compiles what importing some modules imports, inside the image's build; standard library only.

    python -P bytecode.py [--only PACKAGE | --but PACKAGE] MODULE ...

A step starts in half the time with bytecode, and with that of the few thousand files that it imports as soon
as with that of all. The bytecode holds no times (unchecked hashes), so that it is the same in every build. A
module that cannot be imported here, for want of a GPU, is named and does no harm: what it had imported by
then is compiled. What the modules of one package import of it alone (``--only``) is the same in all
environments that have it, and so is its layer.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.machinery
import os
import py_compile
import sys
import sysconfig
from pathlib import Path
from types import CodeType


class Watched(importlib.machinery.SourceFileLoader):
    """Python's own loader of source files, which remembers what it has loaded."""

    seen: set[str] = set()  # noqa: RUF012  (of all loaders)

    def get_code(self, fullname: str) -> CodeType | None:
        """The module's code."""
        self.seen.add(self.path)
        return super().get_code(fullname)


def imported(modules: list[str]) -> list[Path]:
    """The source files of the environment that importing these modules loads."""
    finder = importlib.machinery.FileFinder.path_hook(
        (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES),
        (Watched, importlib.machinery.SOURCE_SUFFIXES),
    )
    sys.path_hooks.insert(0, finder)
    sys.path_importer_cache.clear()
    for module in modules:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:
            print(f"{module} cannot be imported here: {type(error).__name__}: {error}", file=sys.stderr)
    inside = Path(sys.prefix)
    return sorted(path for path in map(Path, Watched.seen) if path.is_relative_to(inside))


def package_of(path: Path) -> str | None:
    """The top package of an installed module: the first folder below site-packages."""
    site = Path(sysconfig.get_path("purelib"))
    return path.relative_to(site).parts[0] if path.is_relative_to(site) else None


def main(arguments: list[str]) -> None:
    """Import, compile what that loaded, and leave at once: what was imported may have threads."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", help="compile this package's files alone")
    parser.add_argument("--but", help="compile all but this package's files")
    parser.add_argument("modules", nargs="+")
    asked = parser.parse_args(arguments)
    paths = [
        path
        for path in imported(asked.modules)
        if asked.only in {None, package_of(path)} and asked.but != package_of(path)
    ]
    for path in paths:
        py_compile.compile(
            str(path), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )
    print(f"compiled {len(paths)} files", file=sys.stderr, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
