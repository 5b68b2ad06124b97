"""`qvlfp8 recipes`, and the page that it prints."""

from __future__ import annotations

import json

from qvlfp8.matrix import read_matrix
from tests.unit.test_cli import ROOT, fails, qvlfp8


def test_every_recipe_is_listed_with_its_other_names() -> None:
    listed = qvlfp8("recipes").stdout
    for recipe in read_matrix(ROOT / "matrix.yaml").recipes.values():
        assert any(line.startswith(f"{recipe.id} ") for line in listed.splitlines()), recipe.id
        for alias in recipe.aliases:
            assert alias in listed
    assert "also lm-fp8-kv-none, fp8_default-kv_none" in listed


def test_programs_get_them_whole() -> None:
    said = json.loads(qvlfp8("recipes", "--json").stdout)
    by_id = {recipe["id"]: recipe for recipe in said["recipes"]}
    assert by_id["vlm-fp8-attn"]["scope"] == ["language_model", "vision_attention"]
    assert by_id["lm-fp8"]["aliases"] == ["fp8_default-kv_fp8"]


def test_the_page_of_recipes_is_current() -> None:
    printed = qvlfp8("recipes", "--markdown").stdout
    committed = (ROOT / "docs" / "recipes.md").read_text()
    assert printed == committed, "run `qvlfp8 recipes --markdown > docs/recipes.md`"


def test_a_recipe_is_taken_by_any_of_its_names() -> None:
    """It goes on to the next mistake, the model."""
    for name in ("lm-fp8-nokv", "lm-fp8-kv-none", "fp8_default-kv_none"):
        fails(qvlfp8("quantize", name, "--model", "./none", "--out", "/x"), 2, "./none: no such folder")
