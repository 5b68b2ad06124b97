"""What is killed: a copy of qvlfp8 with drill workers, a small matrix, and a wheel for its locks."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qvlfp8 import locks
from qvlfp8.matrix import read_matrix
from qvlfp8.source import PACKAGE
from tests.survive import drill

ROOT = Path(__file__).parents[2]
ANSWERS = ROOT / "tests" / "unit" / "data" / "preflight"

MATRIX = """\
locks:
  python: "{python}"
  platform: x86_64-manylinux_2_28
  torch: 2.13.0+cpu
  exclude_newer: "2026-11-20T00:00:00Z"
  quantize: {{}}
  serve: {{}}
models:
  - {{id: seeing, reference: trained, default: true}}
quantize:
  - {{modelopt: 0.41.0, transformers: 4.57.6, default: true}}
  - {{modelopt: 0.47.0, transformers: 5.14.1, default: true}}
serve:
  - {{vllm: 0.10.2, transformers: 4.57.6, default: true}}
  - {{vllm: 0.26.0, transformers: 5.14.1, default: true}}
  - {{vllm: 0.32.0, transformers: 5.19.0, device: cpu, default: true}}
cells:
  - {{recipes: "*", quantize: modelopt-0.41.0, models: seeing, serve: "*"}}
  - {{recipes: [good, other], quantize: modelopt-0.47.0, models: seeing, serve: vllm-0.26.0}}
"""

RECIPE = """\
description: A recipe of the drill
scope: [{scope}]
format: fp8
kv_cache: {kv_cache}
calibration: {{modality: text, seed: {seed}}}
exporter: modelopt-hf
link: https://example.org/recipe
"""

_KV = "{format: fp8, attention: [language_model]}"
RECIPES = {
    "good": RECIPE.format(scope="language_model", kv_cache=_KV, seed=0),
    "other": RECIPE.format(scope="language_model", kv_cache=_KV, seed=1),
    "raises": RECIPE.format(scope="vision", kv_cache="{format: fp8, attention: [vision]}", seed=0),
    "refuses": RECIPE.format(scope="language_model", kv_cache="{format: none}", seed=0),
}
"""Two that end well, one that always raises, and one that is always refused."""

_WHEEL = "drill-1.0-py3-none-any.whl"
_MODULES = 150
"""Files of the wheel: so many that one can be killed while they are installed."""


@dataclass(frozen=True, kw_only=True)
class Drill:
    """Where everything lies, and how its command is run."""

    root: Path

    @property
    def pipe(self) -> Path:
        """What the drill workers write to."""
        return self.root / "source" / "qvlfp8" / "told"

    @property
    def matrix(self) -> Path:
        """Its matrix.yaml."""
        return self.root / "source" / "matrix.yaml"

    def command(self, store: Path, *, engine: str) -> list[str]:
        """The real command line, of the copy."""
        options = ["--matrix", str(self.matrix), "--store", str(store), "--engine", engine, "--jobs", "3"]
        return [sys.executable, "-P", "-m", "qvlfp8", "matrix", *options]

    def variables(self, given: Mapping[str, str] = os.environ) -> dict[str, str]:
        """For that command: it imports the copy, and uv finds the one wheel and no network."""
        kept = {key: value for key, value in given.items() if not key.startswith(("UV_", "PIP_"))}
        return {
            **kept,
            "PYTHONPATH": str(self.root / "source"),
            "PYTHONUNBUFFERED": "1",
            "PIP_FIND_LINKS": str(self.root / "wheels"),
            "UV_OFFLINE": "1",
            "UV_CACHE_DIR": str(self.root / "uv-cache"),
            "UV_PYTHON_DOWNLOADS": "never",
        }


def make(
    root: Path, sabotage: Mapping[str, tuple[str, str]] | None = None, image: str | None = None
) -> Drill:
    """Write the drill's project below an empty folder.

    Args:
        root: the folder.
        image: the id of an image that stands for that of every environment, in engine ``docker``.
        sabotage: file of the package -> (text in it, what stands there instead): a fault that the session has
            to find.

    Raises:
        ValueError: the text is not in the file.
    """
    made = Drill(root=root)
    package = root / "source" / "qvlfp8"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    worker = package / "worker"
    shutil.copy(worker / "inspect.py", worker / "inspect_itself.py")
    for module in Path(drill.__file__).parent.glob("[a-z]*.py"):
        (worker / module.name).write_text(_moved(module.read_text(encoding="utf-8")), encoding="utf-8")
    (worker / "answers").mkdir()
    for name in ("language-fp8-sees", "blind"):
        shutil.copy(ANSWERS / f"{name}.json", worker / "answers")
    if image is not None:
        text = (package / "images" / "__init__.py").read_text(encoding="utf-8")
        text = text.replace("qvlfp8.images.building", "qvlfp8.images.one_image")
        (package / "images" / "__init__.py").write_text(text, encoding="utf-8")
        shutil.copy(Path(drill.__file__).parent / "one_image.py", package / "images")
        (package / "images" / "one_image.txt").write_text(image, encoding="utf-8")
    for name, (was, becomes) in (sabotage or {}).items():
        text = (package / name).read_text(encoding="utf-8")
        if was not in text:
            raise ValueError(f"{name} does not say {was!r}")
        (package / name).write_text(text.replace(was, becomes), encoding="utf-8")
    os.mkfifo(made.pipe)
    made.pipe.chmod(0o666)
    shutil.copytree(
        ROOT / "containers", root / "source" / "containers", ignore=shutil.ignore_patterns("locks")
    )
    (root / "source" / "recipes").mkdir()
    for recipe, text in RECIPES.items():
        (root / "source" / "recipes" / f"{recipe}.yaml").write_text(text, encoding="utf-8")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    made.matrix.write_text(MATRIX.format(python=python), encoding="utf-8")
    _write_locks(made.matrix, _write_wheel(root / "wheels"))
    return made


def _moved(text: str) -> str:
    """A drill module as it stands among the workers: what it imports lies beside it."""
    text = text.replace("tests.survive.drill.", "qvlfp8.worker.")
    return text.replace("import inspect as itself", "import inspect_itself as itself")


def _write_locks(matrix: Path, wheel: str) -> None:
    read = read_matrix(matrix)
    for environment in read.environments:
        path = locks.path_of(read, environment)
        path.parent.mkdir(parents=True, exist_ok=True)
        pinned = f"drill==1.0 \\\n    --hash=sha256:{wheel}\n"
        path.write_text(locks.request(read, environment).header() + pinned, encoding="utf-8")


def _write_wheel(folder: Path) -> str:
    """Write a wheel of many small modules; returns its SHA-256."""
    folder.mkdir()
    info = "drill-1.0.dist-info"
    files = {f"drill/part{n}.py": f"NUMBER = {n}\n" * 40 for n in range(_MODULES)}
    files["drill/__init__.py"] = ""
    files[f"{info}/METADATA"] = "Metadata-Version: 2.1\nName: drill\nVersion: 1.0\n"
    files[f"{info}/WHEEL"] = (
        "Wheel-Version: 1.0\nGenerator: drill\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    listed = "".join(f"{name},sha256={_hash(text)},{len(text)}\n" for name, text in files.items())
    files[f"{info}/RECORD"] = f"{listed}{info}/RECORD,,\n"
    with zipfile.ZipFile(folder / _WHEEL, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), text)
    return hashlib.sha256((folder / _WHEEL).read_bytes()).hexdigest()


def _hash(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
