from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlfp8.errors import StoreBusyError, StoreWriteError
from qvlfp8.results import Fault, Finding, Host, Record
from qvlfp8.store import RECORD, Store, writing

HOST = Host(machine="x86_64", system="Linux", cpus=2, memory_gb=24.0)


def record(digest: str = "a" * 64, **changes: object) -> Record:
    values: dict[str, object] = {
        "stage": "inspect", "subject": "r/q/m", "digest": digest, "status": "pass", "inputs": {},
        "host": HOST, "started": "2026-11-22T00:00:00+00:00", "seconds": 1.0,
        "repeat": "again", "qvlfp8": "0", "read": {"b" * 64: "c" * 64},
    }  # fmt: skip
    return Record.model_validate({**values, **changes})


texts = st.text(max_size=20)
findings = st.builds(
    Finding, id=texts, severity=st.sampled_from(["fail", "note"]), summary=texts,
    evidence=st.lists(texts, max_size=3).map(tuple),
)  # fmt: skip
json_values = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
json_objects = st.dictionaries(texts, json_values, max_size=3)
records = st.builds(
    Record, stage=st.sampled_from(["quantize", "inspect", "preflight"]), subject=texts,
    digest=st.text("0123456789abcdef", min_size=64, max_size=64),
    status=st.sampled_from(["pass", "fail", "error"]),
    inputs=json_objects, environment=json_objects, measured=json_objects,
    host=st.just(HOST), started=texts, seconds=st.floats(0, 1e6),
    findings=st.lists(findings, max_size=3).map(tuple),
    fault=st.none() | st.builds(Fault, kind=texts, message=texts),
    repeat=texts, log=st.none(), log_digest=st.none(), qvlfp8=texts,
)  # fmt: skip


@given(records)
def test_a_record_survives_the_round_trip(made: Record) -> None:
    assert Record.model_validate_json(made.model_dump_json(exclude_none=True)) == made


def commit(store: Store, made: Record) -> None:
    scratch = store.scratch("x")
    (scratch / "data").write_text("data")
    store.commit(scratch, made)


