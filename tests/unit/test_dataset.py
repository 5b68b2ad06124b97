"""What `--dataset` and its companions ask for: sources, columns, and every mistake with its mend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qvlfp8.dataset import DEFAULT_LENGTH, Dataset, Options, parse
from qvlfp8.errors import UsageError
from qvlfp8.recipe import Recipe, read_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
TEXT = read_recipe(RECIPES / "lm-fp8.yaml")
PICTURES = read_recipe(RECIPES / "lm-fp8-image-calib.yaml")


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """The files of a COCO 2017 by their names; what is in them is for the worker to say."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "captions_train2017.json").write_text("{}")
    (root / "train2017").mkdir()
    return root


def asked(recipe: Recipe, dataset: str, **options: Any) -> Dataset:
    found = parse(Options(dataset=dataset, **options), recipe)
    assert found is not None
    return found


def refused(recipe: Recipe, *says: str, **options: Any) -> None:
    with pytest.raises(UsageError) as caught:
        parse(Options(**options), recipe)
    for part in says:
        assert part in str(caught.value)


def test_without_a_data_set_nothing_is_asked_for() -> None:
    assert parse(Options(), TEXT) is None


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("columns", "text=a"),
        ("split", "val"),
        ("samples", 1),
        ("seed", 0),
        ("batch_size", 1),
        ("max_length", 1),
    ],
)
def test_an_option_of_a_data_set_needs_one(option: str, value: object) -> None:
    refused(TEXT, f"--{option.replace('_', '-')}", "--dataset", "coco:FOLDER", **{option: value})


def test_coco_shows_pictures_exactly_if_the_recipe_does(coco: Path) -> None:
    captions = coco / "annotations" / "captions_train2017.json"
    shown = asked(PICTURES, f"coco:{coco}")
    assert shown.asked["columns"] == {"image": "file_name", "answer": "caption"}
    assert shown.asked["pictures"] == str(coco / "train2017")
    assert shown.reads == (captions, coco / "train2017")
    (coco / "train2017").rmdir()
    told = asked(TEXT, f"coco:{coco}")
    assert told.asked["columns"] == {"answer": "caption"}
    assert (told.asked["pictures"], told.reads) == (None, (captions,))
    refused(PICTURES, "no folder train2017", "train2017.zip", dataset=f"coco:{coco}")
    refused(TEXT, "captions_val2017.json", "--split", dataset=f"coco:{coco}", split="val")
    refused(TEXT, "--columns", dataset=f"coco:{coco}", columns="text=caption")


def test_numbers_are_the_recipes_unless_they_are_given(coco: Path) -> None:
    plain = asked(TEXT, f"coco:{coco}").asked
    assert (plain["samples"], plain["seed"]) == (TEXT.calibration.samples, TEXT.calibration.seed)
    assert (plain["batch_size"], plain["max_length"]) == (1, DEFAULT_LENGTH)
    given = asked(TEXT, f"coco:{coco}", samples=5, seed=6, batch_size=7, max_length=8).asked
    assert [given[k] for k in ("samples", "seed", "batch_size", "max_length")] == [5, 6, 7, 8]
    for option in ("samples", "batch_size", "max_length"):
        refused(TEXT, f"--{option.replace('_', '-')} 0", dataset=f"coco:{coco}", **{option: 0})
    refused(TEXT, "--seed -1", dataset=f"coco:{coco}", seed=-1)


def test_a_folder_has_a_list_of_prompts(tmp_path: Path) -> None:
    refused(TEXT, "no *.jsonl", "metadata.jsonl", '"file_name"', dataset=f"folder:{tmp_path}")
    (tmp_path / "a.jsonl").touch()
    assert asked(TEXT, f"folder:{tmp_path}").asked["files"] == [str(tmp_path / "a.jsonl")]
    (tmp_path / "b.jsonl").touch()
    refused(TEXT, "2 files *.jsonl", dataset=f"folder:{tmp_path}")
    (tmp_path / "metadata.jsonl").touch()
    found = asked(PICTURES, f"folder:{tmp_path}")
    assert found.asked["files"] == [str(tmp_path / "metadata.jsonl")]
    assert found.asked["columns"] == {"image": "file_name", "text": "prompt"}
    assert tmp_path in found.reads


def test_files_are_of_one_kind_and_a_split_may_be_a_folder(tmp_path: Path) -> None:
    refused(TEXT, "no table", ".parquet", dataset=f"data:{tmp_path}")
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "b.json").touch()
    found = asked(TEXT, f"data:{tmp_path}").asked
    assert (found["reader"], len(found["files"])) == ("json", 2)
    (tmp_path / "c.csv").touch()
    refused(TEXT, "several kinds", ".csv", dataset=f"data:{tmp_path}")
    assert asked(TEXT, f"data:{tmp_path / 'c.csv'}").asked["reader"] == "csv"
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "data-0.arrow").touch()
    (tmp_path / "test" / "state.json").touch()
    split = asked(TEXT, f"data:{tmp_path}", split="test").asked
    assert (split["reader"], split["files"]) == ("arrow", [str(tmp_path / "test" / "data-0.arrow")])


