"""What a generate result means: the stages load, text, image, fidelity and speed. Pure.

A checkpoint is held against the BF16 model in the same environment, and against the right answers
where they are known. It sees only if its answers depend on the picture, and rightly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

from qvlfp8.finding_kinds import KINDS
from qvlfp8.findings import Finding
from qvlfp8.machine_faults import blames_checkpoint

__all__ = ["Bounds", "Scored", "Stage", "Status", "score", "score_load"]

Stage = Literal["load", "text", "image", "fidelity", "speed"]
Status = Literal["pass", "fail", "error", "blocked"]


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How far a checkpoint may be from the BF16 model in the same environment.

    Accuracies and agreements are shares of 1, divergences are in nats over the answered tokens.
    """

    text_drop: float = 0.1
    """Accuracy that a task of speech may lose."""
    image_drop: float = 0.1
    """Accuracy that a task of sight may lose."""
    least_accuracy: float = 0.9
    """What the BF16 model itself has to reach in every task, where answers are known."""
    blind: float = 0.2
    """A model is blind if it changes its answers with the picture less than this share as often as BF16."""
    mean_kl: float = 0.02
    p99_kl: float = 0.05
    top1_agreement: float = 0.99
    """matrix.yaml says what was measured, of good checkpoints and of broken ones."""
    agreement: float = 0.8
    """Whole answers that must be BF16's, where right ones are not known."""
    least_speed: float | None = None
    """Output tokens a second as a share of BF16's; None: any."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A stage: how it ended, what was measured, what was found. ``blocked`` comes with ``because``."""

    status: Status
    measured: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    findings: tuple[Finding, ...] = ()
    because: str | None = None


def score(
    measured: Mapping[str, Any],
    baseline: Mapping[str, Any] | None,
    bounds: Bounds,
    *,
    known_answers: bool = True,
    control: Control | None = None,
) -> dict[Stage, Scored]:
    """Score a generate result against the BF16 model's, ``baseline``; None: this is the BF16 model.

    Args:
        known_answers: whether the model was taught to answer this exam. Of another one it is asked
            that it answers as BF16 does, and changes its answers with the picture as BF16 does.
        control: of ``baseline``, for whoever holds many checkpoints against it.

    Returns:
        All stages, of the BF16 model itself all but ``fidelity``.

    Raises:
        ValueError: the two did not sit the same exam.
    """
    if baseline is not None and baseline["exam_digest"] != measured["exam_digest"]:
        raise ValueError("the checkpoint and the BF16 model were not asked the same questions")
    if baseline is not None and not baseline["answers"]:
        # Nothing to hold it against but what is right.
        compared: Mapping[str, Any] | None = None
    else:
        compared = baseline
    stages: dict[Stage, Scored] = {"load": score_load(measured)}
    error = measured["load"]["exception"]
    if error is not None:
        unloaded = error["stage"] == "load"
        answered = _blocked("vLLM did not load it") if unloaded else _generation(error)
        stages |= {"text": answered, "image": answered}
        if baseline is not None:
            stages["fidelity"] = _blocked("there are no answers")
        stages["speed"] = _blocked("there are no answers")
        return stages
    beside = (control or Control(baseline)).beside(measured["answers"], bounds, known=known_answers)
    stages["text"], stages["image"] = beside
    if baseline is not None:
        stages["fidelity"] = _fidelity(measured, compared, bounds)
    stages["speed"] = _speed(measured, compared, bounds)
    return stages


def _finding(kind: str, evidence: Sequence[str]) -> Finding:
    return Finding(id=kind, summary=KINDS[kind].meaning, evidence=tuple(evidence))


def _ended(findings: Sequence[Finding], measured: Mapping[str, Any]) -> Scored:
    weights = {finding.severity for finding in findings}
    status: Status = "error" if "error" in weights else "fail" if "fail" in weights else "pass"
    return Scored(status=status, measured=measured, findings=tuple(findings))


def _blocked(because: str) -> Scored:
    return Scored(status="blocked", because=because)


