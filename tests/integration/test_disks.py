"""Disks that are full or cannot be written, while a run writes: it says so, and the next run goes on.

The disks are real ones, in memory; the workers that fill them are real processes, with nothing to import.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qvlfp8.commands.matrix import show_table
from qvlfp8.engine import Batch, Exit
from qvlfp8.errors import StoreWriteError
from qvlfp8.store import LOG, Store
from tests.integration.conftest import Sandbox
from tests.integration.limits import mounted, read_only
from tests.integration.processed import Processed
from tests.unit.test_run import Bench, FakeEngine

pytestmark = pytest.mark.usefixtures("small_models")

FILLS = """
import sys
from pathlib import Path

def prepare(jobs):
    return {}

def fill(place):
    block = 1 << 20
    with place.open("wb", buffering=0) as stream:
        while block:
            try:
                stream.write(bytes(block))
            except OSError:
                block //= 2

def run(params, out):
    made = out / "checkpoint"
    made.mkdir()
    (made / "weights").write_text("0")
    if params["recipe"]["id"] == "vlm-fp8":
        deed = DEED
        if deed == "checkpoint":
            (made / "weights").write_bytes(bytes(1 << 30))
        elif deed == "result":
            fill(made / "weights")
        elif deed == "log":
            while True:
                sys.stderr.write("x" * 100_000 + "\\\\n")
    return {}
"""
"""Quantizes one recipe, and fills the disk with the other's checkpoint or log."""

DEEDS = ("checkpoint", "result", "log", "record", "model")
SIZE = "size=24m"


def said_of(bench: Bench) -> dict[tuple[str, str], tuple[Any, ...]]:
    """What the records say, but for times."""
    return {
        (r.stage, r.subject): (r.digest, r.status, r.findings, r.measured, r.made, r.inputs, r.read)
        for r in bench.project.store.records()
    }


@pytest.fixture
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[Any, ...]]:
    """The records of a run on a disk that has room."""
    bench = Bench(tmp_path_factory.mktemp("undisturbed"))
    bench.run(FakeEngine())
    return said_of(bench)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A project whose store is on a small disk."""
    with mounted(tmp_path / ".qvlfp8", SIZE):
        yield Bench(tmp_path)


def fill(folder: Path) -> Path:
    """Leave no byte in a disk; returns what takes the room."""
    filler = folder / "filler"
    block = 1 << 20
    with filler.open("ab", buffering=0) as stream:
        while block:
            try:
                stream.write(bytes(block))
            except OSError:
                block //= 2
    return filler


class BeforeTheRecord(FakeEngine):
    """Fills the disk when the third checkpoint is made, and its record is about to be written."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        self.ended = 0

    def run(self, environment: Any, batch: Batch, log: Path, on_event: Callable[..., None]) -> Exit:
        def then(event: dict[str, Any]) -> None:
            self.ended += batch.worker == "quantize"
            if self.ended == 3:
                out = next(job.out for job in batch.jobs if job.id == event["job"])
                (out / LOG).touch()  # nothing but the record is left to be written
                fill(self.root)
            on_event(event)

        return super().run(environment, batch, log, then)


def entries_are_whole(store: Store) -> None:
    entries = [path for path in store.root.glob("steps/*/*") if path.is_dir()]
    assert len(entries) == len(list(store.records()))


@pytest.mark.parametrize("deed", DEEDS)
def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(
    bench: Bench, tmp_path: Path, deed: str, undisturbed: dict[tuple[str, str], tuple[Any, ...]]
) -> None:
    root = bench.project.store.root
    engine: FakeEngine
    if deed == "record":
        engine = BeforeTheRecord(root)
    else:
        engine = Processed(tmp_path / "workers", FILLS.replace("DEED", repr(deed)))
    if deed == "model":
        fill(root)
    with pytest.raises(StoreWriteError, match="no space left on device") as refused:
        bench.run(engine)
    assert str(root) in str(refused.value)
    assert refused.value.exit_code == 13
    assert refused.value.mend == "free some space and run again; finished work is kept"
    entries_are_whole(bench.project.store)
    kept = said_of(bench)
    assert all(undisturbed[key] == said for key, said in kept.items() if said[1] == "pass")
    (root / "filler").unlink(missing_ok=True)
    another = FakeEngine()
    another.environments = engine.environments
    seen, _ = bench.run(another)
    again = {(stage, subject) for stage, subject, _ in seen.steps}
    assert not again & {key for key, said in kept.items() if said[1] == "pass"}
    assert said_of(bench) == undisturbed


def test_a_disk_that_becomes_read_only_ends_the_run(
    bench: Bench, undisturbed: dict[tuple[str, str], tuple[Any, ...]]
) -> None:
    disk = contextlib.ExitStack()

    class Failing(FakeEngine):
        """The disk fails when the first preflight is done, and its record is about to be written."""

        def run(self, environment: Any, batch: Batch, log: Path, on_event: Callable[..., None]) -> Exit:
            def then(event: dict[str, Any]) -> None:
                if batch.worker == "preflight":
                    disk.enter_context(read_only(bench.project.store.root))
                on_event(event)

            return super().run(environment, batch, log, then)

    with disk, pytest.raises(StoreWriteError, match="read-only file system") as refused:
        bench.run(Failing())
    assert refused.value.mend == "make it writable, or name another folder (--store)"
    entries_are_whole(bench.project.store)
    assert said_of(bench)
    bench.run(FakeEngine())
    assert said_of(bench) == undisturbed


def test_a_store_that_cannot_be_written_can_be_read(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.run(FakeEngine())
    store = bench.project.store
    before = said_of(bench)
    with read_only(store.root):
        with pytest.raises(StoreWriteError, match="read-only file system"), store.locked():
            pass
        assert said_of(bench) == before
        show_table(bench.project.matrix.path, None, only=(), everything=True, form="json")
    assert '"pass"' in capsys.readouterr().out


def test_the_command_on_a_read_only_store_is_13(
    sandbox: Sandbox, says: Callable[[tuple[int, str, str], int, tuple[str, ...]], None]
) -> None:
    with read_only(sandbox.store.root):
        ended = sandbox.run("matrix", "--only", "lm-fp8/modelopt-0.47.0/seeing-untied/vllm-0.13.0")
    says(ended, 13, (str(sandbox.store.root), "read-only file system", "mend: make it writable", "--store"))
