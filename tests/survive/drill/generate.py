"""Stands in for stage ``generate``: writes a generation from the checkpoint's bytes and the baseline's."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qvlfp8.checkpoint import folder_digest
from tests.survive.drill.telling import told, work

FOLDER = "generation"
IDS = f"{FOLDER}/ids.json"
LOGPROBS = f"{FOLDER}/logprobs.npy"
TOKENS = f"{FOLDER}/tokens.npy"


def prepare(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """What importing takes."""
    work(0.1)
    return {"python": platform.python_version()}


def run(params: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Write three files, and say that vLLM did not load the checkpoint, so that nothing is scored."""
    started = time.monotonic()
    with told("generate"):
        digest = folder_digest(Path(params["checkpoint"]))
        baseline = params.get("baseline")
        beside = (
            folder_digest(Path(baseline) / FOLDER) if baseline and (Path(baseline) / IDS).exists() else None
        )
        (out / FOLDER).mkdir()
        for name in (IDS, TOKENS, LOGPROBS):
            work(0.06)
            (out / name).write_bytes(hashlib.sha256(f"{name}{digest}{beside}".encode()).digest() * (1 << 13))
        refused: dict[str, Any] = {
            "type": "ValueError", "message": "a drill loads nothing", "origin": "checkpoint",
            "stage": "load", "where": None, "trace": [],
        }  # fmt: skip
        return {
            "checkpoint_digest": digest, "exam_digest": "0" * 64, "options": dict(params["options"]),
            "load": {"seconds": time.monotonic() - started, "memory_mb": None,
                     "exception": refused if baseline else None},
            "answers": [], "fidelity": beside and {"of": beside}, "speed": None, "log_marks": [],
        }  # fmt: skip