# --- load ---------------------------------------------------------------------------------------

_REFUSALS = (
    # In the order in which they are tried, against "TypeOfException: message".
    (r"blocks\.\d+\.attn\.[kv]_proj", "stray-vision-kv-scale"),
    (r"TypeError: .*(loader|positional argument)", "language-kv-scale-unsupported"),
    (r"KeyError: .*self_attn\.\S*[kv]_scale", "language-kv-scale-unsupported"),
    (r"KeyError|no module or parameter named|nested weight", "unexpected-tensor"),
    (r"scaled_mm|(divisible|multiple).*\b(8|16|32|128)\b|mat[12] shape", "kernel-refused"),
    (r"[Ss]hape|size of tensor|expanded size|dimension", "shape-mismatch"),
    (r"OSError", "missing-file"),
    (r"ValidationError|[Cc]onfig|[Qq]uantization method|architectures", "config-rejected"),
)  # fmt: skip

_MARKS = (
    (r"scaling factor 1\.0", "kv-scale-one"),
    (r"fall(s|ing)? ?back|fallback", "kernel-fallback"),
)


def score_load(measured: Mapping[str, Any]) -> Scored:
    """The stage load of a generate result, which needs no other."""
    load = measured["load"]
    shown = {
        key: load[key] for key in ("seconds", "memory_mb", "kv_cache_dtype", "quantization") if key in load
    }
    error = load["exception"]
    if error is not None and error["stage"] == "load":
        return _ended([_refusal(error)], shown)
    marks = measured["log_marks"]
    notes = [
        _finding(kind, lines)
        for pattern, kind in _MARKS
        if (lines := [line for line in marks if re.search(pattern, line)])
    ]
    return _ended(notes, shown)


def _refusal(error: Mapping[str, Any]) -> Finding:
    said = f"{error['type']}: {error['message']}"
    evidence = [said, f"raised in {error['where']}"]
    if not blames_checkpoint(error):
        return _finding("environment-fault", evidence)
    kind = next((kind for pattern, kind in _REFUSALS if re.search(pattern, said)), "loader-error")
    return _finding(kind, evidence)


def _generation(error: Mapping[str, Any]) -> Scored:
    """A stage that vLLM left with an exception after it had loaded the checkpoint."""
    evidence = [f"{error['type']}: {error['message']}", f"raised in {error['where']}"]
    kind = "generation-failed"
    if not blames_checkpoint(error):
        kind = "environment-fault"
    elif "only supported for generative models" in error["message"]:
        kind = "not-generative"
    return _ended([_finding(kind, evidence)], {})


# --- text and image -----------------------------------------------------------------------------


_Said = Sequence[Mapping[str, Any]]
"""Answers to an exam."""


class Control:
    """The answers of the BF16 model (None, or one that gave none: there are none), gone through once."""

    def __init__(self, baseline: Mapping[str, Any] | None) -> None:
        self._baseline = baseline
        self._beside: dict[tuple[int, Bounds, bool], tuple[_Said, Scored, Scored]] = {}

    def beside(self, answers: _Said, bounds: Bounds, *, known: bool) -> tuple[Scored, Scored]:
        """Text and image of a checkpoint that gave these answers: judged once for all that gave the same."""
        # Kept here, the list's id is no other's.
        key = (id(answers), bounds, known)
        if key not in self._beside:
            judged = _Answers(answers, self, bounds, known)
            self._beside[key] = (answers, judged.text(), judged.image())
        return self._beside[key][1:]

    @property
    def answers(self) -> _Said:
        """As they were given."""
        return [] if self._baseline is None else self._baseline["answers"]

    @cached_property
    def said(self) -> Mapping[str, tuple[str, str | None]]:
        """By question."""
        return {answer["id"]: _said(answer) for answer in self.answers}

    @cached_property
    def changed(self) -> Mapping[str, float]:
        """By task of sight: the share of questions answered otherwise to the swapped picture."""
        return _changed(self.answers)


