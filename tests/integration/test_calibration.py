"""Data sets in a real quantize environment: what is read, what is shown, and what the scales depend on.

One process of the environment does it all: its imports take longer than four quantizations.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qvlfp8 import reference
from qvlfp8.dataset import Options, parse
from qvlfp8.project import Project
from qvlfp8.reference.coco import write_coco
from tests.integration.probing import ROOT, probe, python_of

ENVIRONMENT = "modelopt-0.47.0"
TEXTS = [f"caption {number}" for number in range(4)]

Found = Mapping[str, Any]


def captions_of(coco: Path) -> Path:
    return coco / "annotations" / "captions_train2017.json"


def spoil(coco: Path, target: Path, number: int) -> dict[str, Any]:
    """Copy a data set; what stands at ``number`` of its captions is free to be changed."""
    shutil.copytree(coco, target)
    content: dict[str, Any] = json.loads(captions_of(target).read_text())
    assert len(content["annotations"]) > number
    return content


@pytest.fixture(scope="module")
def found(shipped: Project, tmp_path_factory: pytest.TempPathFactory) -> Found:
    root = tmp_path_factory.mktemp("calibration")
    reference.write_trained(root / "model", tied=False)
    for name, seed in (("one", 0), ("other", 1)):
        write_coco(root / name, pictures=40, seed=seed)
    shutil.copy(captions_of(root / "one"), captions_of(root / "other"))

    content = spoil(root / "one", root / "spoilt", 3)
    pictures = root / "spoilt" / "train2017"
    (pictures / "000000000001.png").write_bytes((pictures / "000000000001.png").read_bytes()[:500])
    content["annotations"][1]["caption"] = "  "
    content["annotations"][2]["caption"] = "a <|image_pad|> that is none"
    captions_of(root / "spoilt").write_text(json.dumps(content))
    content = spoil(root / "one", root / "outside", 0)
    for image in content["images"]:
        image["file_name"] = "../../one/train2017/000000000001.png"
    captions_of(root / "outside").write_text(json.dumps(content))

    text, image = (shipped.matrix.recipes[name] for name in ("lm-fp8", "lm-fp8-image-calib"))

    def asked(name: str, samples: int) -> object:
        dataset = parse(Options(dataset=f"coco:{root / name}", samples=samples), image)
        assert dataset is not None
        return dataset.asked

    job = {
        "model": str(root / "model"),
        "work": str(root / "work"),
        "text": text.model_dump(mode="json"),
        "image": image.model_dump(mode="json"),
        **{name: asked(name, 6) for name in ("one", "other", "outside")},
        "spoilt": asked("spoilt", 37),
    }
    (root / "work").mkdir()
    python = python_of(shipped, ENVIRONMENT)
    assert python is not None, "run `nox -s matrix` first"
    variables = {"HF_HUB_CACHE": str(root / "hub")}
    return probe("calibration_probe.py", python, job, root / "probe", [ROOT], **variables)


def test_every_source_yields_the_same_texts_and_pictures(found: Found) -> None:
    good = found["sources"]["good"]
    for name in ("parquet", "parquet without a feature", "jsonl", "csv", "arrow", "hub"):
        assert good[name]["texts"] == TEXTS, name
        assert good[name]["pictures"] == found["sources"]["shown"], name
    assert good["hub"]["revision"] == "0" * 40
    assert good["several texts"] == {"texts": TEXTS, "answers": [""] * 4, "pictures": [], "revision": None}
    assert good["an answer"]["answers"] == TEXTS


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no column", ("no column prompt", "it has image, text", "--columns")),
        ("no text", ("column n holds", "not text", "--columns text=")),
        ("no picture", ("column n holds", "not pictures", "--columns image=")),
        ("broken", ("cannot be read", "--dataset")),
        ("no hub", ("hub:org/none", "hf download --repo-type dataset org/none")),
        ("no split", ("cannot be read", "test")),
        ("address", ("column text holds", "not pictures")),
    ],
)
def test_a_source_that_cannot_be_used_says_why_and_the_mend(
    found: Found, name: str, says: tuple[str, ...]
) -> None:
    said = found["sources"]["bad"][name]
    assert said.startswith("dataset-unusable: ")
    for part in says:
        assert part in said


def test_pictures_of_every_mode_are_shown_and_no_other_file_is(found: Found) -> None:
    assert found["pictures"]["good"] == {
        form: ["RGB", [60, 40]] for form in ("JPEG", "GIF", "PNG", "WEBP", "TIFF")
    }
    bad = found["pictures"]["bad"]
    assert {name for name, said in bad.items() if said.startswith("picture too large")} == {"bomb", "large"}
    assert {name for name, said in bad.items() if said.startswith("broken picture")} == {
        "truncated", "text", "empty", "postscript",
    }  # fmt: skip


def test_a_batch_has_pictures_of_several_sizes(found: Found) -> None:
    one = found["batches"]["one"]
    assert [rows for rows, _ in one["shapes"]] == [3, 3]
    assert any(len({tuple(size) for size in sizes}) > 1 for sizes in one["sizes"])
    assert [4 * count for count in one["placeholders"]] == one["patches"]
    assert one["masked"] == one["measured"]["padding"] > 0
    assert one["measured"]["images"] == one["measured"]["samples"] == 6
    single = found["batches"]["single"]
    assert single["measured"]["padding"] == single["masked"] == 0
    assert single["measured"]["tokens"] == one["measured"]["tokens"]


def test_the_seed_decides(found: Found) -> None:
    made = found["batches"]
    assert made["one"]["digests"] == made["one"]["again"] == made["same"]["digests"]
    assert not set(made["one"]["digests"]) & set(made["seed"]["digests"])
    assert made["one"]["measured"]["dataset"]["digest"] != made["seed"]["measured"]["dataset"]["digest"]


def test_the_model_s_own_chat_template_writes_them(found: Found) -> None:
    made = found["batches"]
    assert made["single"]["first"].startswith("<|im_start|>user\n<|vision_start|><|image_pad|>")
    assert "<|vision_end|>Describe the picture.<|im_end|>\n<|im_start|>assistant\n" in made["single"]["first"]
    assert made["newer"]["first"] == "Be brief. " + made["single"]["first"]
    assert made["older"]["first"] == "Be kind. " + made["single"]["first"]


def test_text_alone_shows_no_picture(found: Found) -> None:
    text = found["batches"]["text"]
    assert text["sizes"] == text["patches"] == []
    assert sum(text["placeholders"]) == text["measured"]["images"] == 0
    assert "vision" not in text["first"]
    assert "digit" in text["first"] or " a" in text["first"], text["first"]


def test_a_long_text_is_cut_and_a_picture_is_not(found: Found) -> None:
    cut = found["batches"]["cut"]
    assert cut["measured"]["cut"] == 6
    assert cut["shapes"] == [[1, 60]] * 6
    assert [4 * count for count in cut["placeholders"]] == cut["patches"]
    assert "longer than the length limit" in found["batches"]["too short"]


def test_what_cannot_be_used_is_skipped_and_counted(found: Found) -> None:
    spoilt = found["batches"]["spoilt"]["measured"]
    assert spoilt["samples"] == spoilt["images"] == 37
    assert spoilt["dataset"]["skipped"] == {
        "broken picture": 1, "empty text": 1, "text with the model's own marks": 1,
    }  # fmt: skip
    assert len(spoilt["dataset"]["examples"]) == 3
    assert "has changed since" in found["batches"]["moved"]
    outside = found["batches"]["outside"]
    assert "names a file outside" in outside
    assert "../../one/train2017" in outside


def test_scales_depend_on_the_pictures_exactly_where_pictures_are_shown(found: Found) -> None:
    """Upstream's ``hf_ptq.py --calib_with_images`` drops them for this model, and says nothing."""
    made = found["scales"]
    assert made["text one"]["tensors"] == made["text other"]["tensors"]
    one, other = (made[f"image {name}"]["tensors"] for name in ("one", "other"))
    assert one.keys() == other.keys()
    differ = {name.rpartition(".")[2] for name in one if one[name] != other[name]}
    assert differ == {"input_scale", "k_scale", "v_scale"}, "scales of activations, and nothing else"
    inputs = [name for name in one if name.endswith("input_scale")]
    assert sum(one[name] != other[name] for name in inputs) > len(inputs) / 2
    said = {name: checkpoint["calibration"] for name, checkpoint in made.items()}
    assert {name: calibration["images"] for name, calibration in said.items()} == {
        "text one": 0, "text other": 0, "image one": 6, "image other": 6,
    }  # fmt: skip
    digests = {name: calibration["dataset"]["digest"] for name, calibration in said.items()}
    assert digests["text one"] == digests["text other"]
    assert digests["image one"] != digests["image other"]
