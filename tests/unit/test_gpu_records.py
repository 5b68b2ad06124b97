"""Runs on this machine's own GPU: what their records say of it, and when they are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qvlfp8.cli import main
from qvlfp8.evidence import Evidence
from qvlfp8.project import Project
from qvlfp8.results import Record
from tests.unit.factory import open_project
from tests.unit.test_generated import GPU, SEEING, Vllm, measured
from tests.unit.test_run import FakeEngine

pytestmark = pytest.mark.usefixtures("fast_disk")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Vllm:
    """A machine with an H200, whose vLLM does as the script says."""

    def write(folder: Path, *, tied: bool) -> None:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"tied": tied}))

    script = Vllm(measured())
    monkeypatch.setattr("qvlfp8.reference.write_trained", write)
    monkeypatch.setattr("qvlfp8.source.of_trained_weights", lambda: "weights")
    monkeypatch.setattr("qvlfp8.commands.matrix.make_engine", lambda *_, **_kw: FakeEngine(script))
    monkeypatch.setattr("qvlfp8.commands.matrix.devices", lambda: frozenset({"cpu", "cuda"}))
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho NVIDIA H200, 580.1, 143771 MiB\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{smi.parent}:/usr/bin:/bin")
    return script


def run(project: Project, store: Path, *options: str) -> dict[str, Record]:
    """Execute the cells of the GPU's environment; the records of its runs by subject."""
    matrix = project.matrix.path
    assert main(["matrix", "--matrix", str(matrix), "--store", str(store), "--only", GPU, *options]) == 0
    own = Project.open(matrix, store)
    cells = own.cells(only=[GPU])
    steps = own.plan(cells, own.locks(cells)).steps.values()
    found = (own.store.record(step.stage, step.digest) for step in steps if step.stage == "generate")
    return {record.subject: record for record in found if record}


def test_a_record_of_a_run_on_a_gpu_names_it_and_its_driver(script: Vllm, tmp_path: Path) -> None:
    project = open_project(tmp_path / "p", SEEING)
    records = run(project, tmp_path / "store")
    assert len(records) == 3, "two checkpoints, and the unquantized model"
    for record in records.values():
        assert record.host.accelerator == "NVIDIA H200"
        assert record.environment["gpus"][0]["driver"] == "580.1"
    made = next((tmp_path / "store" / "steps" / "quantize").glob("*/record.json"))
    said: dict[str, Any] = json.loads(made.read_text())
    assert "accelerator" not in said["host"]
    assert "gpus" not in said["environment"]


def test_committed_records_stand_for_a_run_unless_they_are_set_aside(
    script: Vllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = open_project(tmp_path / "p", SEEING)
    evidence = Evidence(project.matrix.path.parent / "results")
    for record in run(project, tmp_path / "elsewhere").values():
        options = record.inputs["params"]["options"]
        evidence.add(
            record.model_copy(
                update={
                    "read": {},
                    "environment": {"vllm": GPU.removeprefix("vllm-")},
                    "measured": {**record.measured, "options": options},
                }
            )
        )
    assert len(script.params) == 3
    with monkeypatch.context() as without_gpu:
        without_gpu.setattr("qvlfp8.commands.matrix.devices", lambda: frozenset({"cpu"}))
        assert run(project, tmp_path / "here") == {}, "it makes the checkpoints alone"
    assert run(project, tmp_path / "here") == {}
    assert len(script.params) == 3, "nothing was run again"
    assert len(run(project, tmp_path / "here", "--without-evidence")) == 3
    assert len(script.params) == 6
