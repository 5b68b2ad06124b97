from __future__ import annotations

from pathlib import Path

import pytest

from qvlfp8.cells import select
from qvlfp8.errors import FileFormatError
from qvlfp8.matrix import parse_matrix, read_matrix
from qvlfp8.recipe import find_recipe
from qvlfp8.yamlfile import Document
from tests.unit.factory import MATRIX, RECIPE, write_project

ROOT = Path(__file__).parents[2]


def line_of(text: str, part: str) -> int:
    return next(n for n, line in enumerate(text.splitlines(), 1) if part in line)


@pytest.mark.parametrize(
    ("old", "new", "at", "says"),
    [
        ("python:", "pyhton:", "pyhton", "did you mean 'python'"),
        ("seed: 0", "seed: -1", "seed: -1", "greater than or equal to 0"),
        ("vllm: 0.13.0", "vllm: 0.10.2", "vllm: 0.10.2", "vllm-0.10.2 stands twice"),
        ("models: tiny", "models: huge", "models: huge", "'huge' names nothing"),
        ('recipes: "*"', "recipes: [lm-fp8, nope]", "nope", "'nope' names nothing"),
        ("vllm: 0.13.0", "label: odd, vllm: 0.13.0", "label: odd", "no plain environment of vllm 0.13.0"),
        ("vllm: 0.13.0", "label: 0.1, vllm: 0.13.0", "label: 0.1", "string"),
        ("vllm: 0.13.0", "vllm: latest", "latest", "'latest' is not a version"),
        ("  quantize: {}\n", "", "locks:", "quantize"),
        ("models:\n", "models:\nmodels:\n", "models:\n", "the key stands twice"),
        ("models: tiny, serve: \"*\"}", "models: tiny, serve: \"*\"", "expectations:", "not valid YAML"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_file_line_and_mend(
    tmp_path: Path, old: str, new: str, at: str, says: str
) -> None:
    assert old in MATRIX
    path = write_project(tmp_path, MATRIX.replace(old, new, 1))
    with pytest.raises(FileFormatError) as caught:
        read_matrix(path)
    text = str(caught.value)
    assert says in text
    where, line = text.split(":")[:2]
    assert where == str(path)
    assert abs(int(line) - line_of(path.read_text(), at.strip())) <= 1
    assert caught.value.exit_code == 5


EXPECTATION = (
    'expectations:\n  - {{cells: "{cells}", shows: {{preflight: tie-misread}}, reason: why{more}}}\n'
)


def with_expectation(cells: str, more: str = "") -> str:
    return MATRIX.replace("expectations: []\n", EXPECTATION.format(cells=cells, more=more))


def test_an_expectation_that_covers_no_cell_is_an_error(tmp_path: Path) -> None:
    path = write_project(tmp_path, with_expectation("*", ', vllm: "<0.10"'))
    with pytest.raises(FileFormatError, match="covers no cell"):
        read_matrix(path)


def test_the_same_finding_expected_twice_is_an_error_and_two_findings_are_not(tmp_path: Path) -> None:
    line = '  - {cells: "lm-fp8/*", shows: {preflight: tie-misread}, reason: why}\n'
    path = write_project(tmp_path, with_expectation("*") + line)
    with pytest.raises(FileFormatError, match=r"tie-misread is expected of .* at preflight already"):
        read_matrix(path)
    path = write_project(tmp_path, with_expectation("*") + line.replace("tie-misread", "loader-error"))
    matrix = read_matrix(path)
    assert [e.shows for e in matrix.expected(matrix.cells[0], "preflight")] == [
        {"preflight": "tie-misread"},
        {"preflight": "loader-error"},
    ]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("tie-misread", "tie-mispread", "did you mean 'tie-misread'"),
        ("preflight: tie-misread}", 'inspect: tie-misread}, vllm: ">=9"', "inspect knows no vLLM"),
    ],
)
def test_an_expectation_that_can_never_be_met_is_an_error(
    tmp_path: Path, old: str, new: str, says: str
) -> None:
    path = write_project(tmp_path, with_expectation("*").replace(old, new))
    with pytest.raises(FileFormatError) as caught:
        read_matrix(path)
    assert says in str(caught.value)


@pytest.mark.parametrize("text", ["a: \x00", "a: 2026-13-20", "[" * 3000, "- ]", "\t: b"])
def test_no_file_gives_a_traceback(tmp_path: Path, text: str) -> None:
    path = tmp_path / "matrix.yaml"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=r"matrix\.yaml:\d+: "):
        read_matrix(path)


