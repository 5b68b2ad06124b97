"""What is measured at real sizes: planned, run with an environment that only pretends, and shown."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.real_sizes import making, records, report
from bench.real_sizes.jobs import BF16, MODES, PHASES, Step, steps
from bench.real_sizes.processes import Environment, OutOfTime, Processes, find_environment
from bench.real_sizes.running import MODELOPT, Host, Session
from bench.real_sizes.sizes import SIZES, config
from qvlfp8 import structure

# A stand-in for the Python of an environment: it says what it was asked and leaves what the real one would.
PRETENDER = """\
#!{python}
import json, pathlib, sys
spec = json.loads(pathlib.Path(sys.argv[-1]).read_text())
worker = spec.get("worker")
job = spec["jobs"][0] if worker else spec
out = pathlib.Path(job["out"])
what = worker or sys.argv[2]
with (pathlib.Path({log!r})).open("a") as log:
    log.write(what + " " + (job.get("params", job).get("recipe") or {{}}).get("id", "") + "\\n")
failure, measured = None, {{}}
def put(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"x" * 10)
if what == "bench.real_sizes.making":
    put(pathlib.Path(spec["folder"]))
    measured = {{"bytes": 10, "parameters": 5}}
elif what == "quantize":
    if job["params"]["recipe"]["id"] == "bad":
        failure = {{"kind": "recipe-not-honoured", "message": "no", "where": None}}
    else:
        put(out / "checkpoint")
        measured = {{"seconds": {{"load": 1.0}}, "peak_gpu_mb": 5}}
elif what == "inspect":
    measured = {{"digest": "d" * 64, "counts": {{}}}}
elif what == "bench.plain_export":
    measured = {{"seconds": {{"load": 1.0}}, "peak_gpu_mb": 5}}
elif spec["do"] == "answers":
    (out / "kinds.json").write_text("[]")
    sight = {{"mean_kl": 0.0 if "blind" in spec["checkpoint"] else 2.0}}
    measured = {{"environment": {{"vllm": "1"}}, "not_finite": 0, "answers": {{"empty": 0}}, "sight": sight,
                 "sight_of_bf16": {{"mean_kl": 2.0}}, "load": {{"seconds": 1.0, "weights_mb": 1.0}}}}
else:
    measured = {{"speed": {{"prefill": [], "decode": []}}, "load": {{"seconds": 1.0, "weights_mb": 1.0}}}}
