"""One run of vLLM answers five stages, against the unquantized model's run in the same environment."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qvlfp8 import source
from qvlfp8.cells import GENERATED
from qvlfp8.engine import Batch, Job
from qvlfp8.errors import StoreWriteError
from qvlfp8.evidence import Evidence
from qvlfp8.project import Project
from qvlfp8.report.render import to_json
from qvlfp8.report.table import CellView, make_table
from qvlfp8.results import Host, Record
from qvlfp8.store import Store
from qvlfp8.worker.generate import IDS, LOGPROBS
from tests.unit.factory import MATRIX, RECIPE, open_project
from tests.unit.test_run import FakeEngine, Seen, passes

SEEING = (
    MATRIX.replace(
        "{id: tiny, reference: random, seed: 0, default: true}", "{id: seeing, reference: trained}"
    )
    .replace("models: tiny", "models: seeing")
    .replace("{vllm: 0.13.0, transformers: 4.57.6}", "{vllm: 0.32.0, transformers: 5.14.1, device: cpu}")
)
CPU, GPU = "vllm-0.32.0-cpu", "vllm-0.10.2"


pytestmark = pytest.mark.usefixtures("fast_disk", "small_models")


def measured(
    said: str = "red", swapped: str = "blue", exception: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    sight = {
        "id": "colour/000",
        "task": "colour",
        "sight": True,
        "expected": "red",
        "swapped_expected": "blue",
    }
    text = {"id": "sum/000", "task": "sum", "sight": False, "expected": "5", "swapped_expected": None}
    return {
        "checkpoint_digest": "d", "exam_digest": "e", "options": {"door": "engine"},
        "load": {"seconds": 1.0, "memory_mb": None, "exception": exception},
        "answers": [] if exception else [
            {**sight, "answer": said, "swapped_answer": swapped, "ids": []},
            {**text, "answer": "5", "swapped_answer": None, "ids": []},
        ],
        "fidelity": {
            "positions": 2, "mean_kl": 0.0, "p99_kl": 0.0, "top1_agreement": 1.0, "not_finite": 0,
        },
        "speed": {"seconds": 1.0, "questions": 2, "output_tokens": 4, "output_tokens_per_second": 4.0},
        "log_marks": [],
    }  # fmt: skip


class Vllm:
    """A fake engine's script: the unquantized model answers rightly, checkpoints as told."""

    def __init__(self, checkpoint: Mapping[str, Any], *, baseline_is_whole: bool = True) -> None:
        self.checkpoint = checkpoint
        self.baseline_is_whole = baseline_is_whole
        self.params: list[dict[str, Any]] = []

    def __call__(self, job: Job, batch: Batch) -> dict[str, Any] | None:
        if batch.worker != "generate":
            return passes(job, batch)
        self.params.append(job.params)
        for name in ("checkpoint", "baseline"):
            if name in job.params:
                # By the time that its turn comes; the baseline is made in the same batch.
                assert any(Path(job.params[name]).is_relative_to(folder) for folder in job.reads)
                assert Path(job.params[name]).parent.is_dir()
        (job.out / "generation").mkdir()
        whole = "baseline" in job.params or self.baseline_is_whole
        (job.out / "generation" / ("logprobs.npy" if whole else "ids.json")).write_bytes(b"0")
        return {
            "outcome": "done",
            "measured": self.checkpoint if "baseline" in job.params else measured(),
            "environment": {},
            "seconds": 1.0,
        }


def execute(project: Project, script: Vllm) -> dict[str, CellView]:
    from qvlfp8.run import Here, Runner

    cells = project.matrix.cells
    locks = project.locks(cells)
    plan = project.plan(cells, locks)
    with project.store.locked():
        seen = Seen()
        place = Here(
            plan, store=project.store, engine=FakeEngine(script), environments=project.environments,
            locks=locks, progress=seen, jobs=2,
        )  # fmt: skip
        Runner(plan, place, progress=seen, lookup=project.lookup).run()
    return {view.cell.id: view for view in project.views(plan)}


