from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qvlfp8.importing import Expected, expected_of, read_results
from qvlfp8.plan import Plan, Step, Work
from qvlfp8.worker.run_bundle import write_sums

STEP = "d" * 64
EXPECTED = {STEP: Expected(worker="w", lock="l", checkpoint="c")}


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def change(path: Path, **fields: Any) -> None:
    write(path, json.loads(path.read_text()) | fields)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write(
        tmp_path / "host.json",
        {
            "machine": "x86_64", "system": "Linux", "kernel": "6.18", "cpus": 16, "memory_gb": 128.0,
            "gpus": [{"name": "NVIDIA H200", "driver": "580.1", "memory": "143771 MiB"}], "python": "3.12.3",
            "packages_digest": "p", "environments": {"vllm-1": {"lock": "l", "brought": {"vllm": "1"}}},
        },
    )  # fmt: skip
    ran = {"job": STEP, "environment": "vllm-1", "lock": "l", "worker_source": "w", "started": "2026-11-22"}
    write(tmp_path / STEP / "ran.json", ran)
    write(tmp_path / STEP / "result.json", {"outcome": "done", "measured": {"checkpoint_digest": "c"}})
    write(tmp_path / STEP / "generation" / "logprobs.npy", [0.5])
    write_sums(tmp_path)
    return tmp_path


def test_a_result_that_holds_is_taken_with_its_host(out: Path) -> None:
    (taken,), rejected = read_results(out, EXPECTED)
    assert rejected == ()
    assert (taken.digest, taken.folder, taken.started) == (STEP, out / STEP, "2026-11-22")
    assert taken.result["measured"] == {"checkpoint_digest": "c"}
    assert taken.host.accelerator == "NVIDIA H200"
    assert taken.host.system == "Linux 6.18"
    assert taken.facts["gpus"][0]["driver"] == "580.1"
    assert taken.facts["brought"] == {"vllm": "1"}


def test_a_result_without_measurement_is_a_result(out: Path) -> None:
    change(out / STEP / "result.json", outcome="timeout", measured={})
    write_sums(out)
    assert len(read_results(out, EXPECTED)[0]) == 1


@pytest.mark.parametrize(
    ("bend", "reason"),
    [
        (lambda o: change(o / STEP / "result.json", seconds=1), "not the file that SHA256SUMS names"),
        (lambda o: change(o / "host.json", cpus=1), "not the file that SHA256SUMS names"),
        (lambda o: write(o / STEP / "extra", 1), "extra is not in SHA256SUMS"),
        (lambda o: (o / STEP / "generation/logprobs.npy").unlink(), "logprobs.npy did not come along"),
        (lambda o: (o / "SHA256SUMS").unlink(), "is not in SHA256SUMS"),
    ],
)
def test_files_other_than_the_host_listed_are_not_taken(
    out: Path, bend: Callable[[Path], object], reason: str
) -> None:
    bend(out)
    taken, (rejected,) = read_results(out, EXPECTED)
    assert taken == ()
    assert reason in rejected.reason
    assert rejected.job == STEP


@pytest.mark.parametrize(
    ("file", "fields", "reason"),
    [
        ("ran.json", {"worker_source": "x"}, "another version of the worker"),
        ("ran.json", {"lock": "x"}, "another lock"),
        ("ran.json", {"job": "e" * 64}, "no step of the plan"),
        ("result.json", {"measured": {"checkpoint_digest": "x"}}, "another checkpoint"),
        ("result.json", {"measured": {}}, "another checkpoint"),
    ],
)
def test_what_contradicts_the_plan_is_not_taken(
    out: Path, file: str, fields: dict[str, Any], reason: str
) -> None:
    change(out / STEP / file, **fields)
    write_sums(out)
    taken, (rejected,) = read_results(out, EXPECTED)
    assert taken == ()
    assert reason in rejected.reason


def test_a_folder_without_results_gives_none(tmp_path: Path) -> None:
    assert read_results(tmp_path, EXPECTED) == ((), ())


def test_what_is_expected_follows_from_the_plan() -> None:
    def step(stage: Any, digest: str, *needs: str, **inputs: str) -> Step:
        work = Work(stage=stage, environment="e", params={}, inputs=inputs)
        return Step(work=work, subject=digest, digest=digest, needs=needs)

    steps = (
        step("build", "b", lock="l"), step("model", "m"), step("quantize", "q"), step("quantize", "not made"),
        step("generate", "base", "b", "m", worker="w"),
        step("generate", "run", "b", "q", "base", worker="w"),
        step("generate", "blocked", "b", "not made", "base", worker="w"),
    )  # fmt: skip
    plan = Plan(cells=(), steps={s.digest: s for s in steps}, stages={}, builds={})
    made = {"m": "of m", "q": "of q"}
    assert expected_of(plan, lambda s: made.get(s.digest)) == {
        "base": Expected(worker="w", lock="l", checkpoint="of m"),
        "run": Expected(worker="w", lock="l", checkpoint="of q"),
    }
