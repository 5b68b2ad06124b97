"""Which samples of a data set are used, and which files its rows may name."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from qvlfp8.worker.calibration_choice import Chosen, choose, order
from qvlfp8.worker.calibration_pictures import MAX_BYTES, Cell, Outside, Unusable, read_picture
from qvlfp8.worker.calibration_tables import Asked, Sample
from qvlfp8.worker.protocol import Refused


class Rows:
    """A table in memory; ``pictures`` is where its files lie."""

    def __init__(self, samples: Sequence[Sample], pictures: Path | None = None) -> None:
        self.samples = samples
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> Sample:
        return self.samples[number]


def asked(samples: int, *, seed: int = 0, shows: bool = False) -> Asked:
    return Asked(
        kind="data", source="data:/x", name="/x", config=None, revision=None, split="train", files=[],
        reader="json", pictures=None, samples=samples, seed=seed, batch_size=1, max_length=99,
        columns={"image": "image", "text": "text"} if shows else {"text": "text"},
    )  # fmt: skip


def texts(count: int) -> list[Sample]:
    return [Sample(text=f"text {number}", answer="", picture=None) for number in range(count)]


def chosen(
    rows: Rows, ask: Asked, use: Callable[[Sample], Any] = lambda sample: sample.text
) -> tuple[list[Any], Chosen]:
    return choose(rows, ask, lambda sample, _reopen: use(sample), lambda _done, _total: None)


def refused(rows: Rows, ask: Asked, *says: str) -> None:
    with pytest.raises(Refused) as caught:
        chosen(rows, ask)
    assert caught.value.kind == "dataset-unusable"
    for part in says:
        assert part in str(caught.value)


def test_the_seed_decides_which_samples_and_in_which_order() -> None:
    rows = Rows(texts(50))
    first, told = chosen(rows, asked(10))
    again, told_again = chosen(rows, asked(10))
    other, told_other = chosen(rows, asked(10, seed=1))
    assert (first, told.digest) == (again, told_again.digest)
    assert set(first) != set(other)
    assert told.digest != told_other.digest
    assert sorted(order(50, 7)) == list(range(50))


def test_more_samples_begin_with_the_fewer() -> None:
    rows = Rows(texts(50))
    assert chosen(rows, asked(20))[0][:10] == chosen(rows, asked(10))[0]


def test_the_digest_is_of_what_is_shown(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    rows = Rows([Sample(text="t", answer="a", picture="a")], tmp_path)
    digests = {chosen(rows, asked(1, shows=True))[1].digest, chosen(rows, asked(1))[1].digest}
    (tmp_path / "a").write_bytes(b"two")
    digests |= {chosen(rows, asked(1, shows=True))[1].digest, chosen(rows, asked(1))[1].digest}
    assert len(digests) == 3, "another picture counts where pictures are shown, and only there"


def test_the_unusable_are_skipped_counted_and_replaced() -> None:
    samples = texts(40)
    for row in order(40, 0)[3:5]:
        samples[row] = Sample(text="", answer="", picture=None)
    found, told = chosen(Rows(samples), asked(20))
    assert len(found) == 20
    assert "" not in found
    assert told.skipped == {"empty text": 2}
    assert len(told.examples) == 2


def test_one_unusable_sample_is_never_too_many() -> None:
    samples = texts(5)
    samples[order(5, 0)[0]] = Sample(text="", answer="", picture=None)
    assert chosen(Rows(samples), asked(3))[1].skipped.total() == 1


def test_too_many_unusable_samples_end_it_with_counts_examples_and_the_mend() -> None:
    looked_at: list[str] = []

    def use(sample: Sample) -> str:
        looked_at.append(sample.text)
        if int(sample.text.split()[1]) % 2:
            raise Unusable("broken picture", f"of {sample.text}")
        return sample.text

    with pytest.raises(Refused) as caught:
        chosen(Rows(texts(1000)), asked(100), use)
    for part in ("more than 10%", "12 x broken picture", "row ", "of text ", "--dataset"):
        assert part in str(caught.value)
    assert len(looked_at) < 60, "it ends as soon as it is certain"


def test_fewer_usable_samples_than_were_asked_for() -> None:
    refused(Rows(texts(30)), asked(31), "30 usable samples of 30", "31 were", "--samples 30")
    refused(Rows([]), asked(1), "0 usable samples of 0")
    many_empty = [*texts(8), *[Sample(text="", answer="", picture=None)] * 4]
    refused(Rows(many_empty), asked(12), "more than 10%", "x empty text")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "a.png").write_bytes(b"inside")
    (tmp_path / "secret").write_bytes(b"outside")
    (root / "link.png").symlink_to(tmp_path / "secret")
    (root / "way").symlink_to(tmp_path)
    return root


@pytest.mark.parametrize(
    "name", ["../secret", "deep/../../secret", "link.png", "way/secret", "/etc/hostname"]
)
def test_a_row_that_names_a_file_outside_ends_it(pictures: Path, name: str) -> None:
    with pytest.raises(Outside):
        read_picture(name, pictures)
    rows = Rows([*texts(0), Sample(text="t", answer="", picture=name)], pictures)
    refused(rows, asked(1, shows=True), "row 0 names a file outside")


def test_pictures_are_files_below_the_folder_or_bytes(pictures: Path) -> None:
    for cell in ("deep/a.png", "deep/../deep/a.png", str(pictures / "deep" / "a.png")):
        assert read_picture(cell, pictures) == b"inside"
    assert read_picture(b"x", None) == b"x"
    assert read_picture({"bytes": b"x", "path": "../secret"}, pictures) == b"x"
    assert read_picture({"bytes": None, "path": "deep/a.png"}, pictures) == b"inside"


def test_the_hub_s_cache_keeps_files_as_links_into_its_store(tmp_path: Path) -> None:
    snapshot = tmp_path / "datasets--a--b" / "snapshots" / "0123"
    blob = tmp_path / "datasets--a--b" / "blobs" / "ff"
    snapshot.mkdir(parents=True)
    blob.parent.mkdir()
    blob.write_bytes(b"picture")
    (snapshot / "a.png").symlink_to("../../blobs/ff")
    assert read_picture("a.png", snapshot) == b"picture"


@pytest.mark.parametrize(
    "cell", [None, "", "none.png", "deep", "x" * 300, "a\0b", {"bytes": None, "path": None}]
)
def test_a_picture_that_is_not_there_is_skipped(pictures: Path, cell: Cell | None) -> None:
    with pytest.raises(Unusable) as caught:
        read_picture(cell, pictures)
    assert caught.value.reason == "no picture"


def test_a_named_pipe_is_not_waited_for(pictures: Path) -> None:
    os.mkfifo(pictures / "pipe.png")
    with pytest.raises(Unusable):
        read_picture("pipe.png", pictures)


def test_a_file_far_larger_than_any_picture_is_skipped(pictures: Path) -> None:
    with (pictures / "large.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(Unusable) as caught:
        read_picture("large.png", pictures)
    assert caught.value.reason == "picture too large"
