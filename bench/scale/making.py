"""A project of many cells in a folder: recipes, environments and locks such as this repository's own.

Recipes are copies of five of ours. What cells of a recipe show is what committed records of ours showed, in
an old vLLM and in a new one (:mod:`bench.scale.shown`); the expectations are made of them, so that nothing is
a surprise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import yaml

from bench.scale.shown import KINDS, Era, shown
from qvlfp8 import locks
from qvlfp8.environments import Environment
from qvlfp8.matrix import read_matrix
from qvlfp8.recipe import read_recipe
from qvlfp8.scoring import Bounds

ROOT = Path(__file__).parents[2]

FIRST_VLLM, FIRST_MODELOPT = 10, 41
OLD = 2
"""So many of the vLLM versions are old: as 0.10.2 in what they show. The others are as 0.26.0."""

MODELS = (
    {"id": "seeing-untied", "reference": "trained", "tie_word_embeddings": False, "default": True},
    {"id": "seeing-tied", "reference": "trained", "tie_word_embeddings": True, "default": True},
)


@dataclass(frozen=True)
class Size:
    """How many of each there are; ``cells`` is about their product."""

    cells: int
    recipes: int
    quantize: int
    serve: int


SIZES = {
    size.cells: size
    for size in (
        Size(1_000, 10, 5, 10),
        Size(3_000, 15, 10, 10),
        Size(10_000, 25, 10, 20),
        Size(30_000, 30, 10, 50),
        Size(100_000, 50, 20, 50),
    )
}


def make(folder: Path, size: Size) -> None:
    """Write matrix.yaml, recipes and locks."""
    (folder / "recipes").mkdir(parents=True)
    own = yaml.safe_load((ROOT / "matrix.yaml").read_text(encoding="utf-8"))
    names = []
    for number in range(size.recipes):
        kind = KINDS[number % len(KINDS)]
        names.append(f"{kind}-{number:03}")
        (folder / "recipes" / f"{names[-1]}.yaml").write_text(_recipe(kind), encoding="utf-8")
    serve = [_serve(number) for number in range(size.serve)]
    matrix = {
        "locks": own["locks"],
        "models": list(MODELS),
        "quantize": [_quantize(number) for number in range(size.quantize)],
        # As in our own matrix, one CPU build, which runs few of the cells.
        "serve": [*serve, {**_serve(size.serve), "device": "cpu"}],
        "variants": own["variants"],
        "exam": own["exam"],
        "cells": [
            {"recipes": "*", "quantize": "*", "models": "*", "serve": "vllm-*.?"},
            {"recipes": "vlm-fp8-[0-9]*", "quantize": f"modelopt-0.{FIRST_MODELOPT}.0",
             "models": "seeing-untied", "serve": "*-cpu"},
        ],
        "bounds": own["bounds"],
        "expectations": list(_expectations(names)),
    }  # fmt: skip
    # JSON is YAML, and its writer the faster one.
    (folder / "matrix.yaml").write_text(json.dumps(matrix, indent=1), encoding="utf-8")
    _lock(folder)


def kind_of(recipe: str) -> str:
    """The recipe of ours that a recipe is a copy of."""
    return recipe.rpartition("-")[0]


def era_of(vllm: str) -> Era:
    """As which of our records a vLLM shows itself."""
    return "old" if int(vllm.split(".")[1]) < FIRST_VLLM + OLD else "new"


def _recipe(kind: str) -> str:
    recipe = read_recipe(ROOT / "recipes" / f"{kind}.yaml")
    return json.dumps(recipe.model_dump(mode="json", exclude={"id", "aliases"}))


def _quantize(number: int) -> dict[str, object]:
    return {"modelopt": f"0.{FIRST_MODELOPT + number}.0", "transformers": "4.57.6", "default": True}


def _serve(number: int) -> dict[str, object]:
    return {"vllm": f"0.{FIRST_VLLM + number}.0", "transformers": "4.57.6", "default": True}


def _expectations(recipes: list[str]) -> Iterator[dict[str, object]]:
    """One for each recipe, era and rank of a finding among those of its stage."""
    border = f"0.{FIRST_VLLM + OLD}.0"
    for recipe in recipes:
        for era, specifier in (("old", f"<{border}"), ("new", f">={border}")):
            told = shown(kind_of(recipe), era, Bounds())
            for rank in range(max(map(len, told.values()), default=0)):
                found = {
                    stage: next(islice(causes, rank, None))
                    for stage, causes in told.items()
                    if len(causes) > rank and (era == "new" or stage != "inspect")
                }
                alone = {stage: cause for stage, cause in found.items() if stage == "inspect"}
                rest = {stage: cause for stage, cause in found.items() if stage != "inspect"}
                row = {"cells": f"{recipe}/*", "reason": "our own records show it"}
                if alone:
                    yield {**row, "shows": alone}
                if rest:
                    yield {**row, "vllm": specifier, "shows": rest}


def _lock(folder: Path) -> None:
    """Locks whose headers are right, and whose packages are those of a lock of ours."""
    matrix = read_matrix(folder / "matrix.yaml")
    for environment in matrix.environments:
        for target in locks.targets_of(environment):
            path = locks.path_of(matrix, environment, target)
            path.parent.mkdir(parents=True, exist_ok=True)
            header = locks.request(matrix, environment, target).header()
            path.write_text(header + _packages(environment, target), encoding="utf-8")


def _packages(environment: Environment, target: locks.Target) -> str:
    name = "modelopt-0.47.0"
    if environment.kind == "serve":
        name = "vllm-0.32.0-cpu" if environment.device == "cpu" else "vllm-0.26.0"
    text = (ROOT / "containers" / "locks" / f"{name}.{target}.txt").read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("#"))
