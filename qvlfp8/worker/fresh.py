"""A job in a process of its own that is no fork: for what a fork cannot have, such as CUDA."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qvlfp8.worker.protocol import RESULT, Refused

_SPEC = "fresh.json"


class FreshProcessFailed(RuntimeError):
    """The process left no measured values; the message says why."""


def run(worker: str, params: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Run the worker on one job, with ``out`` for its files, and return what it measured.

    A batch of one job is not forked. Its output goes where this process's goes, and it ends with it.

    Raises:
        Refused: the worker refused the job.
        FreshProcessFailed: it raised, or ended without a result.
    """
    job = {"id": "fresh", "out": str(out), "params": dict(params)}
    spec = {"worker": worker, "time_limit_s": 0, "jobs": [job]}
    (out / _SPEC).write_text(json.dumps(spec), encoding="utf-8")
    starter = Path(__file__).with_name("__main__.py")
    ended = subprocess.run(
        [sys.executable, "-P", str(starter), str(out / _SPEC)], stdout=subprocess.DEVNULL, check=False
    )
    (out / _SPEC).unlink()
    if ended.returncode != 0 or not (out / RESULT).exists():
        raise FreshProcessFailed(f"a process of its own ended with exit code {ended.returncode}")
    result = json.loads((out / RESULT).read_text(encoding="utf-8"))
    failure = result["failure"]
    if result["outcome"] == "refused":
        raise Refused(failure["kind"], failure["message"])
    if result["outcome"] != "done":
        raise FreshProcessFailed(f"{failure['kind']}: {failure['message']}")
    measured: dict[str, Any] = result["measured"]
    return measured