def statuses(view: CellView) -> dict[str, str]:
    return {stage.stage: stage.status for stage in view.stages}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return open_project(tmp_path, SEEING)


def test_a_checkpoint_that_sees_passes_every_stage(project: Project) -> None:
    script = Vllm(measured())
    views = execute(project, script)
    view = views[f"lm-fp8/modelopt-0.41.0/seeing/{CPU}"]
    assert set(statuses(view).values()) == {"pass"}
    assert [marks for _, marks in make_table([view]).rows] == [("●",)]
    baseline, first, second = script.params
    assert "baseline" not in baseline
    assert Path(baseline["checkpoint"]).parts[-3] == "model"
    assert first["baseline"] == second["baseline"]
    assert first["options"] == {
        "device": "cpu",
        "enforce_eager": True,
        "kv_cache_dtype": "auto",
        "door": "engine",
    }


def test_the_same_answer_to_both_pictures_is_blindness(project: Project) -> None:
    views = execute(project, Vllm(measured(swapped="red")))
    view = views[f"lm-fp8/modelopt-0.41.0/seeing/{CPU}"]
    assert statuses(view)["text"] == statuses(view)["load"] == "pass"
    assert statuses(view)["image"] == "fail"
    assert view.decisive.findings == ("blind",)


def test_what_does_not_load_blocks_the_rest_and_is_told(project: Project) -> None:
    error = {
        "type": "KeyError",
        "message": "'blocks.0.attn.k_proj.k_scale'",
        "where": "x",
        "stage": "load",
        "origin": "checkpoint",
    }
    view = execute(project, Vllm(measured(exception=error)))[f"lm-fp8/modelopt-0.41.0/seeing/{CPU}"]
    assert statuses(view)["load"] == "fail"
    assert {statuses(view)[stage] for stage in ("text", "image", "fidelity", "speed")} == {"blocked"}
    assert view.decisive.findings == ("stray-vision-kv-scale",)


def test_a_machines_fault_is_an_error_and_tried_again(project: Project) -> None:
    error = {
        "type": "OutOfMemoryError",
        "message": "m",
        "where": "x",
        "stage": "load",
        "origin": "environment",
    }
    view = execute(project, Vllm(measured(exception=error)))[f"lm-fp8/modelopt-0.41.0/seeing/{CPU}"]
    assert view.decisive.status == "error"
    script = Vllm(measured())
    again = execute(project, script)[f"lm-fp8/modelopt-0.41.0/seeing/{CPU}"]
    assert statuses(again)["image"] == "pass"
    assert len(script.params) == 2, "both checkpoints, and not the unquantized model again"


def test_where_the_unquantized_model_fails_no_checkpoint_is_blamed(project: Project) -> None:
    error = {"type": "ValueError", "message": "m", "where": "x", "stage": "load", "origin": "checkpoint"}

    class Broken(Vllm):
        def __call__(self, job: Job, batch: Batch) -> dict[str, Any] | None:
            result = super().__call__(job, batch)
            return result and result | (
                {"measured": measured(exception=error)} if batch.worker == "generate" else {}
            )

    view = execute(project, Broken(measured()))[f"lm-fp8/modelopt-0.41.0/seeing/{CPU}"]
    assert statuses(view)["load"] == "error"
    assert "vLLM cannot run it: ValueError: m" in view.decisive.because


def test_a_run_without_fidelity_is_not_shown_as_seeing(project: Project) -> None:
    alone = Vllm(measured() | {"fidelity": None}, baseline_is_whole=False)
    view = execute(project, alone)[f"lm-fp8/modelopt-0.41.0/seeing/{CPU}"]
    assert statuses(view)["image"] == "pass"
    assert statuses(view)["fidelity"] == "blocked"
    assert [marks for _, marks in make_table([view]).rows] == [("▪",)]
    assert any("blocked" in (text or "") for _, text in project.surprises(view))


