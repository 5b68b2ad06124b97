"""Committed records are found by what was asked, and by nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qvlfp8 import locks
from qvlfp8.errors import FileFormatError
from qvlfp8.evidence import Evidence
from qvlfp8.plan import Stated, Step, Work
from qvlfp8.project import Project
from qvlfp8.results import Host, Record
from tests.unit.factory import MATRIX, open_project

ROOT = Path(__file__).parents[2]
KEY = "a" * 64


RUN: dict[str, Any] = {
    "answers": [
        {
            "id": "sum/000", "task": "sum", "sight": False, "expected": "5", "answer": "5", "ids": [1],
            "swapped_expected": None, "swapped_answer": None,
        },
    ],
    "exam_digest": "e",
    "fidelity": {"not_finite": 0, "mean_kl": 0.0, "p99_kl": 0.0, "top1_agreement": 1.0},
    "load": {"exception": None, "seconds": 1.0, "memory_mb": None},
    "log_marks": [],
    "speed": {"output_tokens_per_second": 4.0},
}  # fmt: skip


def record(key: str = KEY, subject: str = "lm-fp8/modelopt-0.47.0/seeing/vllm-0.26.0") -> Record:
    host = Host(machine="x86_64", system="Linux", cpus=1, memory_gb=1.0, accelerator="NVIDIA H200")
    return Record(
        stage="generate", subject=subject, digest="b" * 64, status="pass", host=host,
        inputs={"params": PARAMS}, environment={"vllm": "0.26.0"}, measured=RUN | PARAMS,
        started="2026-11-22T00:00:00+00:00", seconds=1.0, repeat="nox", evidence=key, qvlfp8="0",
    )  # fmt: skip


PARAMS = {"options": {"door": "engine"}}


def step(
    key: str | None = KEY,
    *,
    environment: str = "vllm-0.26.0",
    subject: str = "lm-fp8/modelopt-0.47.0/seeing/vllm-0.26.0",
    keys: tuple[str, ...] | None = None,
) -> Step:
    words = Stated(keys=keys if keys is not None else (key,) if key else ())
    work = Work(stage="generate", environment=environment, params=PARAMS, inputs={}, words=words)
    return Step(work=work, subject=subject, digest="d")


def test_what_is_added_is_found_by_its_key_alone(tmp_path: Path) -> None:
    path = Evidence(tmp_path).add(record())
    assert path == tmp_path / "nvidia-h200" / "vllm-0.26.0" / "lm-fp8~modelopt-0.47.0~seeing.json"
    found = Evidence(tmp_path)
    assert found.record(step()) == record()
    assert found.record(step("c" * 64)) is None
    assert found.record(step(None)) is None


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"subject": "vlm-fp8/modelopt-0.47.0/seeing/vllm-0.26.0"}, "subject"),
        ({"environment": {"vllm": "0.20.2"}}, "environment.vllm"),
        ({"measured": RUN | {"options": {"door": "server"}}}, "measured.options"),
        ({"inputs": {"params": {"options": {"door": "server"}}}}, "inputs.params"),
        ({"stage": "preflight"}, "stage"),
    ],
)
def test_a_record_that_denies_its_own_key_is_an_error(
    tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    path = Evidence(tmp_path).add(record())
    path.write_text(record().model_copy(update=changed).model_dump_json(indent=1))
    with pytest.raises(FileFormatError, match=named):
        Evidence(tmp_path).record(step())


def test_a_run_again_replaces_the_record(tmp_path: Path) -> None:
    Evidence(tmp_path).add(record())
    Evidence(tmp_path).add(record(key="c" * 64))
    assert Evidence(tmp_path).record(step()) is None
    assert len(list(Evidence(tmp_path).records())) == 1


def test_without_a_folder_there_is_none(tmp_path: Path) -> None:
    assert Evidence(tmp_path / "none").record(step()) is None


def test_what_is_no_record_is_named(tmp_path: Path) -> None:
    path = Evidence(tmp_path).add(record())
    path.write_text("{}")
    with pytest.raises(FileFormatError, match=r"modelopt-0\.47\.0~seeing\.json: not a record: stage: Field"):
        Evidence(tmp_path).record(step())


RAISED = {"type": "KeyError", "message": "x", "origin": "checkpoint", "stage": "load", "where": None}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"answers": 7}, "measured.answers: "),
        ({"answers": [{**RUN["answers"][0], "swapped_answer": 3}]}, "measured.answers.0.swapped_answer: "),
        ({"load": "quickly"}, "measured.load: "),
        ({"load": {"seconds": 1.0}}, "measured.load.exception: Field required"),
        ({"load": {"exception": RAISED | {"where": 4}}}, "measured.load.exception.where: "),
        ({"fidelity": {**RUN["fidelity"], "mean_kl": "small"}}, "measured.fidelity.mean_kl: "),
        ({"speed": [1]}, "measured.speed: "),
        ({"speed": None}, "measured: it raised nothing, and speed is none"),
        ({"options": None}, "measured.options: "),
        ({"log_marks": {}}, "measured.log_marks: "),
        ({"exam_digest": 5}, "measured.exam_digest: "),
    ],
)
def test_a_field_of_another_type_is_named_with_its_file(
    tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    Evidence(tmp_path).add(record().model_copy(update={"measured": RUN | PARAMS | changed}))
    with pytest.raises(FileFormatError) as error:
        Evidence(tmp_path).record(step())
    assert f"seeing.json: not a record of a run: {named}" in str(error.value)


@pytest.mark.parametrize("name", [*RUN, "options"])
def test_a_run_without_something_that_every_run_measures_is_no_record(tmp_path: Path, name: str) -> None:
    measured = {key: value for key, value in (RUN | PARAMS).items() if key != name}
    Evidence(tmp_path).add(record().model_copy(update={"measured": measured}))
    with pytest.raises(FileFormatError, match=rf"measured\.{name}: Field required"):
        Evidence(tmp_path).record(step())


def test_a_run_that_vllm_refused_has_no_speed(tmp_path: Path) -> None:
    measured = RUN | PARAMS | {"answers": [], "fidelity": None, "speed": None, "load": {"exception": RAISED}}
    Evidence(tmp_path).add(record().model_copy(update={"measured": measured}))
    assert Evidence(tmp_path).record(step()) is not None


def test_each_vllm_is_spoken_for_by_one_accelerator(tmp_path: Path) -> None:
    """A checkpoint's run on one machine must not meet the unquantized model's of another."""

    def add(accelerator: str, name: str, key: str) -> None:
        subject = f"{name}/modelopt-0.47.0/seeing/vllm-0.26.0"
        host = record().host.model_copy(update={"accelerator": accelerator})
        Evidence(tmp_path).add(record(key, subject).model_copy(update={"host": host}))

    for accelerator in ("NVIDIA H100", "NVIDIA H200"):
        add(accelerator, "bf16", "a" * 64)
    add("NVIDIA H200", "lm-fp8", "b" * 64)
    for name, key in (("lm-fp8", "c"), ("vlm-fp8", "d")):
        add("NVIDIA H100", name, key * 64)
    found = Evidence(tmp_path)
    assert found.accelerators == ("nvidia-h100", "nvidia-h200")

    def accelerator_of(evidence: Evidence, name: str, key: str) -> str | None:
        subject = f"{name}/modelopt-0.47.0/seeing/vllm-0.26.0"
        answer = evidence.record(step(key * 64, subject=subject))
        return answer.host.accelerator if answer else None

    assert accelerator_of(found, "bf16", "a") == "NVIDIA H100"
    assert accelerator_of(found, "lm-fp8", "b") is None
    assert accelerator_of(found.at("nvidia-h200"), "bf16", "a") == "NVIDIA H200"
    assert accelerator_of(found.at("nvidia-h200"), "lm-fp8", "b") == "NVIDIA H200"


def test_every_committed_record_stands_for_a_step_of_the_plan() -> None:
    """A lock that is made anew takes the evidence away that was made in it, and nothing else would say so."""
    project = Project.open(ROOT / "matrix.yaml")
    cells = project.cells(everything=True)
    plan = project.plan(cells, project.locks(cells))
    keys = {key for step in plan.steps.values() for key in step.evidence}
    records = [(path, record) for path, record in project.evidence.records() if record.stage == "generate"]
    assert records
    assert not [path for path, record in records if record.evidence not in keys]


def test_a_record_of_either_lock_for_a_gpu_stands(tmp_path: Path) -> None:
    Evidence(tmp_path).add(record("c" * 64))
    assert Evidence(tmp_path).record(step(keys=("d" * 64, "c" * 64))) == record("c" * 64)


def test_a_lock_that_is_out_of_date_vouches_for_no_record(tmp_path: Path) -> None:
    project = open_project(tmp_path, MATRIX.replace("reference: random, seed: 0", "reference: trained"))
    serve = project.environments["vllm-0.13.0"]
    bundle = locks.path_of(project.matrix, serve, "bundle")
    bundle.write_text(locks.request(project.matrix, serve, "bundle").header() + "torch==2.8.0\n")

    def keys() -> int:
        cells = [cell for cell in project.matrix.cells if cell.serve.id == serve.id]
        plan = project.plan(cells, project.locks(cells))
        return len(plan.step(cells[0], "load").evidence)

    assert keys() == 2
    bundle.write_text(bundle.read_text().replace("asked: sha256:", "asked: sha256:0", 1))
    assert keys() == 1


def test_evidence_of_packages_on_trial_can_be_read(tmp_path: Path) -> None:
    Evidence(tmp_path).add(record())
    assert Evidence(tmp_path).record(step(environment="vllm-0.26.0-unpinned")) == record()
    with pytest.raises(FileFormatError, match=r"environment\.vllm"):
        Evidence(tmp_path).record(step(environment="vllm-0.26.01"))
