"""Committed lines of steps that need no GPU: they stand in tables, spare no execution, and cannot be bent."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qvlfp8 import digest, source
from qvlfp8.commands.keep import keep_results
from qvlfp8.commands.matrix import UnexpectedError, run_matrix
from qvlfp8.engine import Batch, Job
from qvlfp8.errors import FileFormatError, UsageError
from qvlfp8.kept import KEPT
from qvlfp8.project import Project
from qvlfp8.report.table import CellView
from tests.unit.factory import RECIPE
from tests.unit.test_run import GOOD_PREFLIGHT, Bench, FakeEngine, passes

ROOT = Path(__file__).parents[2]
LOADERS, CHECKPOINTS = Path("results/loaders"), Path("results/checkpoints")

pytestmark = pytest.mark.usefixtures("fast_disk", "small_models")


def script(job: Job, batch: Batch) -> dict[str, Any] | None:
    """Of one recipe no checkpoint can be made; the other's pass."""
    if batch.worker == "quantize" and job.params["recipe"]["id"] == "vlm-fp8":
        message = f"{job.out.parents[1]}/steps/quantize/{'a' * 64}/checkpoint: cannot"
        failure = {"kind": "recipe-not-expressible", "message": message}
        return {"outcome": "refused", "failure": failure, "measured": {}, "environment": {}, "seconds": 1.0}
    result = passes(job, batch)
    assert result
    result["environment"] = {"vllm": "0", "import_seconds": 2.0, "patches": [{"id": "p", "why": "w"}]}
    return result


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A project whose store has executed everything, and whose records are kept."""
    made = Bench(tmp_path)
    made.run(FakeEngine(script))
    keep_results(made.project.matrix.path, None)
    return made


def fresh(bench: Bench) -> Project:
    """The project as a clone has it: with what is committed and no store."""
    shutil.rmtree(bench.project.store.root, ignore_errors=True)
    return Project.open(bench.project.matrix.path)


def views(project: Project, *, executed: bool = False) -> tuple[CellView, ...]:
    cells = project.matrix.cells
    plan = project.plan(cells, project.locks(cells))
    return project.views(plan, project.executed if executed else None)


def statuses(found: tuple[CellView, ...]) -> dict[str, set[str]]:
    stages = [stage for view in found for stage in view.stages if stage.stage in KEPT]
    return {name: {stage.status for stage in stages if stage.stage == name} for name in KEPT}


def texts(bench: Bench) -> dict[str, str]:
    root = bench.project.matrix.path.parent / "results"
    return {path.name: path.read_text() for path in sorted(root.glob("*/*.jsonl"))}


def test_a_clone_shows_what_was_kept(bench: Bench) -> None:
    before = statuses(bench.views())
    after = views(fresh(bench))
    assert statuses(after) == before == {
        "quantize": {"pass", "fail"}, "inspect": {"pass", "blocked"}, "preflight": {"pass", "blocked"},
    }  # fmt: skip
    refused = next(stage for view in after for stage in view.stages if stage.status == "fail")
    assert refused.findings == ("recipe-not-expressible",)
    assert refused.where is not None


def test_what_is_kept_spares_no_execution(bench: Bench) -> None:
    project = fresh(bench)
    assert set().union(*statuses(views(project, executed=True)).values()) == {"not run"}
    bench.project = project
    seen, _ = bench.run(FakeEngine(script))
    assert {stage for stage, _, _ in seen.steps} == {"build", "model", *KEPT}


def test_the_matrix_command_executes_what_is_kept_and_believes_what_it_saw(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the loader refuses what the kept lines call a pass; only the models were made already."""
    path = bench.project.matrix.path
    for stage in KEPT:
        shutil.rmtree(bench.project.store.root / "steps" / stage)

    def breaks(job: Job, batch: Batch) -> dict[str, Any] | None:
        result = script(job, batch)
        if result and batch.worker == "preflight":
            result["measured"] = GOOD_PREFLIGHT | {"runner": "pooling"}
        return result

    monkeypatch.setattr("qvlfp8.commands.matrix.make_engine", lambda *_args, **_options: FakeEngine(breaks))
    with pytest.raises(UnexpectedError, match="not-generative"):
        run_matrix(
            path, None, only=[], everything=True, again=False, jobs=1, engine="venv", verbose=False,
        )  # fmt: skip
    assert statuses(views(Project.open(path)))["preflight"] == {"fail", "blocked"}