def test_what_the_worker_refuses_is_the_checkpoints_failure(project: Project) -> None:
    class Refusing(Vllm):
        def __call__(self, job: Job, batch: Batch) -> dict[str, Any] | None:
            result = super().__call__(job, batch)
            if batch.worker != "generate" or "baseline" not in job.params:
                return result
            failure = {"kind": "not-a-checkpoint", "message": "no config", "where": None}
            return {
                "outcome": "refused",
                "failure": failure,
                "measured": {},
                "environment": {},
                "seconds": 1.0,
            }

    view = execute(project, Refusing(measured()))[f"lm-fp8/modelopt-0.41.0/seeing/{CPU}"]
    assert statuses(view)["load"] == "fail"
    assert view.decisive.findings == ("not-a-checkpoint",)


def test_without_a_gpu_its_cells_are_not_run_and_no_surprise(project: Project) -> None:
    views = execute(project, Vllm(measured()))
    view = views[f"lm-fp8/modelopt-0.41.0/seeing/{GPU}"]
    assert {statuses(view)[stage] for stage in ("load", "text", "image", "fidelity", "speed")} == {"not run"}
    assert view.decisive.stage == "preflight"
    assert not any(text for _, text in project.surprises(view))


@pytest.mark.parametrize("since", ["the same worker", "checkpoint's run", "unquantized model's run"])
def test_committed_evidence_stands_for_what_cannot_be_run_here(project: Project, since: str) -> None:
    execute(project, Vllm(measured()))
    cells = project.matrix.cells
    plan = project.plan(cells, project.locks(cells))
    cell = next(cell for cell in cells if cell.serve.id == GPU)
    made_here = next(
        record for c in cells if c.serve.id == CPU and (record := project.lookup(plan.step(c, "load")))
    )
    host = Host(machine="x86_64", system="Linux", cpus=1, memory_gb=1.0, accelerator="NVIDIA H200")
    for step, said in ((plan.baseline(cell), measured()), (plan.step(cell, "load"), measured(swapped="red"))):
        update: dict[str, Any] = {
            "subject": step.subject,
            "evidence": step.evidence[0],
            "digest": "f" * 64,
            "read": {},
            "inputs": {"params": dict(step.params), "worker": source.of_worker("generate")},
            "environment": {"vllm": GPU.removeprefix("vllm-")},
        }
        if since.startswith("unquantized" if step.subject.startswith("bf16/") else "checkpoint"):
            update["inputs"]["worker"] = "another"
        update |= {"host": host, "measured": said | {"options": step.params["options"]}}
        Evidence(project.matrix.path.parent / "results").add(made_here.model_copy(update=update))
    fresh = Project.open(project.matrix.path)
    view = next(view for view in fresh.views(plan) if view.cell.id == cell.id)
    assert statuses(view)["image"] == "fail"
    assert view.decisive.where is not None
    assert view.decisive.where.accelerator == "NVIDIA H200"
    assert any("blind" in (text or "") for _, text in fresh.surprises(view))
    ran = [stage for stage in view.stages if stage.stage in GENERATED]
    assert {stage.earlier_worker for stage in ran} == {since != "the same worker"}
    assert {bool(stage.remark) for stage in view.stages} == {False, since != "the same worker"}
    shown = json.loads(to_json([view]))["cells"][0]["stages"]
    assert [name for name, stage in shown.items() if stage["earlier_worker"]] == [
        stage.stage for stage in view.stages if stage.earlier_worker
    ]


def test_evidence_for_another_recipe_does_not_count(project: Project, tmp_path: Path) -> None:
    cells = project.matrix.cells
    before = project.plan(cells, project.locks(cells))
    other = open_project(tmp_path / "other", SEEING)
    path = other.matrix.path.parent / "recipes" / "lm-fp8.yaml"
    path.write_text(RECIPE.replace("modality: text", "modality: text, samples: 9"))
    other = Project.open(other.matrix.path)
    after = other.plan(other.matrix.cells, other.locks(other.matrix.cells))
    for cell in cells:
        mine, theirs = before.step(cell, "load"), after.step(cell, "load")
        assert mine.evidence
        assert mine.evidence != theirs.evidence
        assert before.baseline(cell).evidence == after.baseline(cell).evidence


