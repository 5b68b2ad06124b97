"""`qvlfp8 diff` reads stores, results folders and git revisions, and ends with 1 on a regression alone."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from qvlfp8.cli import main
from qvlfp8.commands.keep import keep_results
from qvlfp8.engine import Batch, Job
from qvlfp8.evidence import Evidence
from qvlfp8.project import Project
from qvlfp8.results import Host
from qvlfp8.runs import read_run
from tests.unit.factory import RECIPE, open_project
from tests.unit.test_generated import GPU, SEEING, Vllm, execute, measured
from tests.unit.test_run import GOOD_PREFLIGHT, Bench, FakeEngine, passes

pytestmark = pytest.mark.usefixtures("fast_disk", "small_models")

BROKEN = GOOD_PREFLIGHT | {"runner": "pooling"}


def breaks(job: Job, batch: Batch) -> dict[str, Any] | None:
    result = passes(job, batch)
    return result and result | ({"measured": BROKEN} if batch.worker == "preflight" else {})


def dies(job: Job, batch: Batch) -> dict[str, Any] | None:
    return None if batch.worker == "preflight" else passes(job, batch)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A project whose store has executed everything, and `before`, a copy of that store."""
    made = Bench(tmp_path)
    made.run(FakeEngine())
    shutil.copytree(made.project.store.root, tmp_path / "before")
    return made


def diff(
    bench: Bench, before: object, after: object, capsys: pytest.CaptureFixture[str]
) -> tuple[int, dict[str, Any]]:
    matrix = str(bench.project.matrix.path)
    code = main(["diff", str(before), str(after), "--json", "--matrix", matrix])
    said = capsys.readouterr()
    assert not said.err
    return code, json.loads(said.out)


def counts(told: dict[str, Any]) -> dict[str, int]:
    return {kind: number for kind, number in told["counts"].items() if number}


@pytest.mark.parametrize(
    ("script", "code", "kinds"),
    [(passes, 0, {}), (breaks, 1, {"regressed": 8}), (dies, 0, {"error": 8})],
)
def test_a_store_against_a_later_one(
    bench: Bench, capsys: pytest.CaptureFixture[str], script: Any, code: int, kinds: dict[str, int]
) -> None:
    bench.run(FakeEngine(script), again=True)
    ended, told = diff(bench, bench.project.store.root.parent / "before", bench.project.store.root, capsys)
    assert (ended, counts(told)) == (code, kinds)
    assert told["unchanged"] == 16 - sum(kinds.values())
    for change in told["changes"]:
        assert change["stage"] == "preflight"
        assert change["repeat"] == f"nox -s matrix -- --again --only '{change['subject']}'"


