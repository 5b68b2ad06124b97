"""Say every recipe as JSON: the environments of a bundle can read recipes, a host's own Python need not."""

from __future__ import annotations

import json
from pathlib import Path

from qvlfp8.recipe import read_recipes

if __name__ == "__main__":
    found = read_recipes(Path(__file__).parents[2] / "recipes")
    print(json.dumps({name: recipe.model_dump(mode="json") for name, recipe in found.items()}))
