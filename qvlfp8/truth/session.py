"""Plant every fault, ask vLLM, and see who catches it.

It works in three steps that need not happen on one machine: :func:`prepare` makes the broken
checkpoints and the jobs of one batch, any engine runs that batch in a serve environment, and
:func:`judge` reads the results. What is caught is said by the stages as a matrix would run them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvlfp8 import findings, scoring
from qvlfp8.checkpoint import CONFIG
from qvlfp8.scoring import Bounds
from qvlfp8.truth.faults import Fault, faults_for, plant
from qvlfp8.worker import inspect
from qvlfp8.worker.protocol import RESULT, Refused

__all__ = ["BASELINE", "Subject", "Verdict", "judge", "prepare", "summary", "table"]

BASELINE = "bf16"

HARMLESS = 0.1
"""A fault is harmless if nothing caught it, it diverges from BF16 by at most this share of the bounds, and
its answers are right as often as those of the checkpoint that it was planted in."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A checkpoint to be judged: a good one, or one with a fault planted in the good one named ``base``."""

    id: str
    description: str
    folder: Path
    base: str
    fault: Fault | None = None

    @property
    def job(self) -> str:
        """The job's id, and the name of its output folder."""
        return self.id


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the stages said of a subject: ``stage: finding`` of each that failed, and what was measured."""

    subject: Subject
    caught_by: tuple[str, ...]
    measured: str
    harmless: bool = False
    error: str | None = None

    @property
    def mark(self) -> str:
        """One word for the table."""
        if self.error is not None:
            return "ERROR"
        if self.subject.fault is None:
            return "FALSE ALARM" if self.caught_by else "quiet"
        return "caught" if self.caught_by else "harmless" if self.harmless else "MISSED"


def prepare(
    good: Mapping[str, Path], work: Path, *, exam: Mapping[str, int], options: Mapping[str, Any]
) -> tuple[list[Subject], dict[str, Any]]:
    """Make the broken checkpoints below ``work``, and the batch that asks all of them.

    Args:
        good: the good checkpoints by recipe, the BF16 model as :data:`BASELINE`. Faults whose good
            checkpoint is not there are left out.
        exam: ``seed`` and ``per_task``.
        options: of the generate worker.

    Returns:
        The subjects, and the spec of one batch, the BF16 model's job first.
    """
    subjects = [
        Subject(id=name, description="good", folder=folder, base=name) for name, folder in good.items()
    ]
    config = json.loads((good[BASELINE] / CONFIG).read_text(encoding="utf-8"))
    for fault in faults_for(config):
        if fault.base in good:
            folder = work / "checkpoints" / fault.id
            if not folder.exists():
                plant(fault, good[fault.base], folder)
            subjects.append(
                Subject(
                    id=fault.id, description=fault.description, folder=folder, base=fault.base, fault=fault
                )
            )
    subjects.sort(key=lambda subject: subject.id != BASELINE)
    results = work / "results"
    jobs = []
    for subject in subjects:
        (results / subject.job).mkdir(parents=True, exist_ok=True)
        params: dict[str, Any] = {
            "checkpoint": str(subject.folder),
            "exam": dict(exam),
            "baseline": str(results / BASELINE) if subject.id != BASELINE else None,
            "options": dict(options),
        }
        if subject.fault is not None and subject.fault.in_vllm is not None:
            params["plant"] = subject.fault.in_vllm
        jobs.append({"id": subject.job, "out": str(results / subject.job), "params": params})
    return subjects, {"worker": "generate", "time_limit_s": 600, "jobs": jobs}


def judge(
    subjects: Sequence[Subject],
    results: Mapping[str, Mapping[str, Any]],
    bounds: Mapping[str, Bounds],
) -> list[Verdict]:
    """Judge all subjects from the ``result.json`` of each (by id); ``bounds`` by recipe."""
    baseline = results[BASELINE]["measured"]
    good = {s.id: results[s.id]["measured"] for s in subjects if s.fault is None and s.id in results}
    return [
        _judge(
            subject,
            results.get(subject.id),
            baseline,
            good.get(subject.base),
            bounds.get(subject.base, Bounds()),
        )
        for subject in subjects
    ]


def _judge(
    subject: Subject,
    result: Mapping[str, Any] | None,
    baseline: Mapping[str, Any],
    base: Mapping[str, Any] | None,
    bounds: Bounds,
) -> Verdict:
    if result is None:
        return Verdict(subject=subject, caught_by=(), measured="", error="there is no result")
    caught = _inspected(subject)
    if result["outcome"] == "refused":
        caught.append(f"load: {result['failure']['kind']}")
        return Verdict(subject=subject, caught_by=tuple(caught), measured="")
    if result["outcome"] != "done":
        failure = result["failure"] or {}
        error = f"{failure.get('kind')}: {failure.get('message')}"
        return Verdict(subject=subject, caught_by=(), measured="", error=error)
    measured = result["measured"]
    other = None if subject.id == BASELINE else baseline
    stages = scoring.score(measured, other, bounds)
    for stage, scored in stages.items():
        if scored.status == "error":
            said = "; ".join(line for finding in scored.findings for line in finding.evidence)
            return Verdict(subject=subject, caught_by=(), measured="", error=f"{stage}: {said}")
        caught += [f"{stage}: {finding.id}" for finding in scored.findings if finding.severity == "fail"]
    return Verdict(
        subject=subject,
        caught_by=tuple(caught),
        measured=_numbers(stages),
        harmless=not caught and subject.fault is not None and _is_harmless(measured, base, bounds),
    )


def _inspected(subject: Subject) -> list[str]:
    """What the inspect stage says of the folder."""
    try:
        seen = inspect.run({"checkpoint": str(subject.folder), "recipe": None}, subject.folder)
    except Refused as refused:
        return [f"inspect: {refused.kind}"]
    found = findings.diagnose_inspect(seen)
    return [f"inspect: {finding.id}" for finding in found if finding.severity == "fail"]


def _is_harmless(measured: Mapping[str, Any], base: Mapping[str, Any] | None, bounds: Bounds) -> bool:
    if base is None or measured["fidelity"] is None:
        return False
    given = measured["fidelity"]
    near = (
        given["mean_kl"] <= HARMLESS * bounds.mean_kl
        and given["p99_kl"] <= HARMLESS * bounds.p99_kl
        and _accuracy(measured) >= _accuracy(base) - 0.01
    )
    return bool(near)


def _accuracy(measured: Mapping[str, Any]) -> float:
    right: list[bool] = [a["answer"] == a["expected"] for a in measured["answers"]]
    right += [a["swapped_answer"] == a["swapped_expected"] for a in measured["answers"] if a["sight"]]
    return sum(right) / len(right)


def _numbers(stages: Mapping[scoring.Stage, scoring.Scored]) -> str:
    parts = []
    for stage in ("text", "image"):
        tasks = stages[stage].measured.get("tasks", {})
        if tasks:
            accuracies = [task["accuracy"] for task in tasks.values()]
            worst = min(tasks, key=lambda name: tasks[name]["accuracy"])
            mean = sum(accuracies) / len(accuracies)
            parts.append(f"{stage} {mean:.0%} (worst {worst} {tasks[worst]['accuracy']:.0%})")
    fidelity = stages["fidelity"].measured if "fidelity" in stages else {}
    if fidelity.get("mean_kl") is not None:
        parts.append(
            f"KL {fidelity['mean_kl']:.2g} (p99 {fidelity['p99_kl']:.2g}), "
            f"top-1 {fidelity['top1_agreement']:.1%}"
        )
    return "; ".join(parts)


def table(verdicts: Iterable[Verdict]) -> str:
    """All verdicts, a line each: mark, id, who caught it, what was measured."""
    lines = []
    for verdict in verdicts:
        said = verdict.error or ", ".join(dict.fromkeys(verdict.caught_by)) or "-"
        lines.append(
            f"{verdict.mark:<11} {verdict.subject.id:<21} {said}\n{'':33} {verdict.measured}".rstrip()
        )
    return "\n".join(lines)


def summary(verdicts: Sequence[Verdict]) -> tuple[str, bool]:
    """The last line, and whether every harmful fault was caught, no good one accused, and all were run."""
    faults = [v for v in verdicts if v.subject.fault is not None and v.mark != "harmless"]
    good = [v for v in verdicts if v.subject.fault is None]
    caught = sum(v.mark == "caught" for v in faults)
    alarms = sum(v.mark != "quiet" for v in good)
    line = f"caught {caught}/{len(faults)}, false alarms {alarms}/{len(good)}"
    return line, caught == len(faults) and alarms == 0


def read_results(work: Path, subjects: Iterable[Subject]) -> dict[str, dict[str, Any]]:
    """The results that a batch left below ``work``, by subject."""
    found = {}
    for subject in subjects:
        path = work / "results" / subject.job / RESULT
        if path.exists():
            found[subject.id] = json.loads(path.read_text(encoding="utf-8"))
    return found