@dataclass(slots=True)
class _Tally:
    """The answers to one task's questions, those about swapped pictures counted as well: how many are so."""

    asked: int
    right: int
    compared: int
    """Of those that BF16 answered too."""
    right_bf16: int
    agreeing: int


class _Answers:
    """The answers of a checkpoint beside those of the BF16 model (None: there are none)."""

    def __init__(self, answers: _Said, control: Control, bounds: Bounds, known: bool) -> None:
        self._bounds = bounds
        self._known = known
        self._answers = answers
        self._control = control

    def text(self) -> Scored:
        """Tasks without a picture."""
        if all(answer["sight"] for answer in self._answers):
            return _blocked("no question of speech was asked")
        found, measured = self._tasks(sight=False, drop=self._bounds.text_drop)
        return _ended([*self._unknown(), *([_finding("speaks-wrongly", found)] if found else [])], measured)

    def image(self) -> Scored:
        """Tasks with a picture: what is answered, and whether it depends on the picture."""
        if not any(answer["sight"] for answer in self._answers):
            return _blocked("no question of sight was asked")
        found, measured = self._tasks(sight=True, drop=self._bounds.image_drop)
        changed = _changed(self._answers)
        theirs = bool(self._control.answers)
        usual = self._control.changed if theirs else dict.fromkeys(changed, 1.0)
        share, usually = _mean(changed.values()), _mean(usual.values())
        measured |= {"changed": round(share, 4), "changed_bf16": round(usually, 4) if theirs else None}
        if share < self._bounds.blind * usually or (usually > 0 and share == 0):
            say = f"{share:.0%} of the answers change with the picture; {usually:.0%} should"
            return _ended([*self._unknown(), _finding("blind", [say, *found])], measured)
        found += [
            f"{task}: {part:.0%} of the answers change with the picture; {usual[task]:.0%} should"
            for task, part in changed.items()
            if part < self._bounds.blind * usual.get(task, 0.0)
        ]
        return _ended([*self._unknown(), *([_finding("sees-wrongly", found)] if found else [])], measured)

    def _unknown(self) -> list[Finding]:
        return [] if self._known else [_finding("answers-unknown", ["held against BF16's answers alone"])]

    def _tasks(self, *, sight: bool, drop: float) -> tuple[list[str], dict[str, Any]]:
        """A sentence for each task that is not answered well enough, and all tasks' numbers."""
        found: list[str] = []
        numbers: dict[str, Any] = {}
        for task, tally in self._tallies.items():
            if (task in self._sight) is not sight:
                continue
            right = tally.right / tally.asked
            right_bf16 = tally.right_bf16 / tally.compared if tally.compared else None
            agree = tally.agreeing / tally.asked if tally.compared else None
            numbers[task] = {
                "asked": tally.asked,
                "accuracy": round(right, 4),
                "accuracy_bf16": _rounded(right_bf16),
                "agreement": _rounded(agree),
            }
            found += self._judge(task, right, right_bf16, agree, drop)
        return found, {"tasks": numbers}

    def _judge(
        self, task: str, right: float, bf16: float | None, agree: float | None, drop: float
    ) -> Iterator[str]:
        if not self._known:
            if agree is not None and agree < self._bounds.agreement:
                least = self._bounds.agreement
                yield f"{task}: {agree:.0%} of the answers are BF16's, at least {least:.0%} must be"
            return
        # What BF16 cannot do here either is still not done rightly.
        least = self._bounds.least_accuracy
        least = least if bf16 is None else max(bf16, least) - drop
        if right < least - _ROUNDING:
            beside = "" if bf16 is None else f", BF16 {bf16:.0%}"
            yield f"{task}: {right:.0%} right{beside}, at least {least:.0%} must be"

    @cached_property
    def _tallies(self) -> dict[str, _Tally]:
        """By task, in the order in which they were asked."""
        theirs = self._control.said
        nothing = (None, None)
        told: dict[str, list[tuple[str, str, str | None]]] = {}
        for a in self._answers:
            of_task = told.get(a["task"])
            if of_task is None:
                of_task = told[a["task"]] = []
            said, swapped = _said(a)
            said_bf16, swapped_bf16 = theirs.get(a["id"], nothing)
            of_task.append((said, a["expected"], said_bf16))
            if swapped is not None:
                of_task.append((swapped, a["swapped_expected"], swapped_bf16))
        return {task: _tally(answers) for task, answers in told.items()}

    @cached_property
    def _sight(self) -> set[str]:
        return {answer["task"] for answer in self._answers if answer["sight"]}


