"""``qvlfp8 recipes``."""

from __future__ import annotations

import json
from pathlib import Path

from qvlfp8.recipe import read_recipes
from qvlfp8.report import recipes_page


def show_recipes(matrix: Path, *, as_json: bool, as_markdown: bool) -> None:
    """Print every recipe in the ``recipes/`` folder beside matrix.yaml.

    Raises:
        FileFormatError: one is not valid, or there is none.
    """
    recipes = read_recipes(matrix.parent / "recipes")
    if as_markdown:
        print(recipes_page.page(recipes), end="")
        return
    if as_json:
        print(json.dumps(recipes_page.as_json(recipes.values()), indent=1))
        return
    width = max(map(len, recipes))
    for recipe in recipes.values():
        name, aliases, linear, kv_cache, calibrated, producer = recipes_page.row(recipe)
        print(f"{name:{width}}  {linear}; KV cache {kv_cache}; calibrated on {calibrated}; {producer}")
        if aliases:
            print(f"{'':{width}}  also {aliases}")