def test_the_other_way_round_it_improves(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.run(FakeEngine(breaks), again=True)
    ended, told = diff(bench, bench.project.store.root, bench.project.store.root.parent / "before", capsys)
    assert (ended, counts(told)) == (0, {"improved": 8})


def test_what_a_recipe_made_stale_is_compared_once_it_is_executed_anew(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    root = bench.project.store.root
    (root.parent / "recipes" / "lm-fp8.yaml").write_text(RECIPE.replace("text}", "text, samples: 9}"))
    _, told = diff(bench, root.parent / "before", root, capsys)
    assert (counts(told), told["still_stale"]) == ({}, 8)
    bench.project = Project.open(bench.project.matrix.path)
    bench.plan = bench.project.plan(bench.project.matrix.cells, bench.locks)
    bench.run(FakeEngine(breaks))
    ended, told = diff(bench, root.parent / "before", root, capsys)
    assert (ended, counts(told)) == (1, {"regressed": 4})
    shutil.rmtree(root / "steps" / "preflight")
    _, told = diff(bench, root.parent / "before", root, capsys)
    assert counts(told) == {"gone": 8}


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True)


def commit(root: Path, name: str) -> None:
    git(root, "add", "-A")
    git(root, "commit", "-qm", name)
    git(root, "tag", name)


@pytest.fixture
def repository(bench: Bench) -> Bench:
    """A repository with two revisions: `one` passes, `two` does not."""
    root = bench.project.matrix.path.parent
    git(root, "init", "-q")
    (root / ".gitignore").write_text(".qvlfp8/\nbefore/\n")
    keep_results(bench.project.matrix.path, None)
    commit(root, "one")
    bench.run(FakeEngine(breaks), again=True)
    keep_results(bench.project.matrix.path, None)
    commit(root, "two")
    return bench


def test_revisions_folders_and_stores_are_all_runs(
    repository: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    root = repository.project.matrix.path.parent
    status = subprocess.run(["git", "-C", root, "status", "--short"], check=True, capture_output=True)
    for after in ("two", "HEAD", root / "results", repository.project.store.root):
        ended, told = diff(repository, "one", after, capsys)
        assert (ended, counts(told)) == (1, {"regressed": 8}), after
    ended, told = diff(repository, "two", "HEAD~1", capsys)
    assert (ended, counts(told)) == (0, {"improved": 8})
    assert diff(repository, "two", "two", capsys)[1]["unchanged"] == 16
    later = subprocess.run(["git", "-C", root, "status", "--short"], check=True, capture_output=True)
    assert later.stdout == status.stdout == b""


def test_each_revision_is_held_against_its_own_files(
    repository: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recipe that changes makes the records of that revision stale, and not those before it."""
    capsys.readouterr()
    root = repository.project.matrix.path.parent
    (root / "recipes" / "lm-fp8.yaml").write_text(RECIPE.replace("text}", "text, samples: 9}"))
    commit(root, "three")
    ended, told = diff(repository, "two", "three", capsys)
    assert (ended, counts(told)) == (0, {"stale": 8})
    assert all("recipe has changed since" in change["note"] for change in told["changes"])


def test_a_revision_whose_files_cannot_be_read_today_is_said(
    repository: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    root = repository.project.matrix.path.parent
    text = repository.project.matrix.path.read_text()
    repository.project.matrix.path.write_text(text + "of_yesterday: 1\n")
    commit(root, "odd")
    repository.project.matrix.path.write_text(text)
    ended, told = diff(repository, "one", "odd", capsys)
    assert (ended, counts(told)) == (1, {"regressed": 8})
    assert "nothing of it is called stale" in told["notes"][0]
    assert "unknown key" in told["notes"][0]


@pytest.mark.parametrize("arguments", [["nope", "one"], ["--", "--help", "one"], ["recipes", "one"]])
def test_what_is_no_run_is_a_usage_error(
    repository: Bench,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
) -> None:
    monkeypatch.chdir(repository.project.matrix.path.parent)
    assert main(["diff", *arguments]) == 2
    assert "mend: name a folder" in capsys.readouterr().err


def test_two_forms_at_once_are_a_usage_error(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "a", "b", "--json", "--markdown"]) == 2
    assert "one form at a time" in capsys.readouterr().err


def test_a_folder_that_is_in_no_repository_has_no_revision(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", "HEAD", "HEAD", "--matrix", str(bench.project.matrix.path)]) == 2
    assert "git" in capsys.readouterr().err


def with_gpu_records(root: Path) -> Project:
    """A project with records of one cell and its unquantized model on two GPUs: it sees on one of them."""
    project = open_project(root, SEEING)
    execute(project, Vllm(measured()))
    plan = project.plan(project.matrix.cells, project.locks(project.matrix.cells))
    cell = next(cell for cell in project.matrix.cells if cell.serve.id == GPU)
    ran = next(r for r in project.store.records() if r.stage == "generate")
    for name, said in (("NVIDIA H100", measured()), ("NVIDIA H200", measured(swapped="red"))):
        host = Host(machine="x86_64", system="Linux", cpus=1, memory_gb=1.0, accelerator=name)
        for step in (plan.baseline(cell), plan.step(cell, "load")):
            told = measured() if step.subject.startswith("bf16") else said
            update = {
                "subject": step.subject,
                "host": host,
                "read": {},
                "evidence": step.evidence[0],
                "inputs": {"params": dict(step.params)},
                "environment": {"vllm": "0.10.2"},
                "measured": told | {"options": step.params["options"]},
            }
            Evidence(root / "results").add(ran.model_copy(update=update))
    return project


def test_a_run_on_a_gpu_is_compared_with_its_like(tmp_path: Path) -> None:
    """Of two accelerators each has its own outcome, held against its own unquantized model's."""
    project = with_gpu_records(tmp_path)
    found = read_run(str(tmp_path / "results"), Project.open(project.matrix.path)).outcomes
    images = {key.accelerator: outcome for key, outcome in found.items() if key.stage == "image"}
    assert {name: outcome.status for name, outcome in images.items()} == {
        "NVIDIA H100": "pass", "NVIDIA H200": "fail",
    }  # fmt: skip
    assert images["NVIDIA H200"].findings == ("blind",)
    assert not any(outcome.stale for outcome in found.values())
    for path, record in Evidence(tmp_path / "results").records():
        if record.subject.startswith("bf16/") and record.host.accelerator == "NVIDIA H100":
            path.write_text(
                record.model_copy(update={"evidence": "0" * 64}).model_dump_json(exclude_none=True)
            )
    found = read_run(str(tmp_path / "results"), Project.open(project.matrix.path)).outcomes
    assert {key.accelerator for key, outcome in found.items() if outcome.stale} == {"NVIDIA H100"}


@pytest.mark.parametrize("as_a_revision", [False, True])
def test_a_gpu_record_that_denies_its_own_key_is_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], as_a_revision: bool
) -> None:
    project = with_gpu_records(tmp_path)
    name = "results/nvidia-h200/vllm-0.10.2/lm-fp8~modelopt-0.41.0~seeing.json"
    record = json.loads((tmp_path / name).read_text())
    record["measured"]["options"] = {"door": "server"}
    (tmp_path / name).write_text(json.dumps(record))
    asked = str(tmp_path / "results")
    if as_a_revision:
        git(tmp_path, "init", "-q")
        commit(tmp_path, "edited")
        asked = "edited"
    matrix = ["--matrix", str(project.matrix.path)]
    assert main(["diff", asked, str(project.store.root), *matrix]) == 5
    said = " ".join(capsys.readouterr().err.split())
    where = f"edited:{name}" if as_a_revision else f"{tmp_path}/{name}"
    assert f"{where}: measured.options is not what its evidence key says" in said


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("load", "quickly", "measured.load: "),
        ("answers", 7, "measured.answers: "),
        ("speed", None, "measured: it raised nothing, and speed is none"),
    ],
)
def test_each_command_that_reads_a_gpu_record_names_its_file_and_the_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str, value: object, named: str
) -> None:
    project = with_gpu_records(tmp_path)
    path = tmp_path / "results/nvidia-h100/vllm-0.10.2/lm-fp8~modelopt-0.41.0~seeing.json"
    record = json.loads(path.read_text())
    record["measured"][field] = value
    path.write_text(json.dumps(record))
    asked = ["--matrix", str(project.matrix.path)]
    for command in (
        ["table", "--all"],
        ["publish", "--out", str(tmp_path / "site")],
        ["diff", str(tmp_path / "results"), str(project.store.root)],
    ):
        assert main([*command, *asked]) == 5, command
        said = " ".join(capsys.readouterr().err.split())
        assert f"{path}: not a record of a run: {named}" in said, command
    assert not (tmp_path / "site").exists()