def test_an_earlier_runs_baseline_is_not_taken_for_the_one_that_is_being_made(tmp_path: Path) -> None:
    project = open_project(tmp_path, SEEING)

    class Looking(Vllm):
        def __call__(self, job: Job, batch: Batch) -> dict[str, Any] | None:
            if batch.worker == "generate" and job is batch.jobs[0]:
                # Before it is made; a record of an error, with half of its files, was there.
                waiting = [Path(other.params["baseline"]) for other in batch.jobs[1:]]
                assert waiting
                assert not any(any(path.iterdir()) for path in waiting)
            return super().__call__(job, batch)

    class Failing(Vllm):
        def __call__(self, job: Job, batch: Batch) -> dict[str, Any] | None:
            if "baseline" in job.params:
                return None
            result = super().__call__(job, batch)
            if result is None or batch.worker != "generate":
                return result
            return {**result, "outcome": "raised", "failure": {"kind": "MemoryError", "message": "m"}}

    execute(project, Failing(measured()))
    views = execute(project, Looking(measured()))
    assert set(statuses(views[f"lm-fp8/modelopt-0.41.0/seeing/{CPU}"]).values()) == {"pass"}


def test_a_baseline_is_there_for_the_next_job_before_while_and_after_it_is_kept(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, when = Store.commit, []
    waiting: list[Path] = []

    def look(moment: str) -> None:
        when.append(moment)
        assert all((path / LOGPROBS).exists() for path in waiting)

    class Looking(Vllm):
        def __call__(self, job: Job, batch: Batch) -> dict[str, Any] | None:
            result = super().__call__(job, batch)
            if batch.worker == "generate" and job is batch.jobs[0]:
                waiting.extend(Path(other.params["baseline"]) for other in batch.jobs[1:])
                look("before")
            return result

    def slow(store: Store, made: Path, record: Record) -> None:
        if record.stage == "generate":
            look("while")
        commit(store, made, record)
        if record.stage == "generate":
            look("after")

    monkeypatch.setattr(Store, "commit", slow)
    execute(project, Looking(measured()))
    assert waiting
    assert when[:3] == ["before", "while", "after"]


def test_a_run_that_was_compared_with_a_failed_one_does_not_count(project: Project) -> None:
    class Failing(Vllm):
        def __call__(self, job: Job, batch: Batch) -> dict[str, Any] | None:
            result = super().__call__(job, batch)
            if result is None or batch.worker != "generate" or "baseline" in job.params:
                return result
            return {**result, "outcome": "raised", "failure": {"kind": "MemoryError", "message": "m"}}

    cell = f"lm-fp8/modelopt-0.41.0/seeing/{CPU}"
    entries = project.store.root / "steps" / "generate"
    failed = statuses(execute(project, Failing(measured()))[cell])
    assert len(list(entries.iterdir())) == 1
    passed = statuses(execute(project, Vllm(measured()))[cell])
    assert len(list(entries.iterdir())) == 3
    assert {failed[stage] for stage in GENERATED} == {"blocked"}
    assert {passed[stage] for stage in GENERATED} == {"pass"}


def test_what_a_worker_links_to_is_not_copied_for_the_next_job(project: Project, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    found: list[Path] = []

    class Linking(Vllm):
        def __call__(self, job: Job, batch: Batch) -> dict[str, Any] | None:
            result = super().__call__(job, batch)
            if batch.worker == "generate" and "baseline" not in job.params:
                (job.out / "generation" / "other").symlink_to(secret)
                (job.out / IDS).symlink_to(secret)
            if "baseline" in job.params:
                found.extend(Path(job.params["baseline"]).rglob("*"))
            return result

    execute(project, Linking(measured()))
    assert {path.name for path in found} == {"generation", "logprobs.npy"}


def test_a_disk_that_fills_up_while_a_baseline_is_copied_is_said_so(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    class Filling(Vllm):
        def __call__(self, job: Job, batch: Batch) -> dict[str, Any] | None:
            if batch.worker == "generate":
                monkeypatch.setattr(shutil, "copyfileobj", full)
            return super().__call__(job, batch)

    with pytest.raises(StoreWriteError, match="no space left"):
        execute(project, Filling(measured()))
