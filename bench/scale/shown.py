"""The committed records of ours that stand in for what cells of a project of many would have measured."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from qvlfp8.cells import Stage
from qvlfp8.evidence import Evidence
from qvlfp8.report.table import answers
from qvlfp8.results import Record
from qvlfp8.scoring import Bounds

Era = Literal["old", "new"]
VLLM = {"old": "vllm-0.10.2", "new": "vllm-0.26.0"}
MADE_BY, MODEL, ACCELERATOR = "modelopt-0.41.0", "seeing-untied", "nvidia-h200"

KINDS = ("lm-fp8", "vlm-fp8", "lm-fp8-nokv", "vlm-fp8-naive", "lm-fp8-portable")
"""The recipes of ours whose records are taken."""

_RESULTS = Path(__file__).parents[2] / "results"


@cache
def _kept() -> dict[tuple[str, str], Record]:
    return {(record.stage, record.subject): record for record in Evidence(_RESULTS).kept.records()}


def of_checkpoint(stage: str, kind: str) -> Record:
    """Of quantizing or inspecting."""
    return _kept()[stage, f"{kind}/{MADE_BY}/{MODEL}"]


def of_loader(kind: str, era: Era) -> Record:
    """Of preflight."""
    return _kept()["preflight", f"{kind}/{MADE_BY}/{MODEL}/{VLLM[era]}"]


@cache
def of_run(kind: str | None, era: Era) -> Record:
    """Of a run on a GPU; without a kind that of the unquantized model."""
    name = f"{kind}~{MADE_BY}~{MODEL}" if kind else f"bf16~{MODEL}"
    path = _RESULTS / ACCELERATOR / VLLM[era] / f"{name}.json"
    return Record.model_validate_json(path.read_bytes())


@cache
def shown(kind: str, era: Era, bounds: Bounds) -> dict[Stage, tuple[str, ...]]:
    """The findings that fail a stage, of the stages where there are any."""
    loader, made = of_loader(kind, era), of_checkpoint("inspect", kind)
    found: dict[Stage, tuple[str, ...]] = {
        "inspect": tuple(cause.id for cause in made.causes),
        "preflight": tuple(cause.id for cause in loader.causes),
    }
    for view in answers(of_run(kind, era), of_run(None, era), bounds):
        found[view.stage] = view.findings
    return {stage: causes for stage, causes in found.items() if causes}
