"""A recipe: how to quantize. One file in ``recipes/``; the file's name is the recipe's id."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from qvlfp8.errors import FileFormatError
from qvlfp8.yamlfile import Document, Strict

Part = Literal["language_model", "vision"]
Scope = Literal["language_model", "vision", "vision_attention"]
Sentence = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$")]


class KVCache(Strict):
    """Whether keys and values get scales, and in whose attention.

    ``fp8`` measures them while calibrating; ``fp8-cast`` takes the range of FP8 itself for every one, as
    ModelOpt's ``fp8_cast`` does.
    """

    format: Literal["none", "fp8", "fp8-cast"]
    attention: tuple[Part, ...] = ()

    @model_validator(mode="after")
    def _agree(self) -> KVCache:
        if (self.format == "none") != (not self.attention):
            raise ValueError("`attention` names parts exactly when `format` is not none")
        return self


class Calibration(Strict):
    """What the model is shown while activation ranges are measured; ``none`` where none are."""

    modality: Literal["none", "text", "image+text"]
    samples: int = Field(default=8, ge=0, le=100_000)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _agree(self) -> Calibration:
        if (self.modality == "none") != (self.samples == 0):
            raise ValueError("`samples` is 0 exactly when `modality` is none")
        return self


class RecipeFile(Strict):
    """A recipe as it stands in its file: without the id, which is the file's name."""

    description: Sentence
    aliases: tuple[Name, ...] = ()
    """Other names of it: what ModelOpt calls the same."""
    scope: tuple[Scope, ...] = Field(min_length=1)
    """Whose linear layers are quantized. ``vision_attention``: of vision, its attention's alone."""
    format: Literal["fp8", "nvfp4", "fp8-dynamic"]
    """``fp8-dynamic``: weights with a scale a channel, activations with one a token, found while serving."""
    kv_cache: KVCache
    calibration: Calibration
    exporter: Literal["modelopt-hf", "llmcompressor"]
    """Who quantizes and writes the checkpoint: the recipe runs in that producer's environments."""
    exclusions: Literal["as-exported", "portable"] = "as-exported"
    """How what stays unquantized is spelled: the producer's way, or so that every vLLM reads it alike."""
    link: Annotated[str, StringConstraints(pattern=r"^https://\S+$")]

    @model_validator(mode="after")
    def _no_part_twice(self) -> RecipeFile:
        for field, parts in (
            ("scope", self.scope),
            ("kv_cache.attention", self.kv_cache.attention),
        ):
            if len(set(parts)) != len(parts):
                raise ValueError(f"`{field}` names a part twice")
        if {"vision", "vision_attention"} <= set(self.scope):
            raise ValueError("`scope` names vision, which holds vision_attention; remove one")
        return self

    @model_validator(mode="after")
    def _producer(self) -> RecipeFile:
        dynamic, theirs = self.format == "fp8-dynamic", self.exporter == "llmcompressor"
        if dynamic != theirs:
            raise ValueError("`format` is fp8-dynamic exactly when `exporter` is llmcompressor")
        if theirs and (self.kv_cache.format != "none" or self.exclusions != "as-exported"):
            raise ValueError("of llmcompressor `kv_cache` has format none, and `exclusions` is as-exported")
        if (self.calibration.modality == "none") != dynamic:
            raise ValueError("`calibration.modality` is none exactly when `format` is fp8-dynamic")
        return self


class Recipe(RecipeFile):
    """One way to quantize; means the same under every version of its producer."""

    id: str

    @property
    def producer(self) -> Literal["modelopt", "llmcompressor"]:
        """Who makes it: the recipe has cells in that producer's environments."""
        return "modelopt" if self.exporter == "modelopt-hf" else "llmcompressor"

    @property
    def meaning(self) -> dict[str, Any]:
        """What it says to do, as JSON: without what is there for readers only."""
        return self.model_dump(mode="json", exclude={"description", "link", "aliases"})


def read_recipe(path: Path) -> Recipe:
    """Read one recipe file.

    Raises:
        FileFormatError: naming the file, line, field and mend.
    """
    document = Document.read(path)
    if isinstance(document.data, dict) and "id" in document.data:
        raise document.error(("id",), "a recipe's id is its file name", mend="remove the key")
    return Recipe(id=path.stem, **document.parse(RecipeFile).model_dump())


def read_recipes(folder: Path) -> dict[str, Recipe]:
    """Every ``*.yaml`` below ``folder``, by id, in alphabetical order.

    Raises:
        FileFormatError: one is not valid, two share a name, or there is none.
    """
    recipes = {path.stem: read_recipe(path) for path in sorted(folder.glob("*.yaml"))}
    if not recipes:
        raise FileFormatError(f"{folder}: no recipe (*.yaml) in this folder")
    owners = {name: name for name in recipes}
    for recipe in recipes.values():
        for index, alias in enumerate(recipe.aliases):
            if (owner := owners.get(alias)) is not None:
                raise Document.read(folder / f"{recipe.id}.yaml").error(
                    ("aliases", index), f"{alias} is a name of {owner} already", mend="remove one of the two"
                )
            owners[alias] = recipe.id
    return recipes


def find_recipe(recipes: Mapping[str, Recipe], name: str) -> Recipe | None:
    """The recipe of that id or alias; None if there is none."""
    return recipes.get(name) or next((r for r in recipes.values() if name in r.aliases), None)