def test_a_byte_order_mark_moves_nothing(tmp_path: Path) -> None:
    path = write_project(tmp_path)
    plain = Document.read(path)
    path.write_text(f"\ufeff{plain.text}", encoding="utf-8")
    assert read_matrix(path).file == parse_matrix(plain).file
    marked = Document.read(path)
    for location in (("cells", 0, "recipes"), ("models", 0)):
        start, end = marked.span(location)
        assert marked.text[start:end] == plain.text[slice(*plain.span(location))]
        assert marked.line(location) == plain.line(location)
    assert marked.text[: marked.behind_key(("cells",))].endswith("cells:")


def test_expectations_cover_by_glob_and_by_both_versions(tmp_path: Path) -> None:
    text = with_expectation("lm-fp8/*", ', vllm: ">=0.12", modelopt: "<0.44"')
    matrix = read_matrix(write_project(tmp_path, text))
    covered = [c.id for c in matrix.cells if matrix.expected(c, "preflight")]
    assert covered == ["lm-fp8/modelopt-0.41.0/tiny/vllm-0.13.0"]
    assert not any(matrix.expected(c, "inspect") for c in matrix.cells)


def test_an_expectation_leaves_out_what_it_says(tmp_path: Path) -> None:
    text = with_expectation("lm-fp8/*", ', without: "*/modelopt-0.41.0/*/vllm-0.13.0"')
    matrix = read_matrix(write_project(tmp_path, text))
    left = [c.id for c in matrix.cells if not matrix.expected(c, "preflight")]
    assert left == ["lm-fp8/modelopt-0.41.0/tiny/vllm-0.13.0"]


def test_an_exclusion_takes_cells_out_and_keeps_the_reason(tmp_path: Path) -> None:
    text = MATRIX + 'exclusions:\n  - {cells: "*/vllm-0.13.0", reason: not on this machine}\n'
    matrix = read_matrix(write_project(tmp_path, text))
    assert [c.serve.vllm for c in matrix.cells] == ["0.10.2", "0.10.2"]
    assert {reason for _, reason in matrix.excluded} == {"not on this machine"}
    path = write_project(tmp_path, text.replace("*/vllm-0.13.0", "nothing/*"))
    with pytest.raises(FileFormatError, match="names nothing"):
        read_matrix(path)


def test_each_cell_stands_once_even_if_two_rows_name_it(tmp_path: Path) -> None:
    row = '  - {recipes: lm-fp8, quantize: modelopt-0.41.0, models: tiny, serve: "vllm-0.1*"}\n'
    path = write_project(tmp_path, MATRIX.replace("expectations:", row + "expectations:"))
    ids = [c.id for c in read_matrix(path).cells]
    assert len(ids) == len(set(ids)) == 4


