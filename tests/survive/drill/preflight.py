"""Stands in for stage ``preflight``: reads every byte of the checkpoint, and answers by what it read."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qvlfp8.checkpoint import folder_digest
from tests.survive.drill.telling import told, work

_ANSWERS = sorted(Path(__file__).with_name("answers").glob("*.json"))


def prepare(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """What importing takes."""
    work(0.1)
    return {"python": platform.python_version()}


def run(params: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """One of the recorded answers of a real vLLM, chosen by the checkpoint's bytes."""
    started = time.monotonic()
    with told("preflight"):
        work(0.12)
        digest = folder_digest(Path(params["checkpoint"]))
        answer = _ANSWERS[int(digest[:8], 16) % len(_ANSWERS)]
        measured: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))["measured"]
        return {**measured, "digest": digest, "seconds": {"load": time.monotonic() - started}}
