"""``qvlfp8 schema``."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import BaseModel

from qvlfp8.github import GithubPlan
from qvlfp8.matrix import MatrixFile
from qvlfp8.recipe import RecipeFile
from qvlfp8.results import Record
from qvlfp8.site.api import SiteDocument

Schema = Literal["matrix", "recipe", "record", "github-plan", "site"]
"""What has one."""


def show_schema(name: Schema) -> None:
    """Print a JSON Schema."""
    print(schema_text(name), end="")


def schema_text(name: Schema) -> str:
    """The JSON Schema of a kind of file, as published in schema/."""
    models: dict[Schema, type[BaseModel]] = {
        "matrix": MatrixFile,
        "recipe": RecipeFile,
        "record": Record,
        "github-plan": GithubPlan,
        "site": SiteDocument,
    }
    model = models[name]
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **model.model_json_schema(),
    }
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
