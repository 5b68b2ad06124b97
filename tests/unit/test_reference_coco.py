"""The drawn data set: the form of COCO 2017, captions that are right, the same bytes for a seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qvlfp8 import checkpoint
from qvlfp8.reference.coco import caption, write_coco
from qvlfp8.reference.scenes import Dice, Scene, Thing, digit


def test_it_has_the_form_of_coco_2017(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco", pictures=9, seed=0)
    content = json.loads((tmp_path / "coco" / "annotations" / "captions_train2017.json").read_text())
    pictures = {picture["id"]: picture for picture in content["images"]}
    assert len(pictures) == len(content["annotations"]) == 9
    assert len({(picture["height"], picture["width"]) for picture in pictures.values()}) > 1
    for annotation in content["annotations"]:
        picture = pictures[annotation["image_id"]]
        data = (tmp_path / "coco" / "train2017" / picture["file_name"]).read_bytes()
        assert data[:4] == b"\x89PNG"
        width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
        assert (height, width) == (picture["height"], picture["width"])
        assert annotation["caption"].startswith(("a ", "an ")) or annotation["caption"][0].isdigit()


def test_the_seed_decides_and_the_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        write_coco(tmp_path / name, pictures=4, seed=seed)

    def digests(name: str) -> set[str]:
        folder = tmp_path / name
        return {checkpoint.folder_digest(folder / part) for part in ("annotations", "train2017")}

    assert digests("one") == digests("same")
    assert not digests("one") & digests("other")
    with pytest.raises(FileExistsError):
        write_coco(tmp_path / "one", pictures=4, seed=0)
    assert {path.name for path in tmp_path.iterdir()} == {"one", "same", "other"}


def test_captions_count_and_name_what_there_is() -> None:
    assert caption(digit(Dice("digit"), (112, 112), name="8", quadrant="top left")) == "a digit 8."

    def told(name: str, *colours: str) -> str:
        things = tuple(Thing(name=name, colour=colour, x=0, y=0, radius=1) for colour in colours)
        return caption(Scene(kind="dots", height=112, width=112, things=things))

    assert told("dot", "pink", "blue", "cyan", "pink") == "2 pink dots, a blue dot and a cyan dot."
    assert told("cross", "orange", "red", "red") == "an orange cross and 2 red crosses."
