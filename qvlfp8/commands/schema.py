"""``qvlfp8 schema``."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import BaseModel

from qvlfp8.github import GithubPlan
from qvlfp8.matrix import MatrixFile
from qvlfp8.recipe import RecipeFile
from qvlfp8.results import Record

Name = Literal["matrix", "recipe", "record", "github-plan"]


def show_schema(name: Name) -> None:
    """Print a JSON Schema."""
    print(schema_text(name), end="")


def schema_text(name: Name) -> str:
    """The JSON Schema of a kind of file, as published in schema/."""
    models: dict[str, type[BaseModel]] = {
        "matrix": MatrixFile,
        "recipe": RecipeFile,
        "record": Record,
        "github-plan": GithubPlan,
    }
    model = models[name]
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **model.model_json_schema(),
    }
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
