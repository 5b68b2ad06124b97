"""What was executed with other inputs than today's is stale, with what has changed, never current."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qvlfp8 import source
from qvlfp8.cells import GENERATED
from qvlfp8.evidence import Evidence
from qvlfp8.kept import KEPT
from qvlfp8.locks import path_of
from qvlfp8.project import Project
from qvlfp8.report.table import CellView, make_table
from qvlfp8.results import Host, Record
from qvlfp8.survey import changed
from tests.unit.factory import RECIPE, open_project
from tests.unit.test_generated import CPU, GPU, SEEING, Vllm, execute, measured
from tests.unit.test_run import Bench, FakeEngine, passes

pytestmark = pytest.mark.usefixtures("fast_disk", "small_models")

ALL = set(KEPT)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    made.run(FakeEngine())
    return made


def edit_recipe(bench: Bench, _patch: pytest.MonkeyPatch) -> None:
    for path in (bench.project.matrix.path.parent / "recipes").glob("*.yaml"):
        path.write_text(RECIPE.replace("modality: text", "modality: text, samples: 9"))


def edit_lock(name: str) -> Callable[[Bench, pytest.MonkeyPatch], None]:
    def apply(bench: Bench, _patch: pytest.MonkeyPatch) -> None:
        lock = path_of(bench.project.matrix, bench.project.environments[name], "cpu")
        lock.write_text(lock.read_text() + "more==1\n")

    return apply


def edit_worker(name: str) -> Callable[[Bench, pytest.MonkeyPatch], None]:
    def apply(_bench: Bench, patch: pytest.MonkeyPatch) -> None:
        before = source.of_worker
        patch.setattr("qvlfp8.source.of_worker", lambda asked: "new" if asked == name else before(asked))

    return apply


def edit_judgement(_bench: Bench, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("qvlfp8.source.of_judgement", lambda: "new")


def edit_model(bench: Bench, _patch: pytest.MonkeyPatch) -> None:
    path = bench.project.matrix.path
    path.write_text(path.read_text().replace("seed: 0", "seed: 1"))


def now(bench: Bench) -> tuple[CellView, ...]:
    project = Project.open(bench.project.matrix.path)
    cells = project.matrix.cells
    return project.views(project.plan(cells, project.locks(cells)))


@pytest.mark.parametrize(
    ("edit", "hit", "of", "named"),
    [
        (edit_recipe, ALL, "", "recipe has changed since 2"),
        (edit_model, ALL, "", "model has changed since 2"),
        (edit_lock("modelopt-0.41.0"), ALL, "modelopt-0.41.0", "lock of modelopt-0.41.0 has changed since 2"),
        (edit_lock("vllm-0.10.2"), {"preflight"}, "vllm-0.10.2", "lock of vllm-0.10.2 has changed since 2"),
        (edit_worker("quantize"), ALL, "", "quantize worker has changed since 2"),
        (edit_worker("preflight"), {"preflight"}, "", "preflight worker has changed since 2"),
        (edit_worker("inspect"), {"inspect"}, "", "inspect worker has changed since 2"),
        (edit_judgement, ALL, "", "judgement has changed since 2"),
    ],
)
def test_a_changed_input_makes_what_it_led_to_stale_and_is_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, edit: Any, hit: set[str], of: str, named: str
) -> None:
    edit(bench, monkeypatch)
    for view in now(bench):
        for stage in view.stages:
            is_hit = stage.stage in hit and of in view.cell.id
            assert stage.status == ("stale" if is_hit else "pass"), (view.cell.id, stage)
            assert stage.because.startswith(named if is_hit else "")
        stale = [stage for stage in view.stages if stage.status == "stale"]
        table = make_table([view])
        assert table.rows[0][1][0].split()[0] == ("~" if stale else "◐")
        assert [(reason.what, reason.text) for reason in table.reasons] == [
            ("stale", s.because) for s in stale
        ]
        assert any("stale" in (text or "") for _, text in bench.project.surprises(view)) == bool(stale)


def test_executed_again_it_is_current(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_worker("preflight")(bench, monkeypatch)
    again = Bench(bench.project.matrix.path.parent)
    again.run(FakeEngine())
    assert {stage.status for view in now(again) for stage in view.stages} == {"pass"}


def test_what_never_was_executed_is_not_run_and_an_error_is_no_result(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = open_project(bench.project.store.root.parent / "other", recipes=("lm-fp8",))
    cells = other.matrix.cells
    found = other.views(other.plan(cells, other.locks(cells)))
    assert {s.status for view in found for s in view.stages if s.stage in KEPT} == {"not run"}

    def dies(job: Any, batch: Any) -> Any:
        return None if batch.worker == "preflight" else passes(job, batch)

    failing = Bench(bench.project.store.root.parent / "failing")
    failing.run(FakeEngine(dies))
    edit_worker("preflight")(failing, monkeypatch)
    assert {s.status for view in now(failing) for s in view.stages if s.stage == "preflight"} == {"not run"}


def test_the_newest_of_several_older_records_speaks(bench: Bench) -> None:
    step = bench.plan.step(bench.cells[0], "preflight")
    record = bench.project.store.record("preflight", step.digest)
    assert record is not None
    with bench.project.store.locked():
        for number, started in enumerate(
            ("2020-01-01T00:00:00", "2099-01-01T00:00:00", "2030-01-01T00:00:00")
        ):
            update = {"digest": str(number) * 64, "started": started}
            scratch = bench.project.store.scratch("x")
            bench.project.store.commit(scratch, record.model_copy(update=update))
    older = bench.project.store.older("preflight", step.subject, than=step.digest)
    assert older is not None
    assert older.started.startswith("2099")


def test_a_record_that_does_not_name_its_inputs_says_what_it_can(bench: Bench) -> None:
    step = bench.plan.step(bench.cells[0], "preflight")
    record = bench.project.store.record("preflight", step.digest)
    assert record is not None
    inputs = {name: value for name, value in record.inputs.items() if name != "asked"}

    def said(**update: Any) -> str:
        return changed(record.model_copy(update={"inputs": inputs | update}), step)

    assert said() == "what it was executed on has changed since, or was made another way"
    assert said(worker="0" * 64).startswith("preflight worker has changed since")
    assert said(lock="0" * 64, judgement="1" * 64).startswith("judgement, lock of vllm-0.10.2 have changed")
    assert said(params={"on_trial": True}).startswith("exam and options has changed since")


def test_a_run_in_either_lock_for_a_gpu_does_not_blame_the_lock(bench: Bench) -> None:
    step = bench.plan.step(bench.cells[0], "preflight")
    record = bench.project.store.record("preflight", step.digest)
    assert record is not None
    asked = {**step.asked, "lock of vllm-0.10.2": "bundle", "recipe": "other"}
    record = record.model_copy(update={"inputs": {"asked": asked}})
    assert changed(record, step._replace(work=replace(step.work, standing=("bundle",)))).startswith(
        "recipe has changed since"
    )
    assert changed(record, step).startswith("recipe, lock of vllm-0.10.2 have changed")


@pytest.mark.parametrize("also", ["store", "results"])
def test_evidence_of_a_gpu_that_no_longer_stands_is_stale_and_hides_nothing(
    tmp_path: Path, also: str
) -> None:
    """It cannot be run again here: the cell shows what is current, and nothing asks for the impossible."""
    project = open_project(tmp_path, SEEING)
    execute(project, Vllm(measured()))
    cells = project.matrix.cells
    plan = project.plan(cells, project.locks(cells))
    cell = next(cell for cell in cells if cell.serve.id == GPU)
    ran = next(r for c in cells if c.serve.id == CPU and (r := project.lookup(plan.step(c, "load"))))
    host = Host(machine="x86_64", system="Linux", cpus=1, memory_gb=1.0, accelerator="NVIDIA H200")
    for step in (plan.baseline(cell), plan.step(cell, "load")):
        inputs = {"params": dict(step.params), "asked": {**step.asked, "exam and options": "another"}}
        update: dict[str, Any] = {
            "subject": step.subject, "host": host, "inputs": inputs, "evidence": "e" * 64, "digest": "f" * 64,
        }  # fmt: skip
        record: Record = ran.model_copy(update=update)
        if also == "results":
            Evidence(tmp_path / "results").add(record.model_copy(update={"read": {}}))
        else:
            with project.store.locked():
                digest = "f" * 64 if "bf16" in step.subject else "e" * 64
                scratch = project.store.scratch("x")
                project.store.commit(scratch, record.model_copy(update={"digest": digest}))
    fresh = Project.open(project.matrix.path)
    view = next(view for view in fresh.views(plan) if view.cell.id == cell.id)
    shown = [stage for stage in view.stages if stage.stage in GENERATED]
    assert {stage.status for stage in shown} == {"stale"}
    assert all(stage.because.startswith("exam and options has changed") for stage in shown)
    table = make_table([view])
    assert table.rows[0][1] == ("◐ a",)
    assert [(reason.stage, reason.what) for reason in table.reasons] == [("load", "stale")]
    assert not any(text for _, text in fresh.surprises(view))