def test_a_records_own_store_wins(bench: Bench) -> None:
    def breaks(job: Job, batch: Batch) -> dict[str, Any] | None:
        result = script(job, batch)
        if result and batch.worker == "preflight":
            result["measured"] = GOOD_PREFLIGHT | {"never_loaded": ["visual.blocks.0.attn.qkv.weight_scale"]}
        return result

    bench.run(FakeEngine(breaks), again=True)
    assert "pass" not in statuses(views(bench.project))["preflight"]


def test_lines_are_sorted_compact_and_say_no_place(bench: Bench) -> None:
    found = texts(bench)
    assert set(found) == {
        "modelopt-0.41.0.jsonl",
        "modelopt-0.47.0.jsonl",
        "vllm-0.10.2.jsonl",
        "vllm-0.13.0.jsonl",
    }
    for text in found.values():
        assert str(bench.project.store.root.parent) not in text
        assert "import_seconds" not in text
        assert '"why"' not in text
        lines = [json.loads(line) for line in text.splitlines()]
        names = [(line["subject"], line["stage"]) for line in lines]
        assert names == sorted(names)
    assert '"message"' not in found["modelopt-0.41.0.jsonl"]
    assert '"summary":"checkpoint: cannot"' in found["modelopt-0.41.0.jsonl"]


def test_the_same_executed_again_leaves_the_same_bytes(bench: Bench) -> None:
    before = texts(bench)

    def slower(job: Job, batch: Batch) -> dict[str, Any] | None:
        result = script(job, batch)
        return result and result | {"seconds": 9.0}

    bench.run(FakeEngine(slower), again=True)
    keep_results(bench.project.matrix.path, None)
    assert texts(bench) == before


def test_keeping_from_a_store_with_less_takes_nothing_away(bench: Bench) -> None:
    before = texts(bench)
    fresh(bench)
    keep_results(bench.project.matrix.path, None)
    assert texts(bench) == before


def test_what_is_no_longer_in_the_matrix_is_removed(bench: Bench) -> None:
    path = bench.project.matrix.path
    path.write_text(path.read_text().replace("  - {vllm: 0.13.0, transformers: 4.57.6}\n", ""))
    keep_results(path, None)
    assert "vllm-0.13.0.jsonl" not in texts(bench)