_ROUNDING = 1e-9


def _said(answer: Mapping[str, Any]) -> tuple[str, str | None]:
    """What was said to a question's own picture (or without one), and to the swapped one; None: not asked."""
    swapped = answer["swapped_answer"]
    return answer["answer"].strip(), None if swapped is None else swapped.strip()


def _tally(told: Sequence[tuple[str, str, str | None]]) -> _Tally:
    """Of what was said, what is right, and what BF16 said."""
    return _Tally(
        asked=len(told),
        right=sum([said == expected for said, expected, _ in told]),
        compared=sum([bf16 is not None for _, _, bf16 in told]),
        right_bf16=sum([bf16 is not None and bf16 == expected for _, expected, bf16 in told]),
        agreeing=sum([said == bf16 for said, _, bf16 in told]),
    )


def _changed(answers: _Said) -> dict[str, float]:
    """For each task of sight the share of questions answered otherwise to the swapped picture."""
    tasks: dict[str, list[bool]] = {}
    for answer in answers:
        if answer["sight"]:
            changed = answer["answer"].strip() != (answer["swapped_answer"] or "").strip()
            tasks.setdefault(answer["task"], []).append(changed)
    return {task: _mean(changed) for task, changed in tasks.items()}


def _mean(values: Any) -> float:
    found = [float(value) for value in values]
    return sum(found) / len(found) if found else 0.0


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


# --- fidelity and speed -------------------------------------------------------------------------


def _fidelity(measured: Mapping[str, Any], baseline: Mapping[str, Any] | None, bounds: Bounds) -> Scored:
    numbers = measured["fidelity"]
    if baseline is None or numbers is None:
        return _blocked("the BF16 model gave no answers here")
    found: list[Finding] = []
    if numbers["not_finite"]:
        say = f"of {numbers['not_finite']} answered tokens"
        found.append(_finding("not-finite-output", [say]))
    elif numbers["mean_kl"] is None:
        return _blocked("no token could be compared")
    if numbers["mean_kl"] is not None:
        found += [_finding("diverges", beyond)] if (beyond := _beyond(numbers, bounds)) else []
    return _ended(found, numbers)


def _beyond(numbers: Mapping[str, Any], bounds: Bounds) -> list[str]:
    beyond = [
        f"{name} divergence {numbers[key]:.4g} nats, at most {bound:g} may be"
        for name, key, bound in (
            ("mean", "mean_kl", bounds.mean_kl),
            ("99th percentile of the", "p99_kl", bounds.p99_kl),
        )
        # Not a number is beyond every bound.
        if not numbers[key] <= bound
    ]
    if not numbers["top1_agreement"] >= bounds.top1_agreement:
        beyond.append(
            f"{numbers['top1_agreement']:.1%} of the likeliest tokens are BF16's, "
            f"at least {bounds.top1_agreement:.1%} must be"
        )
    return beyond


def _speed(measured: Mapping[str, Any], baseline: Mapping[str, Any] | None, bounds: Bounds) -> Scored:
    numbers = dict(measured["speed"])
    if baseline is None:
        return _ended([], numbers)
    ratio = numbers["output_tokens_per_second"] / max(
        baseline["speed"]["output_tokens_per_second"], _ROUNDING
    )
    numbers["of_bf16"] = round(ratio, 3)
    if bounds.least_speed is not None and ratio < bounds.least_speed:
        say = f"{ratio:.0%} of BF16's output tokens a second, at least {bounds.least_speed:.0%} must be"
        return _ended([_finding("slower-than-bf16", [say])], numbers)
    return _ended([], numbers)