def test_a_line_of_a_revision_is_named_by_the_revision(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = bench.project.matrix.path.parent
    (root / "results" / "loaders").mkdir(parents=True)
    (root / "results" / "loaders" / "vllm-0.13.0.jsonl").write_text("{}\n[]\n")
    git(root, "init", "-q")
    commit(root, "broken")
    matrix = ["--matrix", str(bench.project.matrix.path)]
    assert main(["diff", "broken", str(bench.project.store.root), *matrix]) == 5
    said = " ".join(capsys.readouterr().err.split())
    assert "broken:results/loaders/vllm-0.13.0.jsonl:2: not a record" in said


@pytest.mark.parametrize(
    ("name", "says"),
    [("PROJECT", "own folder"), ("x" * 5000, "git"), ("EMPTY", "no record in this store")],
)
def test_what_is_no_run_is_said(
    bench: Bench, capsys: pytest.CaptureFixture[str], name: str, says: str
) -> None:
    (bench.project.store.root.parent / "empty" / "steps").mkdir(parents=True)
    places = {"PROJECT": bench.project.matrix.path.parent, "EMPTY": bench.project.store.root.parent / "empty"}
    asked = ["diff", str(places.get(name, name)), str(bench.project.store.root)]
    assert main([*asked, "--matrix", str(bench.project.matrix.path)]) == 2
    assert says in capsys.readouterr().err


def test_the_flaky_is_said_and_is_no_regression(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    path = bench.project.matrix.path
    entry = (
        'expectations:\n  - {cells: "*", shows: {preflight: not-generative}, reason: r,'
        ' link: "https://example.org/1", flaky: true}\n'
    )
    bench.run(FakeEngine(breaks), again=True)
    path.write_text(path.read_text().replace("expectations: []\n", entry))
    root = bench.project.store.root
    ended, told = diff(bench, root.parent / "before", root, capsys)
    assert (ended, counts(told)) == (0, {"changed": 8})
    assert {change["note"] for change in told["changes"]} == {"expected to be flaky"}