result = {{"outcome": "refused" if failure else "done", "failure": failure, "measured": measured}}
(out / "result.json").write_text(json.dumps(result))
"""


def pretend(tmp_path: Path) -> Host:
    folder = tmp_path / "environments" / "any"
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.write_text(PRETENDER.format(python=sys.executable, log=str(tmp_path / "ran")))
    python.chmod(0o755)
    environment = Environment(name="any", folder=folder)
    names = ("bad", "blind", "elsewhere", "lm-fp8", "vlm-fp8")
    recipes = {name: {"id": name, "exporter": "modelopt-hf"} for name in names}
    recipes["elsewhere"]["exporter"] = "llmcompressor"
    facts: dict[str, Any] = {"gpus": [], "cpus": 2, "environments": {}}
    producers = {MODELOPT: environment}
    return Host(home=tmp_path, producers=producers, serve=environment, facts=facts, recipes=recipes)


def run(host: Host, todo: list[Step], *, limit: float = 10_000, together: bool = False) -> list[str]:
    """Run steps on two pretended GPUs; what was started, in order."""
    log = host.home / "ran"
    log.unlink(missing_ok=True)
    processes = Processes(host.home / "scratch", time.monotonic() + limit)
    Session(host, processes, ["0", "1"], lambda _text: None, together=together).run(todo)
    return log.read_text().splitlines() if log.exists() else []


def found(host: Host) -> dict[str, records.Record]:
    paths = host.records.glob("*/*.json")
    return {f"{path.parent.name}~{path.stem}": records.read([path])[0] for path in paths}


@pytest.mark.parametrize(("name", "parameters"), [("3b", 3_754_622_976), ("7b", 8_292_166_656)])
def test_a_size_has_as_many_parameters_as_the_published_model(name: str, parameters: int) -> None:
    model = structure.from_config(config(SIZES[name]))
    shapes = [shape for tensor, shape in model.shapes.items() if tensor not in model.optional]
    assert sum(map(math.prod, shapes)) == parameters
    shards = making._shards(model)
    assert [tensor for shard in shards for tensor in shard] == list(making._wanted(model))
    sizes = [sum(2 * math.prod(model.shapes[tensor]) for tensor in shard) for shard in shards]
    assert max(sizes) <= making.SHARD_BYTES
    assert len(shards) == -(-2 * parameters // making.SHARD_BYTES)


def test_the_unquantized_model_comes_first_and_the_host_is_shared_first() -> None:
    todo = steps(["3b", "7b"], ["vlm-fp8", BF16], PHASES, MODES)
    assert [step.name for step in todo if step.size == "3b"] == [
        "3b~bf16~model",
        "3b~bf16~answers",
        "3b~vlm-fp8~quantize",
        "3b~vlm-fp8~answers",
        "3b~bf16~speed-compiled",
        "3b~vlm-fp8~speed-compiled",
        "3b~bf16~speed-eager",
        "3b~vlm-fp8~speed-eager",
        "3b~vlm-fp8~beside",
    ]
    assert len(todo) == 18


def test_every_step_leaves_a_record_whatever_becomes_of_it(tmp_path: Path) -> None:
    host = pretend(tmp_path)
    run(host, steps(["tiny"], host.recipes, PHASES, MODES))
    made = found(host)
    assert {name: record["status"] for name, record in made.items() if record["status"] != "pass"} == {
        "tiny~bad~quantize": "fail",
        "tiny~bad~answers": "not run",
        "tiny~blind~answers": "fail",
        "tiny~elsewhere~quantize": "not run",
        "tiny~elsewhere~answers": "not run",
    }
    assert made["tiny~bad~quantize"]["why"] == "recipe-not-honoured: no"
    assert "blind" in (made["tiny~blind~answers"]["why"] or "")
    assert made["tiny~lm-fp8~quantize"]["checkpoint"] == {"digest": "d" * 64, "files": 1, "bytes": 10}
    assert made["tiny~lm-fp8~answers"]["environment"] == {"vllm": "1"}
    assert not list((tmp_path / "work").glob("*/checkpoint"))


def test_a_recipe_is_followed_where_its_producer_was_brought(tmp_path: Path) -> None:
    host = pretend(tmp_path)
    theirs = Environment(name="theirs", folder=tmp_path / "theirs")
    shutil.copytree(host.tools.folder, theirs.folder)
    python = theirs.folder / "bin" / "python"
    python.write_text(
        python.read_text().replace("what = worker or", "what = worker and worker + ' by theirs' or")
    )
    brought = dataclasses.replace(host, producers={**host.producers, "llmcompressor": theirs})
    ran = run(brought, steps(["tiny"], ["elsewhere", "lm-fp8"], ("checkpoints",), MODES))
    assert "quantize by theirs elsewhere" in ran
    assert "quantize lm-fp8" in ran


def test_what_is_finished_is_not_done_again(tmp_path: Path) -> None:
    host = pretend(tmp_path)
    todo = steps(["tiny"], ["lm-fp8"], ["checkpoints"], MODES)
    assert "quantize lm-fp8" in run(host, todo)
    assert run(host, todo) == []
    (host.records / "tiny" / "lm-fp8~answers.json").unlink()
    (host.records / "tiny" / "lm-fp8~quantize.json").unlink()
    assert run(host, todo) == ["quantize lm-fp8", "inspect lm-fp8", "bench.real_sizes.serving "]


def test_on_another_host_bf16_is_asked_again_for_the_others(tmp_path: Path) -> None:
    host = pretend(tmp_path)
    run(host, steps(["tiny"], ["lm-fp8"], ["checkpoints"], MODES))
    (tmp_path / "work").rename(tmp_path / "gone")
    (host.records / "tiny" / "lm-fp8~answers.json").unlink()
    ran = run(host, steps(["tiny"], ["lm-fp8"], ["checkpoints"], MODES))
    assert [line.split()[0] for line in ran].count("bench.real_sizes.serving") == 2
    assert list((tmp_path / "work").glob("*bf16*/kinds.json"))


def test_a_checkpoint_that_was_deleted_is_made_again_for_its_speed(tmp_path: Path) -> None:
    host = pretend(tmp_path)
    run(host, steps(["tiny"], ["lm-fp8"], ["checkpoints"], MODES))
    before = (host.records / "tiny" / "lm-fp8~quantize.json").read_bytes()
    speed = steps(["tiny"], ["lm-fp8"], ["speed"], ["eager"])
    for made in (tmp_path / "work").glob("*/checkpoint"):
        made.rename(tmp_path / "gone")
    assert "quantize lm-fp8" in run(host, speed)
    assert (host.records / "tiny" / "lm-fp8~quantize.json").read_bytes() == before
    assert found(host)["tiny~lm-fp8~speed-eager"]["status"] == "pass"


@pytest.mark.parametrize(("together", "gpus"), [(False, 1), (True, 2)])
def test_a_record_of_speed_says_how_many_gpus_were_busy(tmp_path: Path, together: bool, gpus: int) -> None:
    host = pretend(tmp_path)
    run(host, steps(["tiny"], ["lm-fp8", "vlm-fp8"], ["speed"], MODES), together=together)
    made = [record for name, record in found(host).items() if "speed" in name]
    assert [record["measured"]["gpus_at_once"] for record in made] == [gpus] * 6


def test_worker_and_plain_script_take_turns_and_the_first_run_does_not_count(tmp_path: Path) -> None:
    host = pretend(tmp_path)
    step = Step(size="3b", recipe="vlm-fp8", kind="beside")
    ran = [line for line in run(host, [step]) if line.split()[0] in {"quantize", "bench.plain_export"}]
    assert [line[0] for line in ran] == list("b" + "bq" + "qb" + "bq")
    measured = found(host)[step.name]["measured"]
    assert [entry["who"] for entry in measured["runs"]] == [
        "plain",
        "worker",
        "worker",
        "plain",
        "plain",
        "worker",
    ]
    assert set(measured) == {"runs", "seconds", "peak_host_mb"}


def test_nothing_is_begun_that_cannot_end_in_time(tmp_path: Path) -> None:
    host = pretend(tmp_path)
    with pytest.raises(OutOfTime):
        run(host, steps(["tiny"], ["lm-fp8"], PHASES, MODES), limit=20)
    assert not (tmp_path / "ran").exists()


def test_what_runs_at_the_deadline_is_ended(tmp_path: Path) -> None:
    folder = tmp_path / "environment"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    processes = Processes(tmp_path / "scratch", time.monotonic() + 0.5)
    environment = Environment(name="any", folder=folder)
    started = time.monotonic()
    with pytest.raises(OutOfTime):
        processes.run(environment, ["-c", "import time; time.sleep(60)"], tmp_path / "out", gpu=None)
    assert time.monotonic() - started < 30
    with pytest.raises(OutOfTime):
        processes.run(environment, ["-c", "pass"], tmp_path / "out", gpu=None)


def test_an_environment_is_a_bundle_s_or_one_built_here(tmp_path: Path) -> None:
    (tmp_path / "environments" / "vllm-1-0123456789ab").mkdir(parents=True)
    assert find_environment(tmp_path, "vllm-1", {}).folder.name == "vllm-1-0123456789ab"
    brought = find_environment(tmp_path, "vllm-2", {"vllm-2": {"variables": {"A": "1"}}})
    assert (brought.folder.name, dict(brought.variables)) == ("vllm-2", {"A": "1"})
    with pytest.raises(FileNotFoundError, match="no vllm-3"):
        find_environment(tmp_path, "vllm-3", {})


def failed(kind: str, message: str, outcome: str = "raised") -> dict[str, Any]:
    return {"outcome": outcome, "failure": {"kind": kind, "message": message}}


@pytest.mark.parametrize(
    ("result", "status"),
    [
        ({"outcome": "done"}, "pass"),
        (failed("ValueError", "no module visual.blocks.0.attn.k_proj"), "fail"),
        (failed("OutOfMemoryError", "CUDA out of memory."), "error"),
        (failed("timeout", "no result", "timeout"), "error"),
        (None, "error"),
    ],
)
def test_what_the_machine_lacks_is_no_fault_of_the_checkpoint(result: Any, status: str) -> None:
    assert records.judge(result, -9, "killed")[0] == status


def record(recipe: str, kind: str, measured: dict[str, Any], **fields: Any) -> records.Record:
    host = {"gpus": [{"name": "NVIDIA H100 80GB HBM3", "driver": "580.1", "memory": "1"}], "cpus": 16}
    made: dict[str, Any] = {
        "size": "3b", "recipe": recipe, "kind": kind, "status": "pass", "why": None, "measured": measured,
        "checkpoint": None, "environment": {"vllm": "0.26.0"}, "host": host,
    }  # fmt: skip
    return json.loads(json.dumps(made | fields))  # type: ignore[no-any-return]


def speed(images: float, tokens: float) -> dict[str, Any]:
    return {
        "load": {"weights_mb": 7500.0},
        "speed": {
            "prefill": [{"side": 448, "whole": {"median": images / 2}, "engine": {"median": images}}],
            "decode": [{"batch": 1, "tokens_per_second": {"median": tokens}}],
        },
    }


def beside(seconds: float, memory: float) -> dict[str, Any]:
    return {
        "runs": [{}] * 6,
        "seconds": {"worker": 40.0 * seconds, "plain": 40.0, "ratio": seconds},
        "peak_host_mb": {"worker": 8000.0 * memory, "plain": 8000.0, "ratio": memory},
    }


def test_the_page_says_what_was_measured() -> None:
    here = [
        record("bf16", "model", {"parameters": 3_754_622_976}),
        record("bf16", "speed-eager", speed(40.0, 50.0)),
        record("lm-fp8", "speed-eager", speed(50.0, 60.0)),
        record("vlm-fp8", "beside", beside(1.02, 1.0)),
        record("vlm-fp8-naive", "answers", {}, status="fail", why="KeyError: 'a|b'\nmore"),
        record(
            "lm-fp8",
            "quantize",
            {"seconds": {"load": 4.0, "export": 2.25}, "wall_seconds": 30.0, "peak_host_mb": 5000,
             "peak_gpu_mb": 9000, "inspected": {"counts": {}, "failure": None}},
            checkpoint={"bytes": 4_600_000_000, "files": 3, "digest": "d"},
        ),
    ]  # fmt: skip
    page = report.render(here)
    assert page == report.render(list(reversed(here)))
    assert "## NVIDIA H100 80GB HBM3, driver 580.1" in page
    assert "3.75 billion parameters. vllm 0.26.0" in page
    assert "| lm-fp8 | 4.0 |  |  | 2.2 | 30.0 | 9.00 | 5.00 | 4.6 | sound |" in page
    assert "| lm-fp8 | eager | 7.50 | 50.0 (1.25) | 25.0 (1.25) | 60.0 (1.20) |" in page
    assert "| vlm-fp8 | 3 | 40.8 | 40.0 | 1.020 | 8.00 | 8.00 | 1.000 | yes |" in page
    assert "- vlm-fp8-naive, answers: fail: KeyError: 'a\\|b'\n" in page


@pytest.mark.parametrize(("seconds", "memory"), [(1.06, 1.0), (1.0, 1.11)])
def test_the_page_shows_a_bound_that_is_broken(seconds: float, memory: float) -> None:
    assert "**no**" in report.render([record("vlm-fp8", "beside", beside(seconds, memory))])


def test_the_committed_page_is_made_of_the_committed_records() -> None:
    folder = Path(__file__).parents[2] / "results" / "real-sizes"
    paths = sorted(folder.glob("*/*/*.json"))
    # Records of the matrix are found by their depth, and must not be these.
    assert not list(folder.glob("*/*.json"))
    assert (folder / "README.md").exists() == bool(paths)
    if paths:
        assert (folder / "README.md").read_text(encoding="utf-8") == report.render(records.read(paths))
