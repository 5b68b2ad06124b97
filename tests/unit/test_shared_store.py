"""The store that all nodes reach, on a folder: what is fetched is what was put, or nothing."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from qvlfp8.cluster.node_store import NodeStore
from qvlfp8.cluster.shared import SharedStore
from qvlfp8.errors import DamagedEntryError, SharedStoreError, UsageError
from qvlfp8.execute import digest_of_what_was_made
from qvlfp8.host import this_host
from qvlfp8.results import Record

DIGEST = "a" * 64


@pytest.fixture
def shared(tmp_path: Path) -> SharedStore:
    return SharedStore(f"file://{tmp_path / 'shared'}")


def make(folder: Path, text: str = "weights") -> str:
    """An entry as a store has it; the digest of what was made."""
    (folder / "checkpoint" / "below").mkdir(parents=True)
    (folder / "checkpoint" / "config.json").write_text("{}")
    (folder / "checkpoint" / "below" / "w.safetensors").write_text(text)
    (folder / "log.txt").write_text("a log")
    made = digest_of_what_was_made(folder)
    assert made
    record = Record(
        stage="quantize", subject="r/q/m", digest=DIGEST, status="pass", inputs={}, host=this_host(),
        started="2026-01-01T00:00:00+00:00", seconds=1.0, repeat="-", made=made, read={"b" * 64: "c" * 64},
        qvlfp8="0",
    )  # fmt: skip
    (folder / "record.json").write_text(record.model_dump_json(exclude_none=True))
    return made


def put(shared: SharedStore, tmp_path: Path, text: str = "weights") -> str:
    folder = tmp_path / f"entry-{text}"
    made = make(folder, text)
    shared.put("quantize", DIGEST, folder, made)
    return made


def test_what_was_put_comes_back(shared: SharedStore, tmp_path: Path) -> None:
    assert shared.entries() == frozenset()
    assert shared.entry("quantize", DIGEST) is None
    made = put(shared, tmp_path)
    assert shared.entries() == {("quantize", DIGEST)}
    target = tmp_path / "target"
    target.mkdir()
    assert shared.get("quantize", DIGEST, target).made == made == digest_of_what_was_made(target)
    assert (target / "log.txt").read_text() == "a log"


def test_one_file_alone_can_be_had(shared: SharedStore, tmp_path: Path) -> None:
    put(shared, tmp_path)
    shared.get("quantize", DIGEST, tmp_path / "target", only="log.txt")
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["log.txt"]


def test_a_replaced_entry_is_the_newer_one_whole(shared: SharedStore, tmp_path: Path) -> None:
    put(shared, tmp_path, "older")
    newer = put(shared, tmp_path, "newer")
    shared.get("quantize", DIGEST, tmp_path / "target")
    assert digest_of_what_was_made(tmp_path / "target") == newer


@pytest.mark.parametrize("harm", ["cut", "changed", "gone"])
def test_a_harmed_file_is_never_taken(shared: SharedStore, tmp_path: Path, harm: str) -> None:
    put(shared, tmp_path)
    (victim,) = (tmp_path / "shared").glob("steps/quantize/*/*/checkpoint/below/w.safetensors")
    match harm:
        case "cut":
            victim.write_text("weight")
        case "changed":
            victim.write_text("wEights")
        case _:
            victim.unlink()
    node = NodeStore(tmp_path / "node")
    with node.used(), pytest.raises(DamagedEntryError, match=r"w\.safetensors"):
        node.fetch(shared, "quantize", DIGEST)
    assert node.record("quantize", DIGEST) is None
    assert shared.entry("quantize", DIGEST) is None, "it is made anew"


def test_an_upload_that_was_cut_off_is_no_entry(shared: SharedStore, tmp_path: Path) -> None:
    put(shared, tmp_path)
    (entry,) = (tmp_path / "shared").glob("steps/quantize/*/entry.json")
    entry.write_bytes(entry.read_bytes()[:-5])
    assert shared.entry("quantize", DIGEST) is None
    entry.unlink()
    assert shared.entries() == frozenset()
    with pytest.raises(SharedStoreError, match="no whole entry"):
        shared.get("quantize", DIGEST, tmp_path / "target")


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside"])
def test_an_entry_that_names_what_is_outside_is_refused(
    shared: SharedStore, tmp_path: Path, name: str
) -> None:
    put(shared, tmp_path)
    (entry,) = (tmp_path / "shared").glob("steps/quantize/*/entry.json")
    content = json.loads(entry.read_text())
    content["files"][name] = content["files"].pop("log.txt")
    entry.write_text(json.dumps(content))
    target = tmp_path / "deep" / "target"
    target.mkdir(parents=True)
    with pytest.raises(DamagedEntryError, match="outside"):
        shared.get("quantize", DIGEST, target)
    assert not list(tmp_path.glob("**/outside"))


def test_two_that_put_the_same_step_leave_one_of_them_whole(shared: SharedStore, tmp_path: Path) -> None:
    texts = [f"weights-{number}" for number in range(8)]
    threads = [threading.Thread(target=put, args=(shared, tmp_path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entry = shared.get("quantize", DIGEST, tmp_path / "target")
    assert digest_of_what_was_made(tmp_path / "target") == entry.made


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SharedStoreError, match="cannot be written"):
        SharedStore(f"file://{tmp_path / 'file' / 'below'}").sign("x")
    with pytest.raises(SharedStoreError, match="nosuch"):
        SharedStore("nosuch://place")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://somebody:hunter22@127.0.0.1:1/steps",
        "https://127.0.0.1:1/steps?access_token=hunter22",
        "https://127.0.0.1:1/steps?v=1&X-Amz-Signature=hunter22",
        "https://127.0.0.1:1/steps?password=hunter22",
        "abfs://c@a.example/steps?sv=1&sig=hunter22",
    ],
)
def test_a_password_in_the_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UsageError) as refused:
        SharedStore(url)
    assert "hunter22" not in f"{refused.value} {refused.value.mend}"


def test_a_colon_and_an_at_sign_in_a_path_are_no_password(tmp_path: Path) -> None:
    store = SharedStore(f"file://{tmp_path}/a:b@c")
    store.sign("x")
    assert store.signed("x")


def test_a_node_fetches_once_and_again_what_was_made_anew(shared: SharedStore, tmp_path: Path) -> None:
    node = NodeStore(tmp_path / "node")
    with node.used():
        assert not node.fetch(shared, "quantize", DIGEST)
        put(shared, tmp_path, "older")
        assert node.fetch(shared, "quantize", DIGEST)
        at = node.entry("quantize", DIGEST)
        inode = at.stat().st_ino
        assert node.fetch(shared, "quantize", DIGEST)
        assert at.stat().st_ino == inode, "fetched twice"
        newer = put(shared, tmp_path, "newer")
        assert node.fetch(shared, "quantize", DIGEST)
        assert digest_of_what_was_made(at) == newer


def test_scratch_of_a_killed_task_is_swept_and_that_of_a_running_one_is_not(tmp_path: Path) -> None:
    dead, running, next_one = (NodeStore(tmp_path) for _ in range(3))
    (tmp_path / "tmp").mkdir()
    dead.tmp.mkdir()
    dead.tmp.with_suffix(".lock").touch()  # as the kernel leaves it: nobody holds it
    with running.used():
        kept = running.scratch("x")
        with next_one.used():
            assert not dead.tmp.exists()
            assert kept.exists()
        assert kept.exists()
    assert list((tmp_path / "tmp").iterdir()) == []
