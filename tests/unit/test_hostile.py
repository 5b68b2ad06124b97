"""Hostile checkpoints: one clear error each, and nothing outside the folder is opened, written or run."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import pytest

from qvlfp8 import checkpoint, mending, repair, untrusted
from qvlfp8.checkpoint import CONFIG, WEIGHTS, NotACheckpoint
from qvlfp8.errors import EXIT_CODES, RepairError, StoreWriteError, UsageError
from qvlfp8.tensorfile import MAX_HEADER_BYTES
from tests.unit.hostile import CASES, SECRET, Case, link, outside, pipe, put, victim
from tests.unit.test_cli import ROOT, fails, qvlfp8
from tests.unit.watching import watched


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


LIGHT = [case for case in CASES if not case.heavy]


@pytest.mark.parametrize("case", LIGHT, ids=[case.name for case in LIGHT])
def test_each_gets_one_clear_error_and_leaves_no_trace(case: Case, tmp_path: Path) -> None:
    source = victim(tmp_path / "in")
    case.make(source)
    before = names(tmp_path), names(source)

    with watched(source, tmp_path / "out") as touched:
        done = qvlfp8("repair", str(source), str(tmp_path / "out"))

    fails(done, case.code, case.says, "\n  mend: ")
    assert case.code in EXIT_CODES
    assert len(done.stderr.splitlines()) == 2, "a sentence, and its mend"
    assert all(line.isprintable() for line in done.stderr.splitlines())
    assert len(done.stderr) < 1_500
    assert SECRET not in done.stderr
    assert done.stdout == ""
    assert touched == []
    assert (names(tmp_path), names(source)) == before


def test_the_victim_alone_is_mended(tmp_path: Path) -> None:
    """Otherwise the cases would prove nothing."""
    done = qvlfp8("repair", str(victim(tmp_path / "in")), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr


def test_the_watch_sees_a_file_outside(tmp_path: Path) -> None:
    source = victim(tmp_path / "in")
    with watched(source, tmp_path / "out") as touched:
        outside(source).read_text()
    assert {event.split(" ", 1)[0] for event in touched} == {"open"}


def test_nothing_here_or_in_the_workers_unpickles_or_trusts_remote_code() -> None:
    """By the syntax tree: no import of a pickle module, no call that would load one, no remote code."""
    forbidden = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    for file in sorted((ROOT / "qvlfp8").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                # Ray unpickles all that it carries; an order is opened by us, after a node may be refused.
                case ast.Import(names=[ast.alias(name="pickle")]) if file.name == "ray_tasks.py":
                    continue
                case ast.Import(names=names):
                    imported = {alias.name.split(".")[0] for alias in names}
                case ast.ImportFrom(module=str(module)):
                    imported = {module.split(".")[0]}
                case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load")):
                    pytest.fail(f"{file}:{node.lineno}: torch.load unpickles")
                case ast.keyword(arg="trust_remote_code", value=value):
                    assert isinstance(value, ast.Constant), file
                    assert value.value is False, f"{file}:{node.lineno}: remote code is trusted"
                    continue
                # What vLLM makes of a checkpoint that brings code was not recorded: contract/form.py says so.
                case ast.Constant(value="auto_map") if file.name == "form.py":
                    continue
                case ast.Constant(value=str(text)) if "auto_map" in text or "trust-remote-code" in text:
                    pytest.fail(f"{file}:{node.lineno}: remote code is spoken of")
                case _:
                    continue
            assert not imported & forbidden, f"{file}:{node.lineno}"


def test_auto_map_is_never_acted_on(tmp_path: Path) -> None:
    source = victim(tmp_path / "in")
    put("evil.py", f"open({str(tmp_path / 'ran')!r}, 'w')")(source)
    text = (source / CONFIG).read_text()
    (source / CONFIG).write_text(
        '{"auto_map":{"AutoConfig":"evil.Config","AutoModel":"evil.Model"},' + text[1:]
    )
    assert qvlfp8("repair", str(source), str(tmp_path / "out")).returncode == 0
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "tokenizer.json", "preprocessor_config.json"])
def test_the_hub_cache_is_the_one_place_to_which_links_may_lead(name: str, tmp_path: Path) -> None:
    cache = tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots").mkdir()
    snapshot = victim(cache / "snapshots" / "0")
    (snapshot / name).rename(cache / "blobs" / "1")
    (snapshot / name).symlink_to("../../blobs/1")
    mending.carry_out(repair.plan(checkpoint.read(snapshot)), tmp_path / "out")

    (cache / "blobs").rename(tmp_path / "elsewhere")
    (cache / "blobs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises((NotACheckpoint, RepairError), match="link out of the folder"):
        repair.plan(checkpoint.read(snapshot))


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json"])
def test_the_base_model_is_not_trusted_either(name: str, tmp_path: Path) -> None:
    source = victim(tmp_path / "in")
    base = Path(shutil.copytree(source, tmp_path / "base"))
    (source / name).unlink()
    link(name)(base)
    with pytest.raises(RepairError, match="a link out of the folder"):
        repair.plan(checkpoint.read(source), base=base)


def test_the_digest_neither_hangs_nor_leaves_the_folder(tmp_path: Path) -> None:
    source = victim(tmp_path / "in")
    pipe("p")(source)
    with pytest.raises(NotACheckpoint, match="a named pipe"):
        checkpoint.folder_digest(source)
    link("p")(source)
    with pytest.raises(NotACheckpoint, match="link out"):
        checkpoint.folder_digest(source)


def test_the_copy_never_goes_into_the_checkpoint(tmp_path: Path) -> None:
    source = victim(tmp_path / "in")
    (tmp_path / "alias").symlink_to(source)
    before = names(source)
    for out in (source / "out", tmp_path / "alias" / "out"):
        with pytest.raises(UsageError, match="lies in the checkpoint"):
            mending.carry_out(repair.plan(checkpoint.read(source)), out)
    assert names(source) == before


def test_no_space_is_said_before_anything_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = repair.plan(checkpoint.read(victim(tmp_path / "in")))
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(100, 50, 50))
    with pytest.raises(StoreWriteError, match="no space"):
        mending.carry_out(planned, tmp_path / "out")


def test_a_name_that_is_too_long_for_a_folder(tmp_path: Path) -> None:
    fails(qvlfp8("repair", "a" * 5_000, str(tmp_path / "out")), 3, "no such folder")


def test_a_header_over_the_bound_is_not_even_read(tmp_path: Path) -> None:
    size = MAX_HEADER_BYTES + 1
    put(WEIGHTS, size.to_bytes(8, "little") + b"{}")(tmp_path)
    with (tmp_path / WEIGHTS).open("r+b") as stream:
        stream.truncate(size + 8)
    with pytest.raises(
        NotACheckpoint, match=re.escape(f"has a header of {size} bytes, of which {MAX_HEADER_BYTES} at most")
    ):
        checkpoint.read_header(tmp_path / WEIGHTS)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é", "plain é"),
        ("a\x1b[2J\n\x9b\u202e\ud800", r"a\x1b[2J\n\x9b\u202e\ud800"),
        ("x" * 1_000, "x" * 200 + " … " + "x" * 200),
    ],
)
def test_what_is_printed_of_a_name(text: str, shown: str) -> None:
    assert untrusted.printable(text) == shown
    assert untrusted.printable(shown) == shown