def test_one_file_of_text_lets_in_nothing_but_itself(tmp_path: Path) -> None:
    """What a container sees: the file alone, its folder only where pictures lie beside it."""
    table = tmp_path / "a.csv"
    table.touch()
    assert asked(TEXT, f"data:{table}").reads == (table,)
    assert asked(PICTURES, f"data:{table}").reads == (tmp_path, table)


def test_the_hub_has_configurations_and_revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    found = asked(TEXT, "hub:org/name/plain@v1.0")
    assert (found.hub_id, found.asked["config"], found.asked["revision"]) == ("org/name", "plain", "v1.0")
    assert found.reads == (tmp_path / "datasets--org--name",)
    bare = asked(TEXT, "hub:org/name").asked
    assert (bare["config"], bare["revision"]) == (None, None)
    for wrong in ("name", "a/b/c/d", "../x", "a/b@", "-a/b"):
        refused(TEXT, f"hub:{wrong}", "ORG/NAME", dataset=f"hub:{wrong}")


@pytest.mark.parametrize("dataset", ["coco", "coco:", "zip:/x", "/data/coco", ""])
def test_a_source_that_is_none(dataset: str) -> None:
    refused(TEXT, "--dataset", "coco:FOLDER", "hub:ORG/NAME", dataset=dataset)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    refused(TEXT, "no such folder", dataset=f"coco:{tmp_path}/none")
    refused(TEXT, "no such file or folder", dataset=f"data:{tmp_path}/none")
    refused(TEXT, dataset=f"data:{'x' * 300}")
    refused(TEXT, dataset="data:\0")


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ("caption", "'caption' is no mapping"),
        ("label=x,text=y", "'label=x' is no mapping"),
        ("text=", "'text=' is no mapping"),
        ("text=a,text=b", "text is mapped twice"),
        ("image=a", "no column of text"),
    ],
)
def test_columns_that_are_no_mapping(columns: str, says: str) -> None:
    refused(TEXT, f"--columns {columns}", says, dataset="hub:a/b", columns=columns)


def test_columns_follow_what_the_recipe_shows() -> None:
    mapping = "image=picture, text=question,answer=reply"
    shown = asked(PICTURES, "hub:a/b", columns=mapping).asked["columns"]
    assert shown == {"image": "picture", "text": "question", "answer": "reply"}
    told = asked(TEXT, "hub:a/b", columns=mapping).asked["columns"]
    assert told == {"text": "question", "answer": "reply"}
    refused(PICTURES, "no column of pictures", "image=COLUMN", dataset="hub:a/b", columns="text=question")


def test_a_recipe_that_calibrates_on_nothing_takes_no_data_set() -> None:
    calibration = TEXT.calibration.model_copy(update={"modality": "none"})
    nothing = TEXT.model_copy(update={"calibration": calibration})
    refused(nothing, "lm-fp8 calibrates on nothing", dataset="hub:a/b")


def test_what_is_asked_can_be_asked_again(coco: Path, tmp_path: Path) -> None:
    """The options that a record repeats it by mean the same."""
    (tmp_path / "it's.jsonl").touch()
    for dataset, columns in ((f"coco:{coco}", None), (f"data:{tmp_path}/it's.jsonl", "answer=a")):
        first = asked(TEXT, dataset, columns=columns, samples=3, seed=4, batch_size=2, max_length=99)
        words = first.options()
        again = {k.removeprefix("--").replace("-", "_"): v for k, v in _pairs(words)}
        numbers = {k: int(again.pop(k)) for k in ("samples", "seed", "batch_size", "max_length")}
        assert asked(TEXT, again.pop("dataset"), **again, **numbers) == first


def _pairs(words: str) -> list[tuple[str, str]]:
    import shlex

    said = shlex.split(words)
    return list(zip(said[::2], said[1::2], strict=True))


def test_a_record_says_what_was_read_and_not_where_its_files_lie(coco: Path) -> None:
    first = asked(PICTURES, f"coco:{coco}")
    inputs = first.inputs({"revision": None, "digest": "abc", "skipped": {}})
    assert inputs["digest"] == "abc"
    assert not {"files", "pictures", "reader", "skipped"} & set(inputs)
    assert inputs != first.inputs({"revision": None, "digest": "abd"})
