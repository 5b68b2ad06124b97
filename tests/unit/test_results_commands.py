"""From what a GPU host brought back to a mark in the table and the page that proves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qvlfp8 import locks, source
from qvlfp8.commands.results import RejectedError, import_results, write_report
from qvlfp8.errors import UsageError
from qvlfp8.project import Project
from qvlfp8.reference.exam import make_exam
from qvlfp8.worker.run_bundle import write_sums
from tests.unit.factory import open_project
from tests.unit.test_generated import GPU, SEEING, Vllm, execute, measured

pytestmark = pytest.mark.usefixtures("fast_disk", "small_models")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project whose checkpoints are made, with a CUDA lock for its GPU environment."""
    project = open_project(tmp_path, SEEING + "exam: {seed: 1, per_task: 1}\n")
    serve = next(e for e in project.matrix.file.serve if e.id == GPU)
    lock = locks.path_of(project.matrix, serve, "bundle")
    lock.write_text(locks.request(project.matrix, serve, "bundle").header() + "torch==2.8.0\n")
    execute(project, Vllm(measured()))
    return Project.open(project.matrix.path)


def bring_back(
    project: Project, out: Path, *, worker: str | None = None, raised: dict[str, Any] | None = None
) -> None:
    """What a bundle's run leaves: for every run on the GPU a result, blind but for the baseline."""
    cells = project.matrix.cells
    plan = project.plan(cells, project.locks(cells, gpu="bundle"))
    host = {
        "machine": "x86_64", "system": "Linux", "kernel": "6", "cpus": 1, "memory_gb": 1.0,
        "gpus": [{"name": "NVIDIA H200", "driver": "580"}], "environments": {GPU: {}},
    }  # fmt: skip
    out.mkdir()
    (out / "host.json").write_text(json.dumps(host))
    question = next(q for q in make_exam(1, 1) if q.task == "colour")
    for step in plan.steps.values():
        if step.stage != "generate" or step.device != "cuda":
            continue
        made = next(r for n in step.needs if (r := project.lookup(plan.steps[n])) and r.made)
        said = measured(swapped="blue" if step.subject.startswith("bf16") else "red")
        if not step.subject.startswith("bf16"):
            said["load"]["exception"] = raised
        said["answers"][0] |= {"id": question.id, "expected": "red"}
        said |= {"checkpoint_digest": made.made, "options": step.params["options"]}
        facts = {"vllm": GPU.removeprefix("vllm-")}
        result = {"outcome": "done", "measured": said, "seconds": 1.0, "environment": facts}
        ran = {
            "job": step.digest, "environment": GPU, "lock": locks_digest(project), "started": "2026-11-22",
            "worker_source": worker or source.of_worker("generate"),
        }  # fmt: skip
        (out / step.digest).mkdir()
        (out / step.digest / "result.json").write_text(json.dumps(result))
        (out / step.digest / "ran.json").write_text(json.dumps(ran))
    write_sums(out)


def locks_digest(project: Project) -> str:
    return project.locks(project.matrix.cells, gpu="bundle")[GPU, "cuda"].digest


def test_what_a_gpu_host_ran_shows_in_the_matrix_and_on_the_page(project: Project, tmp_path: Path) -> None:
    bring_back(project, tmp_path / "out")
    import_results(project.matrix.path, None, tmp_path / "out")
    fresh = Project.open(project.matrix.path)
    cells = [cell for cell in fresh.matrix.cells if cell.serve.id == GPU]
    for view in fresh.views(fresh.plan(cells, fresh.locks(cells))):
        image = view.stage("image")
        assert image is not None
        assert (image.status, image.findings) == ("fail", ("blind",))
    write_report(fresh.matrix.path, None)
    page = (project.evidence.root / "README.md").read_text()
    assert "NVIDIA H200" in page
    assert "image: fail (blind" in page
    picture = project.evidence.root / "pictures" / "colour-000.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "pictures/colour-000.png" in page


def test_results_of_another_worker_are_not_taken_in(project: Project, tmp_path: Path) -> None:
    bring_back(project, tmp_path / "out", worker="other")
    with pytest.raises(RejectedError, match="3 of 3 results were not taken in"):
        import_results(project.matrix.path, None, tmp_path / "out")
    assert not project.evidence.root.exists()


def test_what_the_machine_did_wrong_is_no_evidence_and_replaces_none(
    project: Project, tmp_path: Path
) -> None:
    bring_back(project, tmp_path / "out")
    import_results(project.matrix.path, None, tmp_path / "out")
    before = {path: path.read_bytes() for path, _ in project.evidence.records()}
    raised = {
        "type": "ModuleNotFoundError",
        "message": "no humming",
        "origin": "environment",
        "stage": "load",
    }
    bring_back(project, tmp_path / "later", raised=raised)
    with pytest.raises(RejectedError, match="2 of 3 results were not taken in"):
        import_results(project.matrix.path, None, tmp_path / "later")
    assert {path: path.read_bytes() for path in before} == before


def test_a_folder_without_results_is_said(project: Project, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no result in it"):
        import_results(project.matrix.path, None, tmp_path)
