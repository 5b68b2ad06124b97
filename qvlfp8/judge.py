"""What a worker's result means: status, findings, fault. Pure.

The rule that matters: what the machine or our own harness did wrong is an ``error``, and never looks
like the checkpoint's ``fail``; and a stage passes only on a result that says ``done``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qvlfp8 import findings, machine_faults
from qvlfp8.engine import Exit
from qvlfp8.results import Fault, Finding, Recorded, RecordedStage

_NOT_OF_A_RECIPE = {
    "MemoryError",
    "OutOfMemoryError",
    "OSError",
    "PermissionError",
    "ImportError",
    "ModuleNotFoundError",
}
"""Exceptions that speak of the machine or the environment, whatever their words."""

_ENDED = {"exit", "FreshProcessFailed"}
"""What says no more than that a process ended."""

_NO_MEMORY = machine_faults.FAULTS["out-of-memory"].cause


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How a stage ended."""

    status: Recorded
    findings: tuple[Finding, ...] = ()
    fault: Fault | None = None


def judge(
    stage: RecordedStage,
    result: Mapping[str, Any] | None,
    ended: Exit,
    limit_s: float,
    *,
    log: str = "",
) -> Verdict:
    """Judge one job.

    Args:
        stage: what it was.
        result: its ``result.json``; None: there is none.
        ended: how its process ended.
        limit_s: the job's time limit.
        log: the end of its log, which tells why, where neither result nor exception does.
    """
    if result is None:
        return Verdict(status="error", fault=_without_result(ended, limit_s, log))
    outcome = result["outcome"]
    if outcome == "done":
        return _judge_measured(stage, result["measured"], log)
    failure = result.get("failure") or {}
    fault = Fault(kind=failure["kind"], message=failure["message"], where=failure.get("where"))
    if outcome == "signal" and ended.out_of_memory:
        return Verdict(status="error", fault=_machines("out-of-memory", fault))
    if of_machine := machine_faults.of_exception(fault.kind, fault.message, log):
        # Libraries wrap such a fault in exceptions of their own, and so does a refusal.
        return Verdict(status="error", fault=_machines(of_machine, fault))
    if outcome == "refused":
        return Verdict(status="fail", findings=(Finding(id=fault.kind, summary=fault.message),))
    if outcome == "raised" and stage == "quantize" and fault.kind not in _NOT_OF_A_RECIPE | _ENDED:
        summary = f"{fault.kind}: {fault.message}"
        evidence = (fault.where,) if fault.where else ()
        return Verdict(
            status="fail",
            findings=(Finding(id="quantize-raised", summary=summary, evidence=evidence),),
        )
    return Verdict(status="error", fault=fault)


def _machines(kind: machine_faults.Kind, said: Fault) -> Fault:
    """A fault of the machine, by its stable kind: the cause in a sentence, and what was said."""
    cause = machine_faults.FAULTS[kind].cause
    return Fault(kind=kind, message=f"{cause}: {said.kind}: {said.message}", where=said.where)


def _without_result(ended: Exit, limit_s: float, log: str) -> Fault:
    if ended.timed_out:
        return Fault(kind="timeout", message=f"no result within {limit_s:g} s; its processes were ended")
    if ended.out_of_memory:
        return Fault(kind="out-of-memory", message=f"{_NO_MEMORY}: the kernel ended the worker")
    if ended.code < 0:
        return Fault(kind="signal", message=f"the worker was ended by signal {-ended.code}")
    said = f"the worker ended with exit code {ended.code} and no result; see its log"
    if kind := machine_faults.of_log(log):
        return _machines(kind, Fault(kind="crash", message=said))
    return Fault(kind="crash", message=said)


def _judge_measured(stage: RecordedStage, measured: Mapping[str, Any], log: str) -> Verdict:
    raised = _raised(stage, measured)
    if raised and (kind := machine_faults.of_exception(raised["type"], raised["message"], log)):
        said = Fault(kind=raised["type"], message=raised["message"], where=raised.get("where"))
        return Verdict(status="error", fault=_machines(kind, said))
    match stage:
        case "generate":
            return _judge_generation(measured)
        case "inspect":
            found = findings.diagnose_inspect(measured)
        case "preflight":
            found = findings.diagnose_preflight(measured)
        case _:
            return Verdict(status="pass")
    weights = {finding.severity for finding in found}
    if "error" in weights:
        first = next(finding for finding in found if finding.severity == "error")
        return Verdict(status="error", fault=Fault(kind=first.id, message="; ".join(first.evidence)))
    return Verdict(
        status="fail" if "fail" in weights else "pass",
        findings=tuple(
            Finding(
                id=f.id,
                severity="fail" if f.severity == "fail" else "note",
                summary=f.summary,
                evidence=f.evidence,
            )
            for f in found
        ),
    )


def _raised(stage: RecordedStage, measured: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The exception that is part of what was measured, with the worker's own ``origin``."""
    found: Mapping[str, Any] | None = None
    if stage == "generate":
        found = measured["load"]["exception"]
    elif stage == "preflight":
        found = measured["exception"]
    return found


def _judge_generation(measured: Mapping[str, Any]) -> Verdict:
    """Whether vLLM could be run; what the answers are worth is for :mod:`qvlfp8.scoring` to say."""
    raised = measured["load"]["exception"]
    if raised is None or machine_faults.blames_checkpoint(raised):
        return Verdict(status="pass")
    fault = Fault(kind=raised["type"], message=raised["message"], where=raised.get("where"))
    return Verdict(status="error", fault=fault)
