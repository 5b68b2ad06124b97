"""Results that a bundle's run brought back: checked before anything is believed of them. Pure.

A job's id is the digest of the plan's step that it answers. Its result is taken if its files are those
that the host listed, and it was made by the worker's source, in the lock and of the checkpoint that the
plan names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvlfp8 import digest
from qvlfp8.plan import Plan, Step
from qvlfp8.results import Host
from qvlfp8.worker.run_bundle import HOST, RAN, RESULT, SUMS, sums


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the plan says of a step: digests of the worker's source, the lock and the checkpoint folder."""

    worker: str
    lock: str
    checkpoint: str


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A result that answers the step ``digest``; ``folder`` holds its files."""

    digest: str
    folder: Path
    result: Mapping[str, Any]
    host: Host
    started: str
    facts: Mapping[str, Any]
    """Of the host: GPUs, driver, kernel, Python, and the versions of the environment's packages."""


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A result that is not taken, and why, in one sentence."""

    job: str
    reason: str


def read_results(
    out: Path, expected: Mapping[str, Expected]
) -> tuple[tuple[Imported, ...], tuple[Rejected, ...]]:
    """Every job below ``out`` that has a result: what can be taken, and what cannot.

    Args:
        out: the folder ``out`` that a bundle's run left.
        expected: step digest -> what its result has to say.
    """
    taken: list[Imported] = []
    rejected: list[Rejected] = []
    listed = _listed(out)
    host = _read(out / HOST)
    for folder in sorted(path.parent for path in out.glob(f"*/{RESULT}")):
        ran, result = _read(folder / RAN), _read(folder / RESULT)
        reason = _changed(out, listed, folder) or _contradiction(ran, result, expected) or _lacking(host, ran)
        if reason:
            rejected.append(Rejected(job=folder.name, reason=reason))
            continue
        environment = host["environments"].get(ran["environment"], {})
        taken.append(
            Imported(
                digest=ran["job"],
                folder=folder,
                result=result,
                host=_host(host),
                started=ran["started"],
                facts={key: value for key, value in host.items() if key != "environments"} | environment,
            )
        )
    return tuple(taken), tuple(rejected)


def _listed(out: Path) -> dict[str, str]:
    try:
        return sums((out / SUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _changed(out: Path, listed: Mapping[str, str], folder: Path) -> str | None:
    here = {path.relative_to(out).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    inside = {name for name in listed if name.startswith(f"{folder.name}/")}
    if lost := inside - here.keys():
        return f"{min(lost)} did not come along"
    for name, path in sorted({HOST: out / HOST, **here}.items()):
        if name not in listed:
            return f"{name} is not in {SUMS}"
        if not path.is_file() or digest.of_file(path) != listed[name]:
            return f"{name} is not the file that {SUMS} names"
    return None


def _contradiction(
    ran: Mapping[str, Any], result: Mapping[str, Any], expected: Mapping[str, Expected]
) -> str | None:
    wanted = expected.get(str(ran.get("job")))
    if wanted is None:
        return "no step of the plan has this digest: recipe, lock, exam or worker have changed since"
    if ran.get("worker_source") != wanted.worker:
        return "made by another version of the worker"
    if ran.get("lock") != wanted.lock:
        return "made in an environment of another lock"
    if "outcome" not in result:
        return f"{RESULT} says no outcome"
    measured = result.get("measured") or {}
    if result["outcome"] == "done" and measured.get("checkpoint_digest") != wanted.checkpoint:
        return "made of another checkpoint"
    return None


def _lacking(host: Mapping[str, Any], ran: Mapping[str, Any]) -> str | None:
    keys = ("gpus", "machine", "system", "kernel", "cpus", "memory_gb", "environments")
    lacking = [f"{HOST} has no {key}" for key in keys if key not in host]
    lacking += [
        f"{RAN} has no {key}" for key in ("environment", "started") if not isinstance(ran.get(key), str)
    ]
    return next(iter(lacking), None)


def _host(facts: Mapping[str, Any]) -> Host:
    gpus = [gpu["name"] for gpu in facts["gpus"]]
    return Host(
        machine=facts["machine"],
        system=f"{facts['system']} {facts['kernel']}",
        cpus=facts["cpus"],
        memory_gb=facts["memory_gb"],
        accelerator=gpus[0] if gpus else None,
    )


def expected_of(plan: Plan, made: Callable[[Step], str | None]) -> dict[str, Expected]:
    """What the results of a plan's ``generate`` steps have to say.

    Args:
        made: digest of the files that a ``model`` or ``quantize`` step made, None if it did not run.
    """
    found = {}
    for step in plan.steps.values():
        if step.stage != "generate":
            continue
        needs = {need.stage: need for need in (plan.steps[digest] for digest in step.needs)}
        checkpoint = made(needs["quantize"] if "quantize" in needs else needs["model"])
        lock = needs["build"].inputs["lock"]
        if checkpoint is not None and lock is not None:
            found[step.digest] = Expected(worker=step.inputs["worker"], lock=lock, checkpoint=checkpoint)
    return found
