"""Stores of several machines become one: whole entries, copied as they are, without contradiction."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from qvlfp8.cli import main
from qvlfp8.project import Project
from tests.unit.factory import open_project
from tests.unit.test_generated import SEEING, Vllm, execute, measured

pytestmark = pytest.mark.usefixtures("fast_disk", "small_models")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = open_project(tmp_path, SEEING)
    execute(project, Vllm(measured()))
    return project


Part = Callable[..., Path]


@pytest.fixture
def part(project: Project, tmp_path: Path) -> Part:
    """A store with a copy of some stages of the project's."""

    def make(name: str, *stages: str) -> Path:
        for stage in stages or [folder.name for folder in (project.store.root / "steps").iterdir()]:
            shutil.copytree(project.store.root / "steps" / stage, tmp_path / name / "steps" / stage)
        return tmp_path / name

    return make


def merge(*stores: Path, into: Path, fill: Iterable[Path] = ()) -> int:
    more = [text for path in fill for text in ("--fill", str(path))]
    return main(["results", "merge", *map(str, stores), "--store", str(into), *more])


def content(store: Path) -> dict[str, bytes]:
    steps = store / "steps"
    return {p.relative_to(steps).as_posix(): p.read_bytes() for p in steps.rglob("*") if p.is_file()}


def change(store: Path, stage: str, **fields: Any) -> Path:
    """Rewrite the first record of a stage; its folder."""
    folder = min((store / "steps" / stage).iterdir())
    path = folder / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def test_parts_become_the_store_that_they_were_taken_from(
    project: Project, part: Part, tmp_path: Path
) -> None:
    one, other = part("one", "build", "model", "quantize", "inspect"), part("other", "preflight", "generate")
    assert merge(one, other, into=tmp_path / "out") == 0
    assert content(tmp_path / "out") == content(project.store.root)
    views = Project.open(project.matrix.path, tmp_path / "out").views(
        project.plan(project.matrix.cells, project.locks(project.matrix.cells))
    )
    assert {view.decisive.status for view in views} == {"pass"}


def test_merging_again_copies_nothing(part: Part, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = part("one")
    assert merge(one, one, into=tmp_path / "out") == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "steps").rglob("*")}
    assert merge(one, into=tmp_path / "out") == 0
    assert "0 of them copied now" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "steps").rglob("*")}


FAULT = {"kind": "OutOfMemoryError", "message": "m"}
CAUSE = {"id": "blind", "summary": "s"}


@pytest.mark.parametrize(
    ("stage", "fields"),
    [
        ("preflight", {"status": "fail", "findings": [CAUSE]}),
        ("inspect", {"findings": [CAUSE]}),
    ],
)
def test_stores_that_contradict_are_not_merged(
    part: Part, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str, fields: dict[str, Any]
) -> None:
    one, other = part("one"), part("other")
    change(other, stage, **fields)
    assert merge(one, other, into=tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert f"records of one step contradict each other:\n  {stage} of lm-fp8/modelopt-" in said
    assert "(blind)" in said
    assert not (tmp_path / "out" / "steps").exists()


def test_a_checkpoint_that_came_out_otherwise_is_a_contradiction(
    part: Part, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = part("one"), part("other")
    folder = min((other / "steps" / "quantize").iterdir())
    shutil.rmtree(folder / "checkpoint")
    change(other, "quantize", made="f" * 64)
    assert merge(one, other, into=tmp_path / "out") == 1
    assert "pass, made ffffffffffff" in capsys.readouterr().err


def test_times_and_machines_may_differ(part: Part, tmp_path: Path) -> None:
    one, other = part("one"), part("other")
    change(other, "preflight", started="2020-01-01", seconds=99.0)
    assert merge(one, other, into=tmp_path / "out") == 0
    assert content(tmp_path / "out") == content(one)


@pytest.mark.parametrize("first", ["one", "other"])
def test_the_machines_fault_gives_way_to_a_record(part: Part, tmp_path: Path, first: str) -> None:
    one, other = part("one"), part("other")
    change(other, "preflight", status="error", fault=FAULT)
    assert merge(*((one, other) if first == "one" else (other, one)), into=tmp_path / "out") == 0
    assert content(tmp_path / "out") == content(one)


def test_what_fills_stands_in_for_what_was_not_settled_alone(part: Part, tmp_path: Path) -> None:
    last, tonight = part("last"), part("tonight")
    lost = change(tonight, "inspect", status="error", fault=FAULT)
    change(tonight, "preflight", status="fail", findings=[CAUSE])
    shutil.rmtree(min((tonight / "steps" / "generate").iterdir()))
    assert merge(tonight, into=tmp_path / "out", fill=[last]) == 0
    out, before, new = content(tmp_path / "out"), content(last), content(tonight)
    assert out.keys() == before.keys()
    changed = {name for name in out if out[name] != before[name]}
    assert changed == {name for name in new if new[name] != before[name]} - {
        f"inspect/{lost.name}/record.json"
    }


def test_an_entry_that_is_not_whole_is_named_and_left_out(
    part: Part, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = part("one")
    quantize, preflight, inspect, generate, model = (
        min((one / "steps" / stage).iterdir())
        for stage in ("quantize", "preflight", "inspect", "generate", "model")
    )
    (quantize / "checkpoint" / "weights").write_text("cut")
    (preflight / "log.txt").write_text("another")
    (inspect / "record.json").write_text("{")
    (generate / "link").symlink_to("/etc/hosts")
    model.rename(model.with_name("e" * 64))
    assert merge(one, into=tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert f"{quantize}: what it made is not what its record names" in said
    assert f"{preflight}: log.txt is not the one that its record names" in said
    assert f"{inspect}: no record" in said
    assert f"{generate}: it holds something that is neither file nor folder" in said
    assert "5 entries were not taken in" in said
    names = {path.parent.name for path in (tmp_path / "out" / "steps").rglob("record.json")}
    assert names
    assert not names & {quantize.name, preflight.name, inspect.name, generate.name, "e" * 64}


def test_a_folder_that_is_no_store_is_a_usage_error(
    part: Part, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert merge(part("one"), tmp_path / "empty", into=tmp_path / "out") == 2
    assert f"{tmp_path / 'empty'}: no record in it" in capsys.readouterr().err
