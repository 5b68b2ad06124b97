"""Plant every fault, ask vLLM, and see who catches it.

It works in steps that need not happen on one machine: :func:`subjects` and :func:`runs` say what is
asked, any engine does those runs with the worker ``planted``, and :func:`judge` reads their results.
What is caught is said by the stages as a matrix would run them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qvlfp8 import digest, findings, scoring
from qvlfp8.scoring import Bounds
from qvlfp8.truth.faults import Fault, faults_for

__all__ = ["BASELINE", "Run", "Subject", "Verdict", "judge", "runs", "subjects", "summary", "table"]

BASELINE = "bf16"

HARMLESS = {"accuracy": 0.01, "top1_agreement": 0.002, "p99_kl": 0.005}
"""A fault is harmless if nothing caught it and it makes the checkpoint that it was planted in worse by no
more than this: what one answer is worth that the smallest difference tips over. The mean divergence is left
to the bounds, since that one answer decides it."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A checkpoint to be judged: a good one, or one with a fault planted in the good one named ``base``."""

    id: str
    description: str
    base: str
    fault: Fault | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the worker ``planted``; ``digest`` is of everything that can change what it says."""

    subject: Subject
    digest: str
    params: Mapping[str, Any]
    """But for the folders, which depend on where it is run: see :meth:`job`."""

    def job(self, checkpoint: str, baseline: str | None, out: str) -> dict[str, Any]:
        """The run as a job of a batch, with the folders of where it is done.

        Args:
            checkpoint: the good checkpoint that its fault is planted in.
            baseline: output folder of the BF16 model's run; None for that run itself.
            out: output folder.
        """
        params = {**self.params, "checkpoint": checkpoint, "baseline": baseline}
        return {"id": self.digest, "label": f"truth/{self.subject.id}", "out": out, "params": params}


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

    def as_json(self) -> dict[str, Any]:
        """For records."""
        return {
            "subject": self.subject.id,
            "description": self.subject.description,
            "in": self.subject.base,
            "mark": self.mark,
            "caught_by": list(dict.fromkeys(self.caught_by)),
            "measured": self.measured,
            "error": self.error,
        }


def subjects(good: Iterable[str], config: Mapping[str, Any]) -> list[Subject]:
    """Everything that is judged, the BF16 model first.

    Args:
        good: recipes of the good checkpoints, and :data:`BASELINE`. Faults whose good checkpoint is not
            among them are left out.
        config: config.json of the model.
    """
    names = sorted(good, key=lambda name: name != BASELINE)
    ones = [Subject(id=name, description="good", base=name) for name in names]
    planted = [
        Subject(id=fault.id, description=fault.description, base=fault.base, fault=fault)
        for fault in faults_for(config)
        if fault.base in names
    ]
    return ones + planted


def runs(
    subjects: Iterable[Subject], *, exam: Mapping[str, int], options: Mapping[str, Any], on: object
) -> list[Run]:
    """The runs that ask all subjects.

    Args:
        exam: ``seed`` and ``per_task``.
        options: of the generate worker.
        on: digests of what they are run with: worker, lock, checkpoints.
    """
    found = []
    for subject in subjects:
        fault = subject.fault.id if subject.fault else None
        params = {"fault": fault, "exam": dict(exam), "options": dict(options)}
        key = {"subject": subject.id, "params": params, "on": on}
        found.append(Run(subject=subject, digest=digest.of_json(key), params=params))
    return found


def judge(
    subjects: Sequence[Subject],
    results: Mapping[str, Mapping[str, Any]],
    bounds: Mapping[str, Bounds],
) -> list[Verdict]:
    """Judge all subjects from the ``result.json`` of each (by id); ``bounds`` by recipe.

    Without a measured BF16 model nothing can be said of any.
    """
    good = {s.id: _generated(results[s.id]) for s in subjects if s.fault is None and s.id in results}
    baseline = good.get(BASELINE)
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


def _generated(result: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What ``generate`` measured, None if it did not."""
    measured: Mapping[str, Any] | None = result["measured"].get("generated", {}).get("measured")
    return measured


def _judge(
    subject: Subject,
    result: Mapping[str, Any] | None,
    baseline: Mapping[str, Any] | None,
    base: Mapping[str, Any] | None,
    bounds: Bounds,
) -> Verdict:
    if result is None:
        return Verdict(subject=subject, caught_by=(), measured="", error="there is no result")
    if result["outcome"] != "done":
        failure = result["failure"] or {}
        error = f"{failure.get('kind')}: {failure.get('message')}"
        return Verdict(subject=subject, caught_by=(), measured="", error=error)
    caught = _inspected(result["measured"]["inspected"])
    measured = _generated(result)
    if measured is None:
        caught.append(f"load: {result['measured']['generated']['refused']}")
        return Verdict(subject=subject, caught_by=tuple(caught), measured="")
    if baseline is None:
        return Verdict(subject=subject, caught_by=(), measured="", error=f"{BASELINE} was not measured")
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
        harmless=not caught and subject.fault is not None and _is_harmless(measured, base),
    )


def _inspected(inspected: Mapping[str, Any]) -> list[str]:
    """What the inspect stage says of the folder."""
    if "refused" in inspected:
        return [f"inspect: {inspected['refused']}"]
    found = findings.diagnose_inspect(inspected["measured"])
    return [f"inspect: {finding.id}" for finding in found if finding.severity == "fail"]


def _is_harmless(measured: Mapping[str, Any], base: Mapping[str, Any] | None) -> bool:
    if base is None or measured["fidelity"] is None or base["fidelity"] is None:
        return False
    given, before = measured["fidelity"], base["fidelity"]
    return (
        _accuracy(measured) >= _accuracy(base) - HARMLESS["accuracy"]
        and given["top1_agreement"] >= before["top1_agreement"] - HARMLESS["top1_agreement"]
        and given["p99_kl"] <= before["p99_kl"] + HARMLESS["p99_kl"]
    )


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
