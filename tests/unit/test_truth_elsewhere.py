"""Truth runs go into a bundle, come back, and become one record and a section of the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qvlfp8 import locks, source
from qvlfp8.bundle import jobs
from qvlfp8.commands.results import RejectedError, import_results, write_report
from qvlfp8.errors import UsageError
from qvlfp8.project import Project
from qvlfp8.results import Record
from qvlfp8.truth import TRUTH_PER_TASK
from qvlfp8.truth.asking import WORKER, Asking, asking, cells_of
from qvlfp8.worker.run_bundle import write_sums
from tests.unit.factory import open_project
from tests.unit.test_generated import GPU, SEEING, Vllm, execute, measured
from tests.unit.test_scoring import good

pytestmark = pytest.mark.usefixtures("fast_disk", "_small_models")

GOOD = ("lm-fp8", "lm-fp8-image-calib", "vlm-fp8")


@pytest.fixture
def _small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(folder: Path, *, tied: bool) -> None:
        folder.mkdir(parents=True)
        config = {"tied": tied, "vision_config": {"depth": 1}}
        (folder / "config.json").write_text(json.dumps(config))

    monkeypatch.setattr("qvlfp8.reference.write_trained", write)
    monkeypatch.setattr("qvlfp8.source.of_trained_weights", lambda: "weights")
    monkeypatch.setattr("qvlfp8.findings.diagnose_inspect", lambda _measured: [])


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project whose good checkpoints are made, with a CUDA lock for its GPU environment."""
    project = open_project(tmp_path / "p", SEEING, recipes=GOOD)
    serve = next(e for e in project.matrix.file.serve if e.id == GPU)
    lock = locks.path_of(project.matrix, serve, "bundle")
    lock.write_text(locks.request(project.matrix, serve, "bundle").header() + "torch==2.8.0\n")
    execute(project, Vllm(measured()))
    return Project.open(project.matrix.path)


def asked_of(project: Project) -> Asking:
    cells = cells_of(project, GPU)
    all_locks = project.locks(cells, gpu="bundle")
    found = asking(project, project.plan(cells, all_locks), cells, all_locks, per_task=TRUTH_PER_TASK)
    assert found is not None
    return found


def bring_back(asked: Asking, out: Path, *, without: str = "") -> None:
    """What a bundle's run leaves: every fault is seen in its answers."""
    host = {
        "machine": "x86_64", "system": "Linux", "kernel": "6", "cpus": 1, "memory_gb": 1.0,
        "gpus": [{"name": "NVIDIA H200", "driver": "580"}], "environments": {GPU: {}},
    }  # fmt: skip
    out.mkdir()
    (out / "host.json").write_text(json.dumps(host))
    for run in asked.runs:
        if run.subject.id == without:
            continue
        said: dict[str, Any] = good()
        if run.subject.id == "bf16":
            said["fidelity"] = None
        elif run.subject.fault is not None:
            said["fidelity"] |= {"mean_kl": 1.0}
        found = {
            "checkpoint_digest": asked.made[run.subject.base],
            "inspected": {"measured": {}},
            "generated": {"measured": said},
        }
        ran = {
            "job": run.digest, "environment": GPU, "lock": asked.lock.digest, "started": "2026-11-22",
            "worker_source": source.of_worker(WORKER),
        }  # fmt: skip
        (out / run.digest).mkdir()
        result = {"outcome": "done", "measured": found, "seconds": 2.0, "failure": None}
        (out / run.digest / "result.json").write_text(json.dumps(result))
        (out / run.digest / "ran.json").write_text(json.dumps(ran))
    write_sums(out)


def record_of(project: Project) -> Record:
    path = project.evidence.root / "nvidia-h200" / GPU / "truth.json"
    return Record.model_validate_json(path.read_bytes())


def test_what_came_back_is_one_record_and_a_section_of_the_page(project: Project, tmp_path: Path) -> None:
    asked = asked_of(project)
    bring_back(asked, tmp_path / "out")
    import_results(project.matrix.path, None, tmp_path / "out")
    record = record_of(project)
    faults = len(asked.runs) - 4
    assert record.measured["summary"] == f"caught {faults}/{faults}, false alarms 0/4"
    assert (record.stage, record.status, record.host.accelerator) == ("truth", "pass", "NVIDIA H200")
    assert record.seconds == 2.0 * len(asked.runs)
    write_report(project.matrix.path, None)
    page = (project.evidence.root / "README.md").read_text()
    assert f"## truth/{GPU}: caught {faults}/{faults}" in page
    assert "| scales-unset: tower blind" in page


def test_half_of_a_session_is_no_evidence_and_replaces_none(project: Project, tmp_path: Path) -> None:
    asked = asked_of(project)
    bring_back(asked, tmp_path / "out")
    import_results(project.matrix.path, None, tmp_path / "out")
    whole = record_of(project)
    bring_back(asked, tmp_path / "half", without="nan-scale")
    with pytest.raises(RejectedError, match="1 of"):
        import_results(project.matrix.path, None, tmp_path / "half")
    assert record_of(project) == whole
    assert whole.status == "pass"


def test_a_bundle_brings_the_good_checkpoints_once_and_a_job_for_every_fault(project: Project) -> None:
    asked = asked_of(project)
    batches, files = jobs.truth_batch(asked, 60)
    (batch,) = batches.values()
    assert (batch["environment"], batch["worker"]) == (GPU, WORKER)
    first, *others = batch["jobs"]
    assert first["params"]["baseline"] is None
    assert {job["params"]["baseline"] for job in others} == {f"out/{first['id']}"}
    assert {f"{job['params']['checkpoint']}/config.json" for job in batch["jobs"]} >= {
        name for name in files if name.endswith("config.json")
    }
    assert "qvlfp8/truth/faults.py" in jobs.worker_files([WORKER])


def test_without_the_good_checkpoints_it_is_said_which_are_missing(tmp_path: Path) -> None:
    project = open_project(tmp_path, SEEING)
    with pytest.raises(UsageError, match="lm-fp8-image-calib"):
        cells_of(project)