def test_a_machines_fault_is_not_kept(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.run(FakeEngine(lambda job, batch: None if batch.worker == "preflight" else passes(job, batch)))
    keep_results(bench.project.matrix.path, None)
    assert set(texts(bench)) == {"modelopt-0.41.0.jsonl", "modelopt-0.47.0.jsonl"}


def test_there_has_to_be_something_to_keep(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to keep"):
        keep_results(Bench(tmp_path).project.matrix.path, None)


def _sealed(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """Somebody who knows of the sum, too."""

    def apply(line: dict[str, Any]) -> None:
        change(line)
        line.pop("sum")
        line["sum"] = digest.of_json(line)[:16]

    return apply


def _set(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda line: line.update(fields)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_set(status="fail"), "edited by hand"),
        (_set(subject="lm-fp8/modelopt-0.47.0/tiny/vllm-0.10.2"), "edited by hand"),
        (_set(measured=GOOD_PREFLIGHT | {"runner": "pooling"}), "edited by hand"),
        (
            _sealed(_set(status="fail")),
            r"it says fail \(.*\); what it measured is pass",
        ),
        (_sealed(_set(findings=["tie-misread"])), r"it says pass \(tie-misread\)"),
        (_sealed(_set(subject="lm-fp8/modelopt-0.47.0/tiny/vllm-0.10.2")), "not what its evidence key says"),
        (_sealed(_set(stage="inspect")), "does not belong into this file"),
        (_sealed(lambda line: line["asked"].update(recipe="0" * 16)), "what was asked is not what"),
        (_sealed(_set(asked={})), "what was asked is not what"),
        (_sealed(_set(measured={})), "lacks something"),
        (_set(status="sees"), "not a record: status"),
        (_set(more=1), "not a record: more"),
        (lambda line: line.pop("host"), "not a record: host"),
    ],
)
def test_a_line_that_was_bent_is_refused(
    bench: Bench, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    path = bench.project.matrix.path.parent / LOADERS / "vllm-0.10.2.jsonl"
    line = json.loads(path.read_text().splitlines()[0])
    assert line["subject"] == "lm-fp8/modelopt-0.41.0/tiny/vllm-0.10.2"
    change(line)
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(FileFormatError, match=rf"vllm-0\.10\.2\.jsonl:1: .*{says}"):
        views(fresh(bench))


def test_a_second_line_of_one_subject_is_refused(bench: Bench) -> None:
    path = bench.project.matrix.path.parent / LOADERS / "vllm-0.10.2.jsonl"
    first = path.read_text().splitlines(keepends=True)[0]
    path.write_text(path.read_text() + first)
    with pytest.raises(FileFormatError, match=r"speaks of what .*vllm-0\.10\.2\.jsonl:1 does"):
        views(fresh(bench))


def test_what_was_said_of_other_bytes_than_the_kept_checkpoint_is_stale(bench: Bench) -> None:
    path = bench.project.matrix.path.parent / CHECKPOINTS / "modelopt-0.41.0.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    for line in lines:
        if line["stage"] == "quantize":
            _sealed(_set(checkpoint="f" * 64))(line)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = statuses(views(fresh(bench)))
    assert "stale" in found["inspect"]
    assert "stale" in found["preflight"]


def test_a_file_that_is_no_text_is_named(bench: Bench) -> None:
    path = bench.project.matrix.path.parent / CHECKPOINTS / "modelopt-0.41.0.jsonl"
    path.write_bytes(b"\xff" + path.read_bytes())
    with pytest.raises(FileFormatError, match=r"modelopt-0\.41\.0\.jsonl: cannot be read"):
        views(fresh(bench))


def test_what_is_no_json_is_named_by_its_line(bench: Bench) -> None:
    path = bench.project.matrix.path.parent / CHECKPOINTS / "modelopt-0.41.0.jsonl"
    path.write_text(path.read_text() + "<<<<<<< ours\n")
    with pytest.raises(FileFormatError, match=r"modelopt-0\.41\.0\.jsonl:\d: not a record"):
        views(fresh(bench))


def test_a_changed_recipe_makes_what_was_kept_stale(bench: Bench) -> None:
    path = bench.project.matrix.path.parent / "recipes" / "lm-fp8.yaml"
    path.write_text(RECIPE.replace("modality: text", "modality: text, samples: 9"))
    for view in views(fresh(bench)):
        if view.cell.recipe.id == "lm-fp8":
            executed = [stage for stage in view.stages if stage.stage in KEPT]
            assert {stage.status for stage in executed} == {"stale"}
            assert all(stage.because.startswith("recipe has changed since 2") for stage in executed)


def test_a_changed_worker_is_said_and_the_record_stands(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_worker = source.of_worker

    def newer(name: str) -> str:
        return "new" if name == "preflight" else of_worker(name)

    monkeypatch.setattr("qvlfp8.source.of_worker", newer)
    found = views(fresh(bench))
    assert statuses(found)["preflight"] == {"pass", "blocked"}
    for view in found:
        earlier = {stage.stage for stage in view.stages if stage.earlier_worker}
        assert earlier == ({"preflight"} if view.cell.recipe.id == "lm-fp8" else set())


def test_what_is_judged_otherwise_today_is_shown_so_and_kept_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured stays; what it means is for today's judgement to say."""
    from qvlfp8 import findings

    real = findings.diagnose_preflight

    def harsher(measured: Any) -> Any:
        from qvlfp8.findings import Finding

        return (*real(measured), Finding(id="tie-misread", summary="s", evidence=()))

    project = fresh(bench)
    monkeypatch.setattr("qvlfp8.findings.diagnose_preflight", harsher)
    monkeypatch.setattr("qvlfp8.source.of_judgement", lambda: "another")
    assert statuses(views(project))["preflight"] == {"fail", "blocked"}
    keep_results(project.matrix.path, None)
    lines = [json.loads(line) for line in texts(bench)["vllm-0.10.2.jsonl"].splitlines()]
    assert {(line["status"], line["findings"][-1]) for line in lines} == {("fail", "tie-misread")}
    assert statuses(views(fresh(bench)))["preflight"] == {"fail", "blocked"}


def test_every_committed_line_is_current_and_judged_as_today() -> None:
    project = Project.open(ROOT / "matrix.yaml")
    cells = project.cells(everything=True)
    plan = project.plan(cells, project.locks(cells))
    steps = {key: step for step in plan.steps.values() if step.stage in KEPT for key in step.evidence}
    for where, line in project.evidence.kept.lines():
        step = steps.get(line.evidence)
        assert step is not None, f"{where}: no step asks this any more: keep it anew"
        record = project.evidence.record(step)
        assert record is not None
        said = (line.status, line.findings)
        assert (record.status, tuple(finding.id for finding in record.findings)) == said, where
    for path in (ROOT / "results").glob("*/*.jsonl"):
        assert not re.search(r'"/(?:home|root|work|tmp|usr|opt|build)/', path.read_text()), path
