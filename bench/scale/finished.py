"""Records of everything that a machine without a GPU executes of a project, through the store's own door.

What was measured, found and said is that of committed records of ours (:mod:`bench.scale.shown`); what a
record says of its own step, and of what it read, is the step's own. On demand a fifth of the cells was run on
a GPU as well, and those records are committed; one in seven answers as no other does. That is about the share
of committed records of ours that do: 200 with answers have 30 lists of them.
"""

from __future__ import annotations

import os
from typing import Any

from bench.scale import shown
from bench.scale.making import era_of, kind_of
from qvlfp8 import digest
from qvlfp8.environments import ServeEnvironment
from qvlfp8.execute import digest_of_what_was_made
from qvlfp8.plan import Plan, Step, repeat_command
from qvlfp8.project import Project
from qvlfp8.results import Host, Record
from qvlfp8.store import LOG

_LOG = "INFO 11-27 15:19:02 [loader.py:104] Loading weights took 0.41 seconds\n" * 11
"""About what a loader's log has: 800 bytes."""

OWN_ANSWERS = 7
"""One run of so many has a list of answers that no other has."""

RUN_ON_GPU = "vlm-fp8"
"""The kind of recipe that was run on a GPU: a fifth of the recipes."""


def finish(project: Project, *, on_gpu: bool) -> int:
    """Put the records into the store; returns how many there are.

    Nothing here loses power: the disk is not waited for.
    """
    setattr(os, "fsync", lambda _descriptor: None)  # noqa: B010
    cells = project.cells(everything=True)
    locks = project.locks(cells)
    plan = project.plan(cells, locks)
    made: dict[str, str] = {}
    written = 0
    with project.store.locked():
        for step in plan.steps.values():
            lock = locks.get((step.environment or "", step.device))
            if step.device == "cuda":
                if on_gpu and step.stage == "generate" and _was_run(step):
                    project.evidence.add(_record(project, step, made, lock.digest if lock else None))
                continue
            folder = project.store.scratch(step.stage)
            (folder / LOG).write_text(_LOG, encoding="utf-8")
            if name := {"model": "model", "quantize": "checkpoint", "generate": "generation"}.get(step.stage):
                (folder / name).mkdir()
                (folder / name / "config.json").write_text(f'{{"of": "{step.digest}"}}', encoding="utf-8")
                made[step.digest] = digest_of_what_was_made(folder) or ""
            record = _record(project, step, made, lock.digest if lock else None)
            project.store.commit(folder, record)
            written += 1
    _check(project, plan)
    return written


def _was_run(step: Step) -> bool:
    recipe = step.subject.split("/")[0]
    return recipe == "bf16" or kind_of(recipe) == RUN_ON_GPU


def _check(project: Project, plan: Plan) -> None:
    """What is measured on has to be what it is said to be: nothing stale, nothing to do, no surprise."""
    views = project.views(plan, project.lookup)
    surprises = [text for view in views for _, text in project.surprises(view) if text]
    stale = [view.cell.id for view in views for stage in view.stages if stage.status in {"stale", "error"}]
    if surprises or stale:
        raise SystemExit("\n".join(["the project is not as it should be", *surprises[:5], *stale[:5]]))


def _record(project: Project, step: Step, made: dict[str, str], lock: str | None) -> Record:
    known = _like(project, step)
    told: dict[str, Any] = known.model_dump() if known else {"environment": {}, "measured": {}}
    environment = project.environments.get(step.environment or "")
    if isinstance(environment, ServeEnvironment):
        told["environment"]["vllm"] = environment.vllm
    if step.stage == "generate":
        told["measured"]["options"] = dict(step.params["options"])
        if answers := told["measured"].get("answers"):
            told["measured"]["answers"] = _own_answers(answers, step)
    on_gpu = step.device == "cuda"
    host = told.get("host") or shown.of_loader("vlm-fp8", "new").host.model_dump()
    return Record(
        stage=step.stage,
        subject=step.subject,
        digest=step.digest,
        status=known.status if known else "pass",
        inputs={
            **step.inputs,
            "params": dict(step.params),
            "asked": dict(step.asked),
            "needs": list(step.needs),
            "lock": lock,
        },
        environment={**told["environment"], "engine": "bundle" if on_gpu else "venv"},
        host=Host(**{**host, "accelerator": host.get("accelerator") if on_gpu else None}),
        started=known.started if known else "2026-11-27T15:15:49+00:00",
        seconds=known.seconds if known else 1.0,
        measured=told["measured"],
        findings=known.findings if known else (),
        repeat=repeat_command(step),
        made=made.get(step.digest),
        read={} if on_gpu else {need: made[need] for need in step.needs if need in made},
        evidence=next(iter(step.evidence), None),
        log=None if on_gpu else LOG,
        log_digest=None if on_gpu else digest.of_json(_LOG),
        qvlfp8="0.1.0",
    )


def _own_answers(answers: list[dict[str, Any]], step: Step) -> list[dict[str, Any]]:
    """The answers; for one run in seven with one of them replaced by another's, by the step's digest."""
    number = int(step.digest, 16)
    if number % OWN_ANSWERS:
        return answers
    at, other = number // OWN_ANSWERS % len(answers), number // OWN_ANSWERS // len(answers) % len(answers)
    changed = answers[at] | {"answer": answers[other]["answer"]}
    return [*answers[:at], changed, *answers[at + 1 :]]


def _like(project: Project, step: Step) -> Record | None:
    recipe = step.subject.split("/")[0]
    serve = project.environments.get(step.environment or "")
    match step.stage:
        case "quantize" | "inspect":
            return shown.of_checkpoint(step.stage, kind_of(recipe))
        case "preflight" if isinstance(serve, ServeEnvironment):
            return shown.of_loader(kind_of(recipe), era_of(serve.vllm))
        case "generate" if isinstance(serve, ServeEnvironment):
            return shown.of_run(None if recipe == "bf16" else kind_of(recipe), era_of(serve.vllm))
        case _:
            return None
