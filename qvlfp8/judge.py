"""What a worker's result means: status, findings, fault. Pure.

The rule that matters: what the machine or our own harness did wrong is an ``error``, and never looks
like the checkpoint's ``fail``; and a stage passes only on a result that says ``done``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qvlfp8 import findings
from qvlfp8.engine import Exit
from qvlfp8.results import Fault, Finding, Recorded, RecordedStage

_MACHINE_FAULTS = {
    "MemoryError",
    "OutOfMemoryError",
    "OSError",
    "PermissionError",
    "ImportError",
    "ModuleNotFoundError",
}
"""Exceptions that speak of the machine or the environment, not of what was asked."""


DISK = "disk-refused"
"""The kind of fault when the disk is full or cannot be written."""

_DISK_REFUSED = ("No space left on device", "Read-only file system", "Disk quota exceeded")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How a stage ended."""

    status: Recorded
    findings: tuple[Finding, ...] = ()
    fault: Fault | None = None


def judge(stage: RecordedStage, result: Mapping[str, Any] | None, ended: Exit, limit_s: float) -> Verdict:
    """Judge one job from its ``result.json`` (None: there is none) and how its process ended."""
    if result is None:
        return Verdict(status="error", fault=_without_result(ended, limit_s))
    outcome = result["outcome"]
    failure = result.get("failure") or {}
    if outcome == "done":
        return _judge_measured(stage, result["measured"])
    fault = Fault(kind=failure["kind"], message=failure["message"], where=failure.get("where"))
    if outcome == "refused":
        return Verdict(status="fail", findings=(Finding(id=fault.kind, summary=fault.message),))
    if any(mark in fault.message for mark in _DISK_REFUSED):
        # Libraries wrap it in exceptions of their own; it is the machine's fault all the same.
        return Verdict(status="error", fault=Fault(kind=DISK, message=fault.message, where=fault.where))
    if outcome == "raised" and stage == "quantize" and fault.kind not in _MACHINE_FAULTS:
        summary = f"{fault.kind}: {fault.message}"
        evidence = (fault.where,) if fault.where else ()
        return Verdict(
            status="fail",
            findings=(Finding(id="quantize-raised", summary=summary, evidence=evidence),),
        )
    return Verdict(status="error", fault=fault)


def _without_result(ended: Exit, limit_s: float) -> Fault:
    if ended.timed_out:
        return Fault(kind="timeout", message=f"no result within {limit_s:g} s; its processes were ended")
    if ended.out_of_memory:
        return Fault(kind="out-of-memory", message="it needed more memory than its container may use")
    if ended.code < 0:
        return Fault(kind="signal", message=f"the worker was ended by signal {-ended.code}")
    return Fault(
        kind="crash",
        message=f"the worker ended with exit code {ended.code} and no result; see its log",
    )


def _judge_measured(stage: RecordedStage, measured: Mapping[str, Any]) -> Verdict:
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


def _judge_generation(measured: Mapping[str, Any]) -> Verdict:
    """Whether vLLM could be run; what the answers are worth is for :mod:`qvlfp8.scoring` to say."""
    raised = measured["load"]["exception"]
    if raised is None or raised["origin"] == "checkpoint":
        return Verdict(status="pass")
    fault = Fault(kind=raised["type"], message=raised["message"], where=raised.get("where"))
    return Verdict(status="error", fault=fault)