def test_only_matches_whole_ids_and_single_parts(tmp_path: Path) -> None:
    cells = read_matrix(write_project(tmp_path)).cells
    assert len(select(cells, only=("vllm-0.10.2",), everything=False)) == 2
    assert len(select(cells, only=("lm-fp8/modelopt-0.47*",), everything=False)) == 2
    assert [c.id for c in select(cells, only=(), everything=False)] == [
        "lm-fp8/modelopt-0.41.0/tiny/vllm-0.10.2"
    ]
    assert len(select(cells, only=(), everything=True)) == 4


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("scope: [language_model]", "scope: [audio]", "scope"),
        ("scope: [language_model]", "scope: []", "scope"),
        ("scope: [language_model]", "scope: [vision, vision]", "names a part twice"),
        ("attention: [language_model]", "attention: []", "`attention` names parts exactly when"),
        ("modality: text", "modality: smell", "modality"),
        ("modality: text", "modality: none, samples: 3", "`samples` is 0 exactly when"),
        ("modality: text", "modality: text, samples: 0", "`samples` is 0 exactly when"),
        ("scope: [language_model]", "scope: [vision, vision_attention]", "which holds vision_attention"),
        ("format: fp8\nkv", "format: fp8-dynamic\nkv", "exactly when `exporter` is llmcompressor"),
        ("exporter: modelopt-hf", "exporter: llmcompressor", "exactly when `exporter` is llmcompressor"),
        ("format: fp8\nkv", "format: fp9\nkv", "format"),
        ("description:", "id: x\ndescription:", "a recipe's id is its file name"),
        ("https://", "ftp://", "link"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in RECIPE
    path = write_project(tmp_path)
    recipe = tmp_path / "recipes" / "lm-fp8.yaml"
    recipe.write_text(RECIPE.replace(old, new, 1))
    with pytest.raises(FileFormatError, match=r"lm-fp8\.yaml:") as caught:
        read_matrix(path)
    assert says in str(caught.value)


def test_the_shipped_matrix_keeps_its_promises() -> None:
    matrix = read_matrix(ROOT / "matrix.yaml")
    default = select(matrix.cells, only=(), everything=False)
    serve = [e.vllm for e in matrix.file.serve]
    chosen = {c.serve.vllm for c in default}
    assert len(chosen) >= 6
    assert {serve[0], serve[-1]} <= chosen
    assert len({c.quantize.modelopt for c in default}) >= 2
    assert {c.recipe.id for c in matrix.cells} == set(matrix.recipes)
    assert {"lm-fp8", "vlm-fp8", "vlm-fp8-naive"} <= {c.recipe.id for c in default}


def test_a_row_can_keep_its_cells_out_of_the_default_slice(tmp_path: Path) -> None:
    path = write_project(tmp_path)
    assert select(read_matrix(path).cells, only=(), everything=False)
    text = path.read_text()
    path.write_text(text.replace("  - {recipes:", "  - {default: false, recipes:"))
    matrix = read_matrix(path)
    assert path.read_text() != text
    assert matrix.cells
    assert not select(matrix.cells, only=(), everything=False)


def test_the_first_row_that_names_a_cell_counts(tmp_path: Path) -> None:
    path = write_project(tmp_path)
    text = path.read_text()
    row = next(line for line in text.splitlines() if line.startswith("  - {recipes:"))
    quiet = row.replace("  - {recipes:", "  - {default: false, recipes:")
    for rows, default in ((f"{row}\n{quiet}", True), (f"{quiet}\n{row}", False)):
        path.write_text(text.replace(row, rows))
        cells = read_matrix(path).cells
        assert bool(select(cells, only=(), everything=False)) is default


@pytest.mark.parametrize("alias", ["lm-fp8", "second", "other, other"])
def test_two_recipes_cannot_share_a_name(tmp_path: Path, alias: str) -> None:
    path = write_project(tmp_path)
    (tmp_path / "recipes" / "second.yaml").write_text(RECIPE)
    recipe = tmp_path / "recipes" / "lm-fp8.yaml"
    recipe.write_text(RECIPE.replace("scope:", f"aliases: [{alias}]\nscope:", 1))
    with pytest.raises(FileFormatError, match=r"lm-fp8\.yaml:\d+: .*is a name of .* already"):
        read_matrix(path)


def test_a_recipe_is_found_by_an_alias(tmp_path: Path) -> None:
    recipes = read_matrix(ROOT / "matrix.yaml").recipes
    found = find_recipe(recipes, "fp8_default-kv_fp8")
    assert found is not None
    assert found.id == "lm-fp8"
    assert find_recipe(recipes, "lm-fp8") is found
    assert find_recipe(recipes, "fp8") is None


BOUNDS = """\
bounds:
  - {recipes: "*", mean_kl: 0.1, p99_kl: 0.2, reason: all}
  - {recipes: vlm-fp8, mean_kl: 0.3, reason: this one}
"""


def test_bounds_are_those_of_the_last_row_that_names_the_recipe(tmp_path: Path) -> None:
    matrix = read_matrix(write_project(tmp_path, MATRIX + BOUNDS, recipes=("lm-fp8", "vlm-fp8")))
    found = {cell.recipe.id: matrix.bounds(cell) for cell in matrix.cells}
    assert (found["lm-fp8"].mean_kl, found["lm-fp8"].p99_kl) == (0.1, 0.2)
    assert (found["vlm-fp8"].mean_kl, found["vlm-fp8"].p99_kl) == (0.3, 0.2)


def test_bounds_of_no_recipe_are_refused(tmp_path: Path) -> None:
    path = write_project(tmp_path, MATRIX + BOUNDS)
    with pytest.raises(FileFormatError, match="'vlm-fp8' names nothing"):
        read_matrix(path)


def test_a_variant_is_named_in_the_cell_and_is_not_in_the_default_slice(tmp_path: Path) -> None:
    variants = "variants: [{id: eager}, {id: server, door: server}]\n"
    text = MATRIX.replace('serve: "*"}', 'serve: "*", variants: "*"}') + variants
    cells = read_matrix(write_project(tmp_path, text)).cells
    assert "lm-fp8/modelopt-0.41.0/tiny/vllm-0.10.2+server" in {cell.id for cell in cells}
    assert {cell.variant.id for cell in select(cells, only=(), everything=False)} == {"eager"}
