"""Memory that really runs out, of real workers: an error with its cause, and no checkpoint is accused.

Slow where ModelOpt is imported, some 10 s.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.integration.conftest import Sandbox
from tests.integration.limits import memory_group
from tests.integration.processed import Processed
from tests.unit.test_run import Bench

pytestmark = pytest.mark.usefixtures("small_models")

GREEDY = """
def prepare(jobs):
    return {}

def run(params, out):
    if params["recipe"]["id"] == "vlm-fp8":
        kept = [bytearray(b"x" * (1 << 20)) for _ in range(2000)]
    (out / "checkpoint").mkdir()
    (out / "checkpoint" / "weights").write_text("x")
    return {}
"""
"""Quantizes one recipe, and needs 2 GB for the other."""


def quantized(bench: Bench) -> dict[str, tuple[str, str]]:
    """How quantizing each recipe ended: status, and what is said of it."""
    return {
        view.cell.recipe.id: (stage.status, stage.because)
        for view in bench.views()
        for stage in view.stages
        if stage.stage == "quantize"
    }


def check(bench: Bench, said: str) -> None:
    ended = quantized(bench)
    assert ended["lm-fp8"] == ("pass", "")
    status, because = ended["vlm-fp8"]
    assert status == "error"
    assert because.startswith("out-of-memory: this machine, or what a step may use of it, has no memory left")
    assert said in because


def test_a_worker_that_gets_no_memory_does_not_fail_its_checkpoint(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "project")
    bench.run(Processed(tmp_path, GREEDY, "prlimit", f"--as={1 << 30}"))
    check(bench, "MemoryError")


def test_a_job_that_the_kernel_ends_does_not_fail_its_checkpoint_nor_the_others(tmp_path: Path) -> None:
    """The worker's parent lives on, and can only say that its child was killed."""
    bench = Bench(tmp_path / "project")
    with memory_group(200 << 20) as group:
        start: Sequence[str] = ("sh", "-c", f'echo $$ > {group} && exec "$@"', "sh")
        bench.run(Processed(tmp_path, GREEDY, *start))
    check(bench, "SIGKILL")


CELL = "lm-fp8/modelopt-0.47.0/seeing-untied/vllm-0.13.0"


def test_out_of_memory_on_the_host_ends_the_command_with_cause_and_mend(
    sandbox: Sandbox, says: Callable[[tuple[int, str, str], int, Sequence[str]], None]
) -> None:
    """Real ModelOpt, whose libraries find no place."""
    running = sandbox.start("matrix", "--only", CELL)
    resource.prlimit(running.pid, resource.RLIMIT_AS, (600 << 20, 600 << 20))
    out, errors = running.communicate(timeout=120)
    says(
        (running.returncode, out, errors),
        11,
        ["quantize of", "out-of-memory: this machine", "mend: run fewer steps at once (--jobs 1)"],
    )
    records = [json.loads(path.read_text()) for path in sandbox.store.root.glob("steps/*/*/record.json")]
    found = {r["stage"]: r["status"] for r in records if r["stage"] != "build"}
    assert found == {"model": "pass", "quantize": "error"}
