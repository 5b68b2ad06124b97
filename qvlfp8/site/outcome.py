"""What a cell is shown as: an outcome with its word, how far it came, and where it ended. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from qvlfp8.cells import GENERATED, Stage
from qvlfp8.report.table import SEES, CellView, symbol

__all__ = ["MEANINGS", "OUTCOMES", "WORDS", "Outcome", "ended_at", "executed", "furthest", "outcome"]

Outcome = Literal["sees", "loads", "blind", "fails", "error", "stale", "blocked", "never"]
OUTCOMES: tuple[Outcome, ...] = ("sees", "loads", "blind", "fails", "error", "stale", "blocked", "never")
"""In the order in which they are listed."""

WORDS: Mapping[Outcome, str] = MappingProxyType(
    {
        "sees": "sees", "loads": "loads", "blind": "blind", "fails": "fails", "error": "error",
        "stale": "stale", "blocked": "blocked", "never": "not run",
    }
)  # fmt: skip

MEANINGS: Mapping[Outcome, str] = MappingProxyType(
    {
        "sees": "run in vLLM: its answers are right, change with the picture and stay close to BF16's",
        "loads": "vLLM's own loader took every tensor; whether it speaks and sees was not tried",
        "blind": "run in vLLM: it answers, and its answers do not change with the picture",
        "fails": "a stage found it wrong",
        "error": "the machine's fault, or the harness's; nothing is said of the checkpoint",
        "stale": "executed, but on something that has changed since",
        "blocked": "an earlier stage could not be executed",
        "never": "not executed, or not far enough to say more",
    }
)

BLIND = "blind"
"""The finding by which a run shows that a model does not see."""


def outcome(view: CellView) -> Outcome:
    """The one word for a cell."""
    if symbol(view) == SEES:
        return "sees"
    match view.decisive.status:
        case "pass":
            return "loads"
        case "fail":
            blind = any(stage.stage == "image" and BLIND in stage.findings for stage in view.stages)
            return "blind" if blind else "fails"
        case "error":
            return "error"
        case "stale":
            return "stale"
        case "blocked":
            return "blocked"
        case "not run":
            return "never"


def furthest(view: CellView) -> Stage | None:
    """The last stage that passed before one that ends the way; None if none did.

    What inspect and preflight find wrong ends nothing: a run may come further. What was not executed counts
    neither way.
    """
    passed: Stage | None = None
    for stage in view.stages:
        if stage.status == "pass":
            passed = stage.stage
        elif stage.status in {"fail", "error", "stale"} and stage.stage not in FORETELLING:
            if stage.status == "stale" and outcome(view) == "sees":
                continue
            break
    return passed


FORETELLING: tuple[Stage, ...] = ("inspect", "preflight")
"""Stages that foretell a run, and keep none from being made."""


def ended_at(view: CellView) -> Stage:
    """The stage that says how the cell ended: a run's before what foretells it, that before the rest."""
    status = view.decisive.status
    if status not in {"fail", "error", "stale"}:
        return view.decisive.stage
    ended = [stage.stage for stage in view.stages if stage.status == status]
    if outcome(view) == "blind":
        return "image"
    return next((stage for stage in ended if stage in GENERATED), ended[-1])


def executed(view: CellView) -> bool:
    """Whether there is anything to show of a cell: something was executed, or its locks do not resolve."""
    return any(
        stage.status in {"fail", "error", "stale"} or (stage.status == "pass" and stage.stage != "resolve")
        for stage in view.stages
    )
