"""The worker protocol, as a real process: what a job does to itself becomes its own result only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROBE = """
import os, sys, time, types, json
from pathlib import Path
from qvlfp8.worker import protocol

probe = types.ModuleType("qvlfp8.worker.probe")
probe.prepare = lambda jobs: {"jobs": len(jobs)}

def run(params, out):
    print("log of", params["do"])
    match params["do"]:
        case "work":
            probe.seen = getattr(probe, "seen", 0) + 1
            (out / "file").write_text("made")
            return {"seen": probe.seen}
        case "long":
            for done in (1, 2, 3):
                protocol.progress("counting", done, 3)
            return {}
        case "refuse":
            raise protocol.Refused("some-kind", "cannot be done")
        case "raise":
            raise ValueError("broken")
        case "exit":
            os._exit(7)
        case "segfault":
            os.kill(os.getpid(), 11)
        case "hang":
            if os.fork() == 0:
                (out / "child").write_text(str(os.getpid()))
            time.sleep(600)

probe.run = run
sys.modules["qvlfp8.worker.probe"] = probe
sys.exit(protocol.main(sys.argv[1:]))
"""


def run_batch(
    tmp_path: Path, *what: str, limit: float = 30.0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    jobs = []
    for index, do in enumerate(what):
        out = tmp_path / str(index)
        out.mkdir()
        jobs.append({"id": f"{index}", "out": str(out), "params": {"do": do}})
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"worker": "probe", "time_limit_s": limit, "jobs": jobs}))
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(spec)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    events = [json.loads(line) for line in done.stdout.splitlines()]
    results = [json.loads((tmp_path / str(i) / "result.json").read_text()) for i in range(len(what))]
    return events, results


def test_every_kind_of_end_is_a_result_and_the_rest_goes_on(tmp_path: Path) -> None:
    kinds = ("work", "refuse", "raise", "exit", "segfault", "work")
    events, results = run_batch(tmp_path, *kinds)
    assert [r["outcome"] for r in results] == [
        "done",
        "refused",
        "raised",
        "raised",
        "signal",
        "done",
    ]
    assert results[1]["failure"] == {
        "kind": "some-kind",
        "message": "cannot be done",
        "where": None,
    }
    assert results[2]["failure"]["kind"] == "ValueError"
    assert "exit code 7" in results[3]["failure"]["message"]
    assert results[4]["failure"]["kind"] == "SIGSEGV"
    assert all(r["environment"] == {"jobs": 6} for r in results)
    assert [e["event"] for e in events] == ["ready", *(["start", "end"] * 6)]
    assert (tmp_path / "0" / "file").read_text() == "made"
    assert "log of work" in (tmp_path / "0" / "log.txt").read_text()
    assert "broken" in (tmp_path / "2" / "log.txt").read_text()


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_job_says_how_far_it_is(tmp_path: Path, jobs: int) -> None:
    """In the process itself and in a forked one; the last is always said, and little in between."""
    events, _ = run_batch(tmp_path, *["long"] * jobs)
    of_job: dict[str, list[dict[str, Any]]] = {}
    for event in events[1:]:
        of_job.setdefault(event.pop("job"), []).append(event)
    assert list(of_job) == [str(number) for number in range(jobs)]
    for told in of_job.values():
        assert [event["event"] for event in told] == ["start", "progress", "progress", "end"]
        assert [event["done"] for event in told[1:3]] == [1, 3]
        assert told[2] == {"event": "progress", "task": "counting", "done": 3, "total": 3}


def test_a_job_sees_no_state_of_the_job_before(tmp_path: Path) -> None:
    _, results = run_batch(tmp_path, "work", "work", "work")
    assert [r["measured"]["seen"] for r in results] == [1, 1, 1]


def test_a_job_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    _, results = run_batch(tmp_path, "hang", "work", limit=1.0)
    assert [r["outcome"] for r in results] == ["timeout", "done"]
    child = int((tmp_path / "0" / "child").read_text())
    stat = Path(f"/proc/{child}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize(("do", "outcome"), [("work", "done"), ("refuse", "refused"), ("raise", "raised")])
def test_a_batch_of_one_runs_in_the_process_itself(tmp_path: Path, do: str, outcome: str) -> None:
    _, results = run_batch(tmp_path, do)
    assert results[0]["outcome"] == outcome


def test_a_worker_sees_its_environment_only() -> None:
    code = (
        "import runpy, sys; sys.argv = ['x']\n"
        "from pathlib import Path; import qvlfp8; root = Path(qvlfp8.__file__).parent\n"
        "sys.modules.pop('qvlfp8'); before = list(sys.path)\n"
        "main = runpy.run_path(str(root / 'worker' / '__main__.py'), run_name='mounted')\n"
        "main['_mount_package'](); import qvlfp8.worker.protocol\n"
        "assert sys.path == before, sys.path\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
