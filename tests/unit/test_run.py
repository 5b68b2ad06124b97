"""The runner against an engine that runs nothing: what is done, what is kept, what is tried again."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qvlfp8.cells import Cell
from qvlfp8.engine import Batch, Exit, Job
from qvlfp8.environments import Environment
from qvlfp8.errors import GpuRuntimeError, IndexUnreachableError, QvlError, StoreWriteError
from qvlfp8.locks import Lock
from qvlfp8.plan import Plan
from qvlfp8.progress import Progress
from qvlfp8.project import Project
from qvlfp8.report.table import CellView
from qvlfp8.run import Here, Runner
from tests.unit.factory import open_project

ROOT = Path(__file__).parents[2]

GOOD_PREFLIGHT: dict[str, Any] = json.loads(
    (Path(__file__).parent / "data" / "preflight" / "vision-fp8.json").read_text()
)["measured"]

Script = Callable[[Job, Batch], dict[str, Any] | None]


pytestmark = pytest.mark.usefixtures("fast_disk", "small_models")


def passes(_job: Job, batch: Batch) -> dict[str, Any] | None:
    match batch.worker:
        case "inspect":
            measured: dict[str, Any] = {"problems": [], "counts": {}}
        case "preflight":
            measured = GOOD_PREFLIGHT
        case _:
            measured = {}
    return {"outcome": "done", "measured": measured, "environment": {"x": "1"}, "seconds": 1.0}


class FakeEngine:
    """Does as its script says; remembers what it was asked."""

    name = "fake"

    def __init__(self, script: Script = passes, build_faults: Mapping[str, QvlError] | None = None) -> None:
        self.script = script
        self.build_faults = dict(build_faults or {})
        self.environments: set[str] = set()
        self.batches: list[tuple[str, int]] = []
        self.stopped = threading.Event()
        self.content = 0

    def built(self, environment: Environment, lock: Lock) -> bool:
        return environment.id in self.environments

    def build(self, environment: Environment, lock: Lock, log: Path) -> dict[str, Any]:
        if environment.id in self.build_faults:
            raise self.build_faults[environment.id]
        self.environments.add(environment.id)
        return {"packages": 1}

    def facts(self, environment: tuple[Environment, Lock] | None) -> dict[str, str]:
        return {"engine": self.name}

    def run(
        self,
        environment: tuple[Environment, Lock] | None,
        batch: Batch,
        log: Path,
        on_event: Callable[[dict[str, Any]], None],
    ) -> Exit:
        self.batches.append((batch.worker, len(batch.jobs)))
        log.write_text("the batch's log\n")
        for job in batch.jobs:
            result = self.script(job, batch)
            if result is None:
                return Exit(code=-9)
            if batch.worker == "quantize" and result["outcome"] == "done":
                (job.out / "checkpoint").mkdir()
                (job.out / "checkpoint" / "weights").write_text(str(self.content))
            (job.out / "result.json").write_text(json.dumps(result))
            on_event({"event": "end", "job": job.id})
        return Exit(code=0)

    def stop(self) -> None:
        self.stopped.set()


class Seen(Progress):
    def __init__(self) -> None:
        self.total = 0
        self.steps: list[tuple[str, str, str]] = []
        self.skipped: list[str] = []

    def begin(self, total: int) -> None:
        self.total = total

    def step(self, record: Any) -> None:
        self.steps.append((record.stage, record.subject, record.status))

    def skip(self, step: Any, because: str) -> None:
        self.skipped.append(f"{step.stage} {step.subject}: {because}")


class Bench:
    """A project, its plan, and runs of it."""

    def __init__(self, root: Path) -> None:
        self.project: Project = open_project(root, recipes=("lm-fp8", "vlm-fp8"))
        self.cells: tuple[Cell, ...] = self.project.matrix.cells
        self.locks = self.project.locks(self.cells)
        self.plan: Plan = self.project.plan(self.cells, self.locks)

    def run(self, engine: FakeEngine, *, again: bool = False) -> tuple[Seen, Here]:
        seen = Seen()
        with self.project.store.locked():
            place = Here(
                self.plan, store=self.project.store, engine=engine, environments=self.project.environments,
                locks=self.locks, progress=seen, jobs=2,
            )  # fmt: skip
            Runner(self.plan, place, progress=seen, lookup=self.project.own, again=again).run()
        return seen, place

    def views(self) -> tuple[CellView, ...]:
        return self.project.views(self.plan)

    def statuses(self, stage: str) -> set[str]:
        return {s.status for v in self.views() for s in v.stages if s.stage == stage}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_what_is_done_is_what_no_run_would_execute(bench: Bench) -> None:
    assert bench.project.finished(bench.plan) == set()

    def dies(job: Job, batch: Batch) -> dict[str, Any] | None:
        return None if batch.worker == "preflight" else passes(job, batch)

    bench.run(FakeEngine(dies))
    left = {step.digest for step in bench.plan.steps.values() if step.stage == "preflight"}
    done = bench.project.finished(bench.plan)
    assert done == set(bench.plan.steps) - left
    # What is there and is no record is not done.
    model = next(step for step in bench.plan.steps.values() if step.stage == "model")
    (bench.project.store.entry("model", model.digest) / "record.json").write_text("{}")
    assert model.digest not in bench.project.finished(bench.plan)


def test_what_is_done_stays_done_without_the_entry_that_it_was_made_of(bench: Bench) -> None:
    bench.run(FakeEngine())
    made = [step for step in bench.plan.steps.values() if step.stage == "quantize"]
    for step in made:
        shutil.rmtree(bench.project.store.entry("quantize", step.digest))
    assert bench.project.finished(bench.plan) == set(bench.plan.steps) - {step.digest for step in made}


def test_a_committed_run_on_a_gpu_is_done_and_what_needs_none_is_not() -> None:
    project = Project.open(ROOT / "matrix.yaml", ROOT / "no-store")
    cells = project.cells(only=["lm-fp8/modelopt-0.41.0/seeing-untied/vllm-0.26.0"])
    plan = project.plan(cells, project.locks(cells))
    done = project.finished(plan)
    assert {plan.step(cells[0], "load").digest, plan.baseline(cells[0]).digest} == done


def test_everything_runs_once_in_one_batch_an_environment(bench: Bench) -> None:
    engine = FakeEngine()
    seen, _ = bench.run(engine)
    assert seen.total == len(seen.steps) == len(bench.plan.steps) == 21
    assert sorted(engine.batches) == [
        *[("inspect", 2)] * 2,
        *[("preflight", 4)] * 2,
        *[("quantize", 2)] * 2,
    ]
    assert bench.statuses("preflight") == {"pass"}


def test_a_second_run_does_nothing(bench: Bench) -> None:
    bench.run(FakeEngine())
    engine = FakeEngine()
    seen, _ = bench.run(engine)
    assert (seen.total, engine.batches, engine.environments) == (0, [], set())


def test_an_environment_that_was_built_by_a_run_that_could_not_say_so_is_recorded(bench: Bench) -> None:
    engine = FakeEngine()
    engine.environments = {e.id for e in bench.project.matrix.environments}
    seen, _ = bench.run(engine)
    assert len([stage for stage, _, _ in seen.steps if stage == "build"]) == 4
    seen, _ = bench.run(engine, again=True)
    assert "build" not in {stage for stage, _, _ in seen.steps}


def test_again_executes_all_but_what_needs_no_executing(bench: Bench) -> None:
    engine = FakeEngine()
    bench.run(engine)
    seen, _ = bench.run(engine, again=True)
    assert {stage for stage, _, _ in seen.steps} == {"quantize", "inspect", "preflight"}
    assert seen.total == 16


def test_a_failed_build_blocks_its_own_cells_only_and_is_tried_again(bench: Bench) -> None:
    engine = FakeEngine(build_faults={"vllm-0.10.2": IndexUnreachableError("no answer")})
    seen, runner = bench.run(engine)
    assert [type(f) for f in runner.faults] == [IndexUnreachableError]
    by_serve = {v.cell.serve.id: v.stages[-1] for v in bench.views()}
    assert by_serve["vllm-0.13.0"].status == "pass"
    assert by_serve["vllm-0.10.2"].status == "blocked"
    assert "no answer" in by_serve["vllm-0.10.2"].because
    assert all("build of vllm-0.10.2" in text for text in seen.skipped)
    engine.build_faults.clear()
    seen, _ = bench.run(engine)
    assert {stage for stage, _, _ in seen.steps} == {"build", "preflight"}
    assert bench.statuses("preflight") == {"pass"}


def test_a_build_that_came_after_an_error_and_was_not_recorded_is_recorded(bench: Bench) -> None:
    engine = FakeEngine(build_faults={"vllm-0.10.2": IndexUnreachableError("no answer")})
    bench.run(engine)
    engine.build_faults.clear()
    engine.environments.add("vllm-0.10.2")  # made by a run that was killed before it could say so
    seen, _ = bench.run(engine)
    assert [status for stage, _, status in seen.steps if stage == "build"] == ["pass"]
    (build,) = (step for step in bench.plan.steps.values() if step.subject == "vllm-0.10.2")
    record = bench.project.store.record("build", build.digest)
    assert record is not None
    assert record.status == "pass"


def test_an_engine_that_cannot_start_a_batch_does_not_stop_the_rest(bench: Bench) -> None:
    class WithoutGpu(FakeEngine):
        def run(self, environment: Any, batch: Batch, log: Path, on_event: Any) -> Exit:
            if batch.worker == "preflight":
                raise GpuRuntimeError("no runtime", mend="install it")
            return super().run(environment, batch, log, on_event)

    seen, runner = bench.run(WithoutGpu())
    assert {type(fault) for fault in runner.faults} == {GpuRuntimeError}
    assert {status for stage, _, status in seen.steps if stage != "preflight"} == {"pass"}
    assert bench.statuses("preflight") == {"error"}
    bench.run(FakeEngine())
    assert bench.statuses("preflight") == {"pass"}


def test_a_job_names_every_folder_that_it_reads(bench: Bench) -> None:
    def looks(job: Job, batch: Batch) -> dict[str, Any] | None:
        for name in ("model", "checkpoint"):
            if name in job.params:
                assert job.reads == (Path(job.params[name]),)
                assert job.reads[0].is_dir()
        return passes(job, batch)

    seen, _ = bench.run(FakeEngine(looks))
    assert {stage for stage, _, _ in seen.steps} >= {"quantize", "inspect", "preflight"}


def test_a_record_names_what_is_an_error_and_only_its_unfinished_jobs_are_tried_again(
    bench: Bench,
) -> None:
    def dies_on_second(job: Job, batch: Batch) -> dict[str, Any] | None:
        return None if batch.worker == "preflight" and job is batch.jobs[1] else passes(job, batch)

    bench.run(FakeEngine(dies_on_second))
    statuses = [v.stages[-1].status for v in bench.views()]
    assert statuses.count("pass") == 2
    assert statuses.count("error") == 6
    errors = [v.stages[-1].because for v in bench.views() if v.stages[-1].status == "error"]
    assert all("signal 9" in text for text in errors)
    engine = FakeEngine()
    engine.environments = {e.id for e in bench.project.matrix.environments}
    seen, _ = bench.run(engine)
    assert [stage for stage, _, _ in seen.steps] == ["preflight"] * 6
    assert bench.statuses("preflight") == {"pass"}


def test_a_failed_quantization_blocks_what_needs_it_and_is_not_tried_again(bench: Bench) -> None:
    def refuses(job: Job, batch: Batch) -> dict[str, Any] | None:
        if batch.worker == "quantize" and job.params["recipe"]["id"] == "vlm-fp8":
            return {
                "outcome": "refused",
                "failure": {"kind": "recipe-not-honoured", "message": "cannot"},
            }
        return passes(job, batch)

    bench.run(FakeEngine(refuses))
    for view in bench.views():
        bad = view.cell.recipe.id == "vlm-fp8"
        resolved, *executed = view.stages
        assert resolved.status == "pass"
        assert [s.status for s in executed] == (["fail", "blocked", "blocked"] if bad else ["pass"] * 3)
        assert executed[0].findings == (("recipe-not-honoured",) if bad else ())
    seen, _ = bench.run(FakeEngine(refuses))
    assert not seen.steps


def test_an_interrupted_run_keeps_what_was_finished(bench: Bench) -> None:
    def interrupts(job: Job, batch: Batch) -> dict[str, Any] | None:
        if batch.worker == "preflight" and job is batch.jobs[2]:
            raise KeyboardInterrupt
        return passes(job, batch)

    engine = FakeEngine(interrupts)
    with pytest.raises(KeyboardInterrupt):
        bench.run(engine)
    assert engine.stopped.is_set()
    kept = [v.stages[-1].status for v in bench.views()].count("pass")
    assert kept >= 2
    left = [s for s in bench.plan.steps.values() if bench.project.lookup(s) is None]
    engine.script = passes
    seen, _ = bench.run(engine)
    assert sorted(subject for _, subject, _ in seen.steps) == sorted(step.subject for step in left)


def test_a_full_disk_ends_the_run_with_its_own_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    engine = FakeEngine()
    bench.project.store.root.mkdir(parents=True)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreWriteError, match="no space left"):
        bench.run(engine)
    monkeypatch.undo()
    bench.run(engine)
    assert bench.statuses("preflight") == {"pass"}


def test_a_clock_that_goes_back_makes_no_time_negative_and_loses_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes back a day whenever it is read, during the run and between runs."""
    engine, days = FakeEngine(), iter(range(10_000))

    class Back(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Back:
            return cls(2026, 11, 22, tzinfo=tz) - datetime.timedelta(days=next(days))

    monkeypatch.setattr("qvlfp8.execute.datetime", SimpleNamespace(datetime=Back, UTC=datetime.UTC))
    monkeypatch.setattr("time.time", lambda: -1e9)
    seen, _ = bench.run(engine)
    assert len(seen.steps) == 21
    records = list(bench.project.store.records())
    assert len({record.started for record in records}) > 1
    assert min(record.seconds for record in records) >= 0
    assert bench.run(engine)[0].total == 0
    engine.content = 1
    bench.run(engine, again=True)
    before = {record.digest: record for record in records}
    again = [r for r in bench.project.store.records() if r.stage in {"quantize", "preflight"}]
    assert all(record.started < before[record.digest].started for record in again)
    assert bench.statuses("preflight") == {"pass"}
    assert bench.run(engine)[0].total == 0


def test_a_record_names_what_went_in_and_how_to_repeat_it(bench: Bench) -> None:
    bench.run(FakeEngine())
    step = bench.plan.step(bench.cells[0], "preflight")
    record = bench.project.lookup(step)
    assert record is not None
    assert record.inputs["lock"] == bench.locks["vllm-0.10.2", "cpu"].digest
    assert record.inputs["needs"] == list(step.needs)
    assert record.environment == {"x": "1", "engine": "fake"}
    assert record.repeat == f"nox -s matrix -- --again --only '{bench.cells[0].id}'"
    assert record.log == "log.txt"
    assert record.log_digest


def test_a_checkpoint_made_anew_and_differently_makes_what_was_executed_on_it_stale(bench: Bench) -> None:
    engine = FakeEngine()
    bench.run(engine)
    step = bench.plan.step(bench.cells[0], "quantize")
    record = bench.project.store.record("quantize", step.digest)
    assert record is not None
    with bench.project.store.locked():
        scratch = bench.project.store.scratch("x")
        bench.project.store.commit(scratch, record.model_copy(update={"made": "f" * 64}))
    hit = {v.stages[3].status for v in bench.views() if v.cell.checkpoint == bench.cells[0].checkpoint}
    assert hit == {"stale"}
    assert {v.stages[3].status for v in bench.views() if v.cell.checkpoint != step.subject} == {"pass"}
    seen, _ = bench.run(engine)
    assert {stage for stage, _, _ in seen.steps} == {"quantize", "inspect", "preflight"}
    assert bench.statuses("preflight") == {"pass"}


def test_a_checkpoint_that_no_longer_can_be_made_blocks_what_was_green(bench: Bench) -> None:
    bench.run(FakeEngine())

    def refuses(job: Job, batch: Batch) -> dict[str, Any] | None:
        if batch.worker == "quantize":
            return {"outcome": "refused", "failure": {"kind": "recipe-not-honoured", "message": "cannot"}}
        return passes(job, batch)

    engine = FakeEngine(refuses)
    engine.environments = {e.id for e in bench.project.matrix.environments}
    bench.run(engine, again=True)
    assert bench.statuses("quantize") == {"fail"}
    assert bench.statuses("preflight") == {"blocked"}


def test_a_worker_that_says_done_and_leaves_no_checkpoint_is_an_error(bench: Bench) -> None:
    class Forgetful(FakeEngine):
        def run(self, environment: Any, batch: Batch, log: Path, on_event: Any) -> Exit:
            def forget(event: dict[str, Any]) -> None:
                for job in batch.jobs:
                    shutil.rmtree(job.out / "checkpoint", ignore_errors=True)
                on_event(event)

            return super().run(environment, batch, log, forget)

    bench.run(Forgetful())
    assert bench.statuses("quantize") == {"error"}
    assert bench.statuses("preflight") == {"blocked"}


def test_a_checkpoint_that_was_changed_in_the_store_is_made_again_before_it_is_read(bench: Bench) -> None:
    engine = FakeEngine()
    bench.run(engine)
    quantize = bench.plan.step(bench.cells[0], "quantize")
    weights = bench.project.store.entry("quantize", quantize.digest) / "checkpoint" / "weights"
    weights.write_text("corrupt")
    shutil.rmtree(bench.project.store.entry("preflight", bench.plan.step(bench.cells[0], "preflight").digest))
    seen, _ = bench.run(engine)
    assert ("quantize", quantize.subject, "pass") in seen.steps
    assert ("inspect", quantize.subject, "pass") in seen.steps
    assert weights.read_text() == "0"
    assert bench.statuses("preflight") == {"pass"}
