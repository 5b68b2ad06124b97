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
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import CodeType

_REPORT = "QVLFP8_REPORT"
"""Names the file that a process which only imports writes to."""


class Watched(importlib.machinery.SourceFileLoader):
    """Python's own loader of source files, which writes down what it loads at once: a module may end all."""

    def get_code(self, fullname: str) -> CodeType | None:
        """The module's code."""
        with Path(os.environ[_REPORT]).open("a", encoding="utf-8") as report:
            report.write(f"{self.path}\n")
        return super().get_code(fullname)


def import_all(modules: list[str]) -> None:
    """Import modules, and leave at once: there may be threads by now."""
    finder = importlib.machinery.FileFinder.path_hook(
        (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES),
        (Watched, importlib.machinery.SOURCE_SUFFIXES),
    )
    sys.path_hooks.insert(0, finder)
    sys.path_importer_cache.clear()
    for module in modules:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            print(f"{module} cannot be imported here: {type(error).__name__}: {error}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(0)


def imported(modules: list[str]) -> list[Path]:
    """The source files of the environment that importing these modules loads.

    One module ends the process for itself alone: the others are imported in another one.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        report.touch()
        environment = {**os.environ, _REPORT: str(report)}
        command = [sys.executable, "-P", __file__, *modules]
        ended = subprocess.run(command, env=environment, check=False, stdout=sys.stderr)
        if ended.returncode != 0:
            for module in modules:
                one = subprocess.run([*command[:3], module], env=environment, check=False, stdout=sys.stderr)
                if one.returncode != 0:
                    print(f"{module} ends Python here: {one.returncode}", file=sys.stderr)
        paths = sorted({Path(line) for line in report.read_text(encoding="utf-8").splitlines()})
    inside = Path(sys.prefix)
    return [path for path in paths if path.is_relative_to(inside)]


def package_of(path: Path) -> str | None:
    """The top package of an installed module: the first folder below site-packages."""
    site = Path(sysconfig.get_path("purelib"))
    return path.relative_to(site).parts[0] if path.is_relative_to(site) else None


def main(arguments: list[str]) -> None:
    """Compile what importing the modules loads.

    The importing is another process's: strings that live elsewhere in the process that compiles are marked in
    the bytecode, and would make it depend on what else is imported.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", action="append", help="compile these packages' files alone")
    parser.add_argument("--but", action="append", default=[], help="compile all but these packages' files")
    parser.add_argument("modules", nargs="+")
    asked = parser.parse_args(arguments)
    paths = [
        path
        for path in imported(asked.modules)
        if (asked.only is None or package_of(path) in asked.only) and package_of(path) not in asked.but
    ]
    for path in paths:
        py_compile.compile(
            str(path), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )
    print(f"compiled {len(paths)} files", file=sys.stderr)


if __name__ == "__main__":
    if _REPORT in os.environ:
        import_all(sys.argv[1:])
    else:
        main(sys.argv[1:])
