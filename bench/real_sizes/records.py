"""One JSON file a step: what was measured, of what, on what, with what."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

from bench.real_sizes.jobs import Step
from qvlfp8.worker.protocol import write_json

Status = Literal["pass", "fail", "error", "not run"]


class Record(TypedDict):
    """``why`` says it in a sentence where ``status`` is not ``pass``."""

    size: str
    recipe: str
    kind: str
    status: Status
    why: str | None
    measured: dict[str, Any]
    checkpoint: dict[str, Any] | None
    recipe_file: Mapping[str, Any] | None
    environment: dict[str, Any]
    host: dict[str, Any]
    started: str
    seconds: float
    repeat: str
    qvlfp8: str


def accelerator(host: Mapping[str, Any]) -> str:
    """The folder of a host's records: its GPU's name, or ``cpu``."""
    gpus = host["gpus"]
    return re.sub(r"[^a-z0-9]+", "-", gpus[0]["name"].lower()).strip("-") if gpus else "cpu"


def path_of(folder: Path, step: Step) -> Path:
    """Where a step's record lies, below the folder of its accelerator."""
    return folder / step.size / f"{step.recipe}~{step.kind}.json"


def write(path: Path, record: Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)


def read(paths: Iterable[Path]) -> list[Record]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def judge(result: Mapping[str, Any] | None, code: int, tail: str) -> tuple[Status, str | None]:
    """What it means how a process ended: what memory or a signal ends is the machine's fault."""
    if result is None:
        return "error", f"the process left with {code} and no result: {tail[-400:]}"
    if result["outcome"] == "done":
        return "pass", None
    failure = result["failure"]
    message = f"{failure['kind']}: {failure['message']}"
    machine = re.search(r"out of memory|No available memory|No space left|cannot be used here", message)
    return ("error" if machine or result["outcome"] in {"signal", "timeout"} else "fail"), message[:1000]


def judge_answers(measured: Mapping[str, Any]) -> tuple[Status, str | None]:
    """Whether a model speaks and sees: its probabilities change with the picture as BF16's do."""
    if measured["not_finite"]:
        return "fail", f"{measured['not_finite']} positions have log-probabilities that are not finite"
    if measured["answers"]["empty"]:
        return "fail", f"{measured['answers']['empty']} prompts were not answered"
    ours = measured["sight"]["mean_kl"]
    theirs = measured.get("sight_of_bf16", measured["sight"])["mean_kl"]
    if not ours or ours < theirs / 2:
        return "fail", f"blind: another picture changes {ours} nats, of BF16 {theirs}"
    return "pass", None
