"""The store that all nodes reach, in a bucket of a server of S3's interface."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qvlfp8.cluster.shared import SharedStore
from qvlfp8.errors import DamagedEntryError, SharedStoreError

DIGEST = "d" * 64

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def shared(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> SharedStore:
    import s3fs

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    s3fs.S3FileSystem.clear_instance_cache()
    fs = s3fs.S3FileSystem()
    if not fs.exists("bucket"):
        fs.mkdir("bucket")
    return SharedStore("s3://bucket/prefix")


def entry(folder: Path, text: str) -> Path:
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / "weights").write_text(text)
    (folder / "record.json").write_text("{}")
    return folder


def test_a_step_comes_back_and_the_newer_one_counts(shared: SharedStore, tmp_path: Path) -> None:
    assert shared.entry("quantize", DIGEST) is None
    shared.put("quantize", DIGEST, entry(tmp_path / "one", "one"), "1" * 64)
    shared.put("quantize", DIGEST, entry(tmp_path / "two", "two"), "2" * 64)
    assert ("quantize", DIGEST) in shared.entries()
    target = tmp_path / "target"
    target.mkdir()
    assert shared.get("quantize", DIGEST, target).made == "2" * 64
    assert (target / "checkpoint" / "weights").read_text() == "two"
    shared.sign("here")
    assert shared.signed("here")
    shared.unsign(["here"])
    assert not shared.signed("here")


def test_a_changed_object_is_never_taken(shared: SharedStore, tmp_path: Path) -> None:
    import s3fs

    digest = "e" * 64
    shared.put("quantize", digest, entry(tmp_path / "one", "one"), "1" * 64)
    fs = s3fs.S3FileSystem()
    (victim,) = fs.glob(f"bucket/prefix/steps/quantize/{digest}/*/checkpoint/weights")
    fs.pipe_file(victim, b"oNe")
    with pytest.raises(DamagedEntryError, match="not what was written there"):
        shared.get("quantize", digest, tmp_path / "target")
    fs.rm_file(victim)
    with pytest.raises(DamagedEntryError, match="it is gone"):
        shared.get("quantize", digest, tmp_path / "target")
    shared.forget("quantize", digest)
    assert shared.entry("quantize", digest) is None


def test_a_bucket_that_is_not_there_is_said_in_a_sentence(shared: SharedStore, tmp_path: Path) -> None:
    other = SharedStore("s3://no-such-bucket/x")
    with pytest.raises(SharedStoreError, match="s3://no-such-bucket/x: cannot be written"):
        other.put("quantize", DIGEST, entry(tmp_path / "one", "one"), None)
