"""Workers import the standard library and their environment's packages only, and those late."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qvlfp8 import source

WORKERS = ("quantize", "inspect", "preflight", "generate")

BLOCKED = """
import importlib, sys
from importlib.abc import MetaPathFinder

class Block(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"pydantic", "yaml", "rich", "typer", "packaging", "torch", "vllm",
                                  "modelopt", "transformers", "numpy", "PIL"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
importlib.import_module("qvlfp8.worker." + sys.argv[1])
print(*sorted(m for m in sys.modules if m.startswith("qvlfp8.")))
"""


@pytest.mark.parametrize("worker", WORKERS)
def test_a_worker_module_imports_with_the_standard_library_alone(worker: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, worker], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    imported = {name.removeprefix("qvlfp8.") for name in done.stdout.split()}
    assert imported <= source.closure(f"worker.{worker}")


@pytest.mark.parametrize("worker", WORKERS)
def test_a_worker_knows_nothing_of_the_tool_around_it(worker: str) -> None:
    forbidden = {
        "cli",
        "matrix",
        "plan",
        "run",
        "store",
        "results",
        "engine",
        "judge",
        "project",
        "errors",
    }
    assert not forbidden & {name.split(".")[0] for name in source.closure(f"worker.{worker}")}


def test_the_closure_follows_imports_inside_functions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.py").write_text("def f():\n    from qvlfp8.b import x\n")
    (tmp_path / "b.py").write_text("import qvlfp8.c\n")
    (tmp_path / "c.py").write_text("import os\n")
    monkeypatch.setattr(source, "PACKAGE", tmp_path)
    source._imports.cache_clear()
    assert source.closure("a") == {"a", "b", "c"}
    source._imports.cache_clear()


def test_the_closure_has_the_packages_of_modules_and_what_they_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.py").write_text("from qvlfp8.parts.b import x\n")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "__init__.py").write_text("from qvlfp8.parts.c import y\n")
    (tmp_path / "parts" / "b.py").write_text("x = 1\n")
    (tmp_path / "parts" / "c.py").write_text("y = 1\n")
    monkeypatch.setattr(source, "PACKAGE", tmp_path)
    source._imports.cache_clear()
    assert source.closure("a") == {"a", "parts", "parts.b", "parts.c"}
    source._imports.cache_clear()
