"""What each recipe quantizes, and its names: for the terminal, JSON and ``docs/recipes.md``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from qvlfp8.recipe import Recipe

__all__ = ["HEADER", "as_json", "page", "row"]

_HEAD = """\
# Recipes

What `nox -s quantize-…` (or `qvlfp8 quantize RECIPE`) makes of a model. This page is printed by
`qvlfp8 recipes --markdown`, not edited; a recipe is one file in `recipes/`. Every name in the second column
is taken wherever a recipe is named. Those that begin with a format (`fp8_…`, `nvfp4_…`) are ModelOpt's own,
from its `modelopt_recipes` or spelled as it spells them.
"""

HEADER = ("Recipe", "Also called", "Linear layers", "KV cache", "Calibrated on", "Made by")

_SCOPES = {
    "language_model": "language model",
    "vision": "vision",
    "vision_attention": "vision attention",
}
_FORMATS = {"fp8": "FP8", "nvfp4": "NVFP4", "fp8-dynamic": "FP8, dynamic"}
_PRODUCERS = {"modelopt-hf": "ModelOpt", "llmcompressor": "llm-compressor"}


def row(recipe: Recipe) -> tuple[str, ...]:
    """One recipe under :data:`HEADER`."""
    kv = recipe.kv_cache
    attention = "" if kv.attention in {(), ("language_model",)} else f" ({_parts(kv.attention)})"
    calibration = recipe.calibration
    return (
        recipe.id,
        ", ".join(recipe.aliases),
        f"{_FORMATS[recipe.format]}: {_parts(recipe.scope)}",
        {"none": "BF16", "fp8": "FP8", "fp8-cast": "FP8, unscaled"}[kv.format] + attention,
        "nothing" if calibration.modality == "none" else f"{calibration.samples} x {calibration.modality}",
        _PRODUCERS[recipe.exporter],
    )


def _parts(names: Sequence[str]) -> str:
    return " + ".join(_SCOPES[name] for name in names)


def as_json(recipes: Iterable[Recipe]) -> dict[str, Any]:
    """All of them, for ``--json``."""
    return {"version": 1, "recipes": [recipe.model_dump(mode="json") for recipe in recipes]}


def page(recipes: Mapping[str, Recipe]) -> str:
    """The whole of ``docs/recipes.md``."""
    return "\n".join(_lines(recipes)) + "\n"


def _lines(recipes: Mapping[str, Recipe]) -> Iterator[str]:
    yield _HEAD
    yield f"| {' | '.join(HEADER)} |"
    yield "|---" * len(HEADER) + "|"
    for recipe in recipes.values():
        name, aliases, *rest = row(recipe)
        called = ", ".join(f"`{alias}`" for alias in aliases.split(", ") if alias)
        yield f"| [`{name}`](../recipes/{name}.yaml) | {called} | {' | '.join(rest)} |"
    for recipe in recipes.values():
        yield f"\n`{recipe.id}`: {recipe.description}. [Upstream]({recipe.link})"