def test_a_committed_step_is_found_again_with_its_files(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    with store.locked():
        commit(store, record())
    assert store.record("inspect", "a" * 64) == record()
    assert (store.entry("inspect", "a" * 64) / "data").read_text() == "data"
    assert store.record("preflight", "a" * 64) is None
    assert store.record("inspect", "b" * 64) is None


def test_a_later_commit_replaces_the_earlier(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.locked():
        commit(store, record(status="error"))
        commit(store, record(status="pass"))
    found = store.record("inspect", "a" * 64)
    assert found is not None
    assert found.status == "pass"


@pytest.mark.parametrize("content", [b"", b"{", b'{"version": 1}', b"\xff\xfe", b"null"])
def test_a_half_written_entry_is_no_entry(tmp_path: Path, content: bytes) -> None:
    store = Store(tmp_path)
    with store.locked():
        commit(store, record())
    (store.entry("inspect", "a" * 64) / RECORD).write_bytes(content)
    assert store.record("inspect", "a" * 64) is None


def test_an_entry_under_another_digest_is_no_entry(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.locked():
        commit(store, record())
    store.entry("inspect", "a" * 64).rename(store.entry("inspect", "b" * 64))
    assert store.record("inspect", "b" * 64) is None


def test_the_next_run_sweeps_what_was_half_made(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.locked():
        left = store.scratch("x")
    with store.locked():
        assert not left.exists()


def test_what_was_moved_away_for_a_new_entry_comes_back_if_that_never_came(tmp_path: Path) -> None:
    store = Store(tmp_path)

    class Killed(BaseException):
        pass

    def killed(_self: Path, _target: Path) -> Path:
        raise Killed

    with store.locked():
        commit(store, record())
        scratch = store.scratch("x")
        first: Callable[[Path, Path], Path] = Path.rename
        # The first rename moves the old entry away; at the second, the run is killed.
        calls = iter([first, killed])

        def rename(path: Path, target: Path) -> Path:
            return next(calls)(path, target)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Path, "rename", rename)
            with pytest.raises(Killed):
                store.commit(scratch, record(status="fail"))
        assert store.record("inspect", "a" * 64) is None
    with Store(tmp_path).locked():
        assert store.record("inspect", "a" * 64) == record()
    assert not list(store.tmp.iterdir())


def test_a_second_run_in_one_store_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    first, second = Store(tmp_path), Store(tmp_path)
    with first.locked():
        with (
            pytest.raises(StoreBusyError, match=r"in use by another run \(process \d+ on \S+\)"),
            second.locked(),
        ):
            pass
        commit(first, record())
    with second.locked():
        assert second.record("inspect", "a" * 64) is not None


def test_a_record_that_names_nothing_it_read_was_not_executed_here(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.locked():
        commit(store, record(read={}))
    assert store.record("inspect", "a" * 64) is None
    assert list(store.records()) == []


def test_a_killed_run_does_not_keep_the_store(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from qvlfp8.store import Store\n"
        "with Store(Path(sys.argv[1])).locked(): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    with Store(tmp_path).locked():
        pass


def test_a_killed_run_does_not_keep_the_store_though_what_it_started_lives(tmp_path: Path) -> None:
    code = (
        "import os, signal, subprocess, sys; from pathlib import Path; from qvlfp8.store import Store\n"
        "with Store(Path(sys.argv[1])).locked():\n"
        "    print(subprocess.Popen(['sleep', '600'], stdout=-3, stderr=-3).pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    said = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=False)
    child = int(said.stdout)
    try:
        os.kill(child, 0)
        with Store(tmp_path).locked():
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_store_that_was_copied_or_restored_while_it_was_held_is_free(tmp_path: Path) -> None:
    held = Store(tmp_path / "held")
    with held.locked():
        commit(held, record())
        held.scratch("half-made")
        shutil.copytree(held.root, tmp_path / "restored")
        restored = Store(tmp_path / "restored")
        assert (restored.root / "lock").read_text() == (held.root / "lock").read_text()
        with restored.locked():
            assert restored.record("inspect", "a" * 64) == record()
            assert list(restored.tmp.iterdir()) == []


def test_of_records_of_one_time_always_the_same_is_the_newest(tmp_path: Path) -> None:
    for order in ("bcd", "dcb"):
        store = Store(tmp_path / order)
        with store.locked():
            for letter in order:
                commit(store, record(letter * 64))
        found = store.older("inspect", "r/q/m", than="a" * 64)
        assert found is not None
        assert found.digest == "d" * 64


def test_a_clock_that_was_set_back_does_not_bring_an_older_record_of_a_step_back(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.locked():
        commit(store, record(started="2030-01-01T00:00:00+00:00", status="fail"))
        commit(store, record(started="2020-01-01T00:00:00+00:00"))
    found = store.record("inspect", "a" * 64)
    assert found is not None
    assert (found.status, found.started[:4]) == ("pass", "2020")


def test_an_entry_whose_replacement_the_disk_refuses_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.startswith("x-"):
            raise OSError(errno.ENOSPC, "text", str(target))
        return rename(self, target)

    with store.locked():
        commit(store, record())
        monkeypatch.setattr(Path, "rename", refuse)
        with pytest.raises(StoreWriteError):
            commit(store, record(status="fail"))
    found = store.record("inspect", "a" * 64)
    assert found is not None
    assert found.status == "pass"


def test_an_entry_is_replaced_as_often_as_it_is_made(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.locked():
        for _ in range(4):
            commit(store, record())


def test_a_record_keeps_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", 'hf_of"this user')
    store = Store(tmp_path)
    fault = Fault(kind="x", message='cannot log in with hf_of"this user')
    with store.locked():
        commit(store, record(status="error", fault=fault))
    found = store.record("inspect", "a" * 64)
    assert found is not None
    assert found.fault is not None
    assert found.fault.message == "cannot log in with [secret]"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_refuses_is_one_sentence_with_the_place(number: int) -> None:
    with pytest.raises(StoreWriteError, match="/some/place: ") as caught, writing(Path("/other")):
        raise OSError(number, "text", "/some/place")
    assert caught.value.exit_code == 13
    assert caught.value.mend


def test_another_fault_of_the_system_is_not_taken_for_the_disk() -> None:
    with pytest.raises(OSError, match="interrupted"), writing(Path("/x")):
        raise OSError(errno.EINTR, "interrupted")
