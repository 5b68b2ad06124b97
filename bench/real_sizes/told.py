"""How a process of a job is told what to do, and tells what came of it: a JSON file each way."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qvlfp8.worker.protocol import RESULT, innermost

Work = Callable[[dict[str, Any], Path], dict[str, Any]]
"""Spec and output folder -> measured values."""


def main(work: Work) -> int:
    """Do the work of the spec ``argv[1]`` and write its result, in the form of the project's workers."""
    path = Path(sys.argv[1])
    spec = json.loads(path.read_text(encoding="utf-8"))
    out = Path(spec["out"])
    started = time.monotonic()
    result: dict[str, Any] = {"outcome": "done", "measured": {}, "failure": None}
    try:
        result["measured"] = work(spec, out)
    except Exception as error:
        traceback.print_exc()
        result["outcome"] = "raised"
        result["failure"] = {
            "kind": type(error).__name__,
            "message": str(error)[:2000],
            "where": innermost(error),
        }
    result["seconds"] = round(time.monotonic() - started, 3)
    # Not synced, which would wait for the gigabytes written before.
    (out / RESULT).write_text(json.dumps(result, indent=1, sort_keys=True), encoding="utf-8")
    return 0
