"""What `qvlfp8 plan --github` gives GitHub to do: a job for each image that needs a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from qvlfp8 import github, locks
from qvlfp8.commands.plan import show_github
from qvlfp8.errors import FileFormatError, UsageError
from qvlfp8.project import Project
from tests.unit.factory import open_project
from tests.unit.test_generated import GPU, SEEING

ROOT = Path(__file__).parents[2]
RUNNERS = "runners:\n  - {serve: '*', labels: [self-hosted, gpu], minutes: 30}\n"


def made(project: Project, capsys: pytest.CaptureFixture[str], **asked: Any) -> dict[str, Any]:
    show_github(project.matrix.path, None, only=asked.get("only", []), everything=not asked.get("only"))
    plan: dict[str, Any] = json.loads(capsys.readouterr().out)
    return plan


def test_each_image_on_a_gpu_is_one_job_with_its_cells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = open_project(tmp_path, SEEING + RUNNERS, recipes=("lm-fp8", "vlm-fp8"))
    (job,) = made(project, capsys)["include"]
    assert job["image"] == f"{GPU}.cuda"
    assert job["labels"] == ["self-hosted", "gpu"]
    assert job["minutes"] == 30
    assert job["cells"] == [cell.id for cell in project.matrix.cells if cell.serve.id == GPU]
    (job,) = made(project, capsys, only=["vlm-fp8/modelopt-0.47.0/*"])["include"]
    assert job["cells"] == [f"vlm-fp8/modelopt-0.47.0/seeing/{GPU}"]


def test_the_last_row_that_names_an_environment_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = RUNNERS + f"  - {{serve: [{GPU}], labels: [h200]}}\n  - {{serve: '*-cpu', labels: [other]}}\n"
    (job,) = made(open_project(tmp_path, SEEING + rows), capsys)["include"]
    assert (job["labels"], job["minutes"]) == (["h200"], 360)


def test_what_no_runner_takes_is_left_out_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = open_project(tmp_path, SEEING)
    plan = made(project, capsys)
    assert plan["include"] == []
    assert plan["left_out"] == [{"image": f"{GPU}.cuda", "reason": "no row of `runners` names it"}]


def test_without_a_lock_for_gpus_there_is_no_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = open_project(tmp_path, SEEING + RUNNERS)
    serve = next(e for e in project.matrix.file.serve if e.id == GPU)
    lock = locks.path_of(project.matrix, serve, "cuda")
    lock.unlink()
    (left,) = made(project, capsys)["left_out"]
    assert left == {"image": f"{GPU}.cuda", "reason": "it has no lock for a GPU"}
    header = locks.request(project.matrix, serve, "cuda").header()
    lock.write_text(f"{header}# does not resolve:\n# no such package\n")
    (left,) = made(project, capsys)["left_out"]
    assert left["reason"] == "does not resolve: no such package"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{serve: 'vllm-9*', labels: [gpu]}", "names nothing"),
        ("{serve: '*', labels: []}", "labels"),
        ("{serve: '*', labels: ['a b']}", "labels"),
        ("{serve: '*', labels: [gpu], minutes: 0}", "minutes"),
    ],
)
def test_a_row_of_runners_that_cannot_be_meant_is_refused(tmp_path: Path, row: str, said: str) -> None:
    with pytest.raises(FileFormatError, match=said):
        open_project(tmp_path, SEEING + f"runners:\n  - {row}\n")


def test_what_github_would_refuse_is_refused_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = open_project(tmp_path, SEEING + RUNNERS)
    monkeypatch.setattr(github, "MOST_JOBS", 0)
    with pytest.raises(UsageError, match="1 images; GitHub runs 0 jobs"):
        show_github(project.matrix.path, None, only=[], everything=True)
    monkeypatch.setattr(github, "MOST_JOBS", 1)
    monkeypatch.setattr(github, "MOST_BYTES", 100)
    with pytest.raises(UsageError, match="GitHub takes 100 of a job's outputs"):
        show_github(project.matrix.path, None, only=[], everything=True)


def test_the_shipped_matrix_fits_github_and_the_published_schema() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qvlfp8", "plan", "--github", "--all"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (line,) = done.stdout.splitlines()
    plan = json.loads(line)
    schema = json.loads((ROOT / "schema" / "github-plan.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(plan)
    assert 0 < len(plan["include"]) <= github.MOST_JOBS
    assert len(line) * 2 <= github.MOST_BYTES
    known = Project.open(ROOT / "matrix.yaml").matrix.cells
    on_gpus = {cell.id for cell in known if cell.serve.device == "cuda" and "load" in cell.stages}
    run = [cell for job in plan["include"] for cell in job["cells"]]
    assert len(run) == len(set(run))
    assert set(run) <= on_gpus
    assert {cell.split("/")[1] for cell in on_gpus - set(run)} == {"modelopt-0.41.0-transformers-5"}
    # The workflow puts them on a command line with blanks between.
    assert not any(set(cell) & set(" \t\n*?[]'\"$\\") for cell in run)
