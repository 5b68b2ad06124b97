"""Two producers of checkpoints: which recipe is made in which environment, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from qvlfp8 import locks, single
from qvlfp8.environments import QuantizeEnvironment
from qvlfp8.errors import FileFormatError, UsageError
from qvlfp8.matrix import read_matrix
from qvlfp8.quant_cfg import NotExpressibleError, Recipe
from qvlfp8.worker import export_llmcompressor, export_modelopt, quantize
from tests.unit.factory import MATRIX, RECIPE, open_project, write_project

DYNAMIC = (
    RECIPE.replace("format: fp8\n", "format: fp8-dynamic\n")
    .replace("{format: fp8, attention: [language_model]}", "{format: none}")
    .replace("{modality: text}", "{modality: none, samples: 0}")
    .replace("modelopt-hf", "llmcompressor")
)
LATEST = "  - {modelopt: 0.47.0, transformers: 5.14.1}\n"
BOTH = MATRIX.replace(
    LATEST,
    LATEST
    + "  - {llmcompressor: 0.9.0, transformers: 4.57.6}\n"
    + "  - {llmcompressor: 0.14.0.1, transformers: 5.17.0}\n",
)

DYNAMIC_RECIPE: Recipe = {
    "id": "dynamic", "scope": ["language_model"], "format": "fp8-dynamic", "exclusions": "as-exported",
    "kv_cache": {"format": "none", "attention": []}, "exporter": "llmcompressor",
    "calibration": {"modality": "none", "samples": 0, "seed": 0},
}  # fmt: skip


def write_both(root: Path, matrix: str = BOTH) -> Path:
    path = write_project(root, matrix)
    (root / "recipes" / "dynamic.yaml").write_text(DYNAMIC)
    return path


def test_an_environment_has_its_producers_name_version_and_requirement() -> None:
    made = QuantizeEnvironment(llmcompressor="0.14.0.1", transformers="5.17.0", label="odd")
    assert made.id == "llmcompressor-0.14.0.1-odd"
    assert made.package == ("llmcompressor", "0.14.0.1")
    assert made.requirement == "llmcompressor==0.14.0.1"
    made = QuantizeEnvironment(modelopt="0.47.0", transformers="5.14.1")
    assert (made.id, made.producer) == ("modelopt-0.47.0", "modelopt")
    assert made.requirement == "nvidia-modelopt[hf]==0.47.0"


@pytest.mark.parametrize("producers", [{}, {"modelopt": "0.47.0", "llmcompressor": "0.14.0"}])
def test_an_environment_has_one_producer(producers: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="an environment has one producer"):
        QuantizeEnvironment.model_validate({"transformers": "5.14.1", **producers})


def test_a_recipe_has_cells_in_its_own_producers_environments(tmp_path: Path) -> None:
    matrix = read_matrix(write_both(tmp_path))
    assert {(cell.recipe.id, cell.quantize.id) for cell in matrix.cells} == {
        ("lm-fp8", "modelopt-0.41.0"), ("lm-fp8", "modelopt-0.47.0"),
        ("dynamic", "llmcompressor-0.9.0"), ("dynamic", "llmcompressor-0.14.0.1"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new"),
    [('quantize: "*"', 'quantize: "modelopt-*"'), ('quantize: "*"', 'quantize: "llmcompressor-*"')],
)
def test_a_row_that_makes_no_cell_is_an_error(tmp_path: Path, old: str, new: str) -> None:
    other = "dynamic" if "modelopt" in new else "lm-fp8"
    path = write_both(tmp_path, BOTH.replace(old, new).replace('recipes: "*"', f"recipes: {other}"))
    with pytest.raises(FileFormatError, match=r"matrix\.yaml:\d+: .*has the producer"):
        read_matrix(path)


def test_what_is_expected_of_a_modelopt_is_not_expected_of_others(tmp_path: Path) -> None:
    expected = '\n  - {cells: "*", shows: {inspect: scale-missing}, modelopt: ">0", reason: why}\n'
    matrix = read_matrix(write_both(tmp_path, BOTH.replace("expectations: []\n", f"expectations:{expected}")))
    covered = {cell.quantize.producer for cell in matrix.cells if matrix.expected(cell, "inspect")}
    assert covered == {"modelopt"}


def prepared(root: Path, recipe: str, environment: str | None, matrix: str = BOTH) -> str:
    project = open_project(root, matrix)
    (root / "recipes" / "dynamic.yaml").write_text(DYNAMIC)
    project = type(project).open(project.matrix.path)
    return single.prepare(project, recipe, "org/model", root / "out", environment).environment.id


def test_the_newest_environment_of_the_producer_is_taken(tmp_path: Path) -> None:
    """0.14 is newer than 0.9, which it is not as text."""
    assert prepared(tmp_path / "a", "dynamic", None) == "llmcompressor-0.14.0.1"
    assert prepared(tmp_path / "b", "dynamic", "llmcompressor-0.9.0") == "llmcompressor-0.9.0"
    assert prepared(tmp_path / "c", "lm-fp8", None) == "modelopt-0.47.0"


@pytest.mark.parametrize(
    ("recipe", "environment", "says", "mend"),
    [
        ("dynamic", "modelopt-0.47.0", "dynamic is made by llmcompressor, and modelopt-0.47.0 has modelopt",
         "llmcompressor-0.9.0, llmcompressor-0.14.0.1"),
        ("lm-fp8", "llmcompressor-0.9.0", "lm-fp8 is made by modelopt", "modelopt-0.41.0, modelopt-0.47.0"),
        ("lm-fp8", "modelopt-0.1.0", "no quantize environment 'modelopt-0.1.0'", "modelopt-0.41.0"),
    ],
)  # fmt: skip
def test_another_producers_environment_is_refused(
    tmp_path: Path, recipe: str, environment: str, says: str, mend: str
) -> None:
    with pytest.raises(UsageError) as caught:
        prepared(tmp_path, recipe, environment)
    assert says in caught.value.problem
    assert mend in str(caught.value.mend)


def test_a_recipe_whose_producer_has_no_environment_is_refused(tmp_path: Path) -> None:
    row = MATRIX.replace('recipes: "*"', "recipes: lm-fp8")
    with pytest.raises(UsageError, match="made by llmcompressor, of which there is no environment"):
        prepared(tmp_path, "dynamic", None, row)


def test_both_producers_are_locked_by_the_same_policy(tmp_path: Path) -> None:
    matrix = read_matrix(write_both(tmp_path, BOTH.replace("quantize: {}", "quantize: {exclude: [triton]}")))
    for environment in matrix.file.quantize:
        asked = locks.request(matrix, environment)
        assert asked.exclude == ("triton",)
        assert asked.requires[0] == environment.requirement


def test_every_exporter_of_a_recipe_has_a_producer() -> None:
    assert set(quantize._PRODUCERS) == {"modelopt-hf", "llmcompressor"}
    assert quantize._PRODUCERS["llmcompressor"] is export_llmcompressor
    assert quantize._PRODUCERS["modelopt-hf"] is export_modelopt


def test_llm_compressor_ignores_the_tower_in_the_names_before_and_since_transformers_4_52() -> None:
    said = export_llmcompressor.configuration(DYNAMIC_RECIPE, {})
    assert said == {
        "targets": "Linear",
        "scheme": "FP8_DYNAMIC",
        "ignore": ["re:.*lm_head", "re:visual.*", "re:model.visual.*"],
    }
    both: Recipe = {**DYNAMIC_RECIPE, "scope": ["language_model", "vision"]}
    assert export_llmcompressor.configuration(both, {})["ignore"] == ["re:.*lm_head"]


@pytest.mark.parametrize(
    "change",
    [
        {"format": "fp8"},
        {"scope": ["language_model", "vision_attention"]},
        {"kv_cache": {"format": "fp8", "attention": ["language_model"]}},
    ],
)
def test_what_llm_compressor_is_not_asked_for(change: dict[str, object]) -> None:
    recipe: Recipe = {**DYNAMIC_RECIPE, **change}  # type: ignore[typeddict-item]
    with pytest.raises(NotExpressibleError):
        export_llmcompressor.configuration(recipe, {})
