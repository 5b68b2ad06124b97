"""A small valid project in a folder, for tests that bend one line of it."""

from __future__ import annotations

from pathlib import Path

from qvlfp8 import locks
from qvlfp8.matrix import read_matrix
from qvlfp8.project import Project

MATRIX = """\
locks:
  python: "3.11"
  platform: x86_64-manylinux_2_28
  torch: 2.13.0+cpu
  exclude_newer: "2026-11-20T00:00:00Z"
  quantize: {}
  serve: {}
models:
  - {id: tiny, reference: random, seed: 0, default: true}
quantize:
  - {modelopt: 0.41.0, transformers: 4.57.6, default: true}
  - {modelopt: 0.47.0, transformers: 5.14.1}
serve:
  - {vllm: 0.10.2, transformers: 4.57.6, default: true}
  - {vllm: 0.13.0, transformers: 4.57.6}
cells:
  - {recipes: "*", quantize: "*", models: tiny, serve: "*"}
expectations: []
"""

RECIPE = """\
description: FP8 language model
scope: [language_model]
format: fp8
kv_cache: {format: fp8, attention: [language_model]}
calibration: {modality: text}
exporter: modelopt-hf
link: https://example.org/recipe
"""


def write_project(root: Path, matrix: str = MATRIX, recipes: tuple[str, ...] = ("lm-fp8",)) -> Path:
    """Write matrix.yaml and recipes; returns matrix.yaml's path."""
    (root / "recipes").mkdir(parents=True, exist_ok=True)
    for recipe in recipes:
        (root / "recipes" / f"{recipe}.yaml").write_text(RECIPE)
    path = root / "matrix.yaml"
    path.write_text(matrix)
    return path


def open_project(root: Path, matrix: str = MATRIX, recipes: tuple[str, ...] = ("lm-fp8",)) -> Project:
    """A project whose locks are up to date (and pin nothing)."""
    path = write_project(root, matrix, recipes)
    read = read_matrix(path)
    for environment in read.environments:
        for target in locks.targets_of(environment):
            lock = locks.path_of(read, environment, target)
            lock.parent.mkdir(parents=True, exist_ok=True)
            torch = "2.13.0+cpu" if target == "cpu" else "2.8.0"
            lock.write_text(locks.request(read, environment, target).header() + f"torch=={torch}\n")
    return Project.open(path)
