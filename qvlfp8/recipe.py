"""A recipe: how to quantize. One file in ``recipes/``; the file's name is the recipe's id."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from qvlfp8.errors import FileFormatError
from qvlfp8.yamlfile import Document, Strict

Part = Literal["language_model", "vision"]
Sentence = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class KVCache(Strict):
    """Whether keys and values get scales, and in whose attention."""

    format: Literal["none", "fp8"]
    attention: tuple[Part, ...] = ()

    @model_validator(mode="after")
    def _agree(self) -> KVCache:
        if (self.format == "none") != (not self.attention):
            raise ValueError("`attention` names parts exactly when `format` is not none")
        return self


class Calibration(Strict):
    """What the model is shown while activation ranges are measured."""

    modality: Literal["text", "image+text"]
    samples: int = Field(default=8, ge=1, le=100_000)
    seed: int = Field(default=0, ge=0)


class RecipeFile(Strict):
    """A recipe as it stands in its file: without the id, which is the file's name."""

    description: Sentence
    scope: tuple[Part, ...] = Field(min_length=1)
    format: Literal["fp8"]
    kv_cache: KVCache
    calibration: Calibration
    exporter: Literal["modelopt-hf"]
    exclusions: Literal["as-exported", "portable"] = "as-exported"
    """How what stays unquantized is spelled: ModelOpt's way, or so that every vLLM reads it alike."""
    link: Annotated[str, StringConstraints(pattern=r"^https://\S+$")]

    @model_validator(mode="after")
    def _no_part_twice(self) -> RecipeFile:
        for field, parts in (
            ("scope", self.scope),
            ("kv_cache.attention", self.kv_cache.attention),
        ):
            if len(set(parts)) != len(parts):
                raise ValueError(f"`{field}` names a part twice")
        return self


class Recipe(RecipeFile):
    """One way to quantize; means the same under every ModelOpt version."""

    id: str


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
        FileFormatError: one is not valid, or there is none.
    """
    recipes = {path.stem: read_recipe(path) for path in sorted(folder.glob("*.yaml"))}
    if not recipes:
        raise FileFormatError(f"{folder}: no recipe (*.yaml) in this folder")
    return recipes
