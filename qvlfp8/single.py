"""One recipe on a model of the user's: quantize, inspect, and hand over a whole folder or none."""

from __future__ import annotations

import datetime
import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvlfp8 import __version__, checkpoint, dataset, digest, families
from qvlfp8.dataset import Dataset
from qvlfp8.engine import Batch, Engine, Exit, Job
from qvlfp8.environments import Environment
from qvlfp8.errors import (
    CheckpointError,
    DatasetError,
    QvlError,
    RecipeError,
    UnknownModelError,
    UsageError,
    WorkerError,
)
from qvlfp8.fault_errors import error_of
from qvlfp8.hf_ptq import find_script
from qvlfp8.host import this_host
from qvlfp8.hub import downloaded
from qvlfp8.judge import Verdict, judge
from qvlfp8.locks import Lock, read_lock
from qvlfp8.machine_faults import kind_of
from qvlfp8.progress import Progress
from qvlfp8.project import Project
from qvlfp8.recipe import Recipe, find_recipe
from qvlfp8.redaction import redact
from qvlfp8.results import Fault, Record, RecordedStage
from qvlfp8.store import LOG, Store, end_of, writing
from qvlfp8.untrusted import NotACheckpoint
from qvlfp8.worker.calibration_pictures import UNUSABLE

RECORD = "qvlfp8-record.json"
"""The name under which the record travels with the checkpoint."""

_REFUSED: dict[str, type[QvlError]] = {
    "not-a-checkpoint": CheckpointError,
    "unknown-model": UnknownModelError,
    UNUSABLE: DatasetError,
}
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for, checked as far as it can be without running anything."""

    recipe: Recipe
    model: str
    out: Path
    environment: Environment
    lock: Lock
    dataset: Dataset | None = None
    hf_ptq: Path | None = None
    """Upstream's script, which is to do it (:mod:`qvlfp8.hf_ptq`)."""


def prepare(
    project: Project,
    recipe: str,
    model: str,
    out: Path,
    environment: str | None,
    options: dataset.Options = dataset.NONE,
    checkout: Path | None = None,
) -> Request:
    """Check a request.

    Raises:
        UsageError: an unknown recipe or environment; an output folder that exists; no such model; options of
            a data set that name none, or none that fits the recipe; a ``checkout`` of Model-Optimizer without
            its script, or for a recipe that this cannot do.
        CheckpointError: the model's folder is not a checkpoint.
        UnknownModelError: it is of no known family.
        LockError: the environment's lock cannot be used.
    """
    recipes = project.matrix.recipes
    found = find_recipe(recipes, recipe)
    if found is None:
        raise UsageError(f"no recipe {recipe!r}", mend=f"name one of {', '.join(recipes)}")
    chosen = _environment(project, found, environment)
    _check_free(out)
    return Request(
        recipe=found,
        model=_model(model),
        out=out.resolve(),
        environment=chosen,
        lock=read_lock(project.matrix, chosen),
        dataset=dataset.parse(options, found),
        hf_ptq=find_script(checkout, found) if checkout else None,
    )


def _check_free(out: Path) -> None:
    try:
        exists = out.resolve().exists()
    except (OSError, RuntimeError) as error:
        raise UsageError(f"{out}: not a usable path: {error}", mend="name another folder (--out)") from None
    if exists:
        raise UsageError(f"{out}: exists already", mend="name a folder that does not exist yet (--out)")


def _environment(project: Project, recipe: Recipe, name: str | None) -> Environment:
    """The environment of that name, or the newest of the recipe's producer."""
    known = {e.id: e for e in project.matrix.file.quantize}
    fit = {e.id: e for e in known.values() if e.producer == recipe.producer}
    if name is None and fit:
        return max(fit.values(), key=lambda e: e.version)
    if name is None:
        raise UsageError(
            f"{recipe.id} is made by {recipe.producer}, of which there is no environment",
            mend=f"add a line of it to `quantize` in {project.matrix.path.name}, then `nox -s lock`",
        )
    if name not in known:
        raise UsageError(f"no quantize environment {name!r}", mend=f"name one of {', '.join(fit or known)}")
    if name not in fit:
        raise UsageError(
            f"{recipe.id} is made by {recipe.producer}, and {name} has {known[name].producer}",
            mend=f"name one of {', '.join(fit)}" if fit else None,
        )
    return known[name]


def _model(model: str) -> str:
    if not model:
        raise UsageError("--model is empty", mend="name a folder, or ORGANISATION/NAME")
    folder = Path(model)
    if not folder.is_dir():
        if _HUB_ID.match(model):
            return model
        raise UsageError(
            f"{model}: no such folder, and not a hub id", mend="name a folder, or ORGANISATION/NAME"
        )
    try:
        config = checkpoint.read(folder).config
    except NotACheckpoint as error:
        raise CheckpointError(f"{error.file}: {error.problem}", mend=error.mend) from None
    if config.get("model_type") not in families.FAMILIES:
        known = " or ".join(family.title for family in families.FAMILIES.values())
        raise UnknownModelError(
            f"{folder / 'config.json'}: model_type: {config.get('model_type')!r} is not one of "
            f"{', '.join(families.EVERY)}",
            mend=f"use a {known} model; no other architecture is known yet",
        )
    return str(folder.resolve())


def model_folder(model: str) -> Path:
    """Where a model's files are: its own folder, or where the hub's cache has them."""
    return Path(model) if Path(model).is_dir() else downloaded(model)


def quantize(
    request: Request, engine: Engine, store: Store, *, time_limit_s: float, progress: Progress
) -> Record:
    """Build the environment if need be, quantize, inspect; ``request.out`` appears whole or not at all.

    Returns:
        The inspection's record, which lies in the folder too.

    Raises:
        QvlError: nothing was made; the class says why.
    """
    if not engine.built(request.environment, request.lock):
        label = f"build {request.environment.id}"
        progress.task(label, running=True)
        engine.build(request.environment, request.lock, store.scratch("build") / LOG)
        progress.task(label, running=False)
    with writing(request.out):
        request.out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".qvlfp8-", dir=request.out.parent))
    try:
        record = _make(request, engine, partial, time_limit_s=time_limit_s, progress=progress)
        made = partial / "checkpoint"
        with writing(request.out):
            text = redact(record.model_dump_json(indent=1, exclude_none=True))
            (made / RECORD).write_text(text + "\n")
            _hand_over(made, request.out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return record


def _hand_over(made: Path, out: Path) -> None:
    """Rename; if somebody has put something there meanwhile, keep the work beside it."""
    try:
        made.rename(out)
    except OSError:
        kept = Path(tempfile.mkdtemp(prefix=f"{out.name[:100]}-", dir=out.parent)) / "checkpoint"
        made.rename(kept)
        raise UsageError(
            f"{out}: appeared while this ran; the checkpoint is in {kept}",
            mend="move it to where you want it",
        ) from None


def _make(
    request: Request, engine: Engine, partial: Path, *, time_limit_s: float, progress: Progress
) -> Record:
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    recipe = request.recipe.meaning
    chosen = request.dataset
    params: dict[str, Any] = {
        "model": request.model,
        "recipe": recipe,
        "seed": request.recipe.calibration.seed,
        **({"dataset": chosen.asked} if chosen else {}),
        **({"hf_ptq": str(request.hf_ptq)} if request.hf_ptq else {}),
    }
    made, verdict = _run_one(
        engine,
        (request.environment, request.lock),
        "quantize",
        params,
        partial,
        time_limit_s,
        progress,
        reads=(
            model_folder(request.model),
            *(chosen.reads if chosen else ()),
            *((request.hf_ptq.parent,) if request.hf_ptq else ()),
        ),
    )
    if verdict.status != "pass":
        raise _as_error(verdict, request.recipe)
    inspected_in = partial / "inspect"
    inspected_in.mkdir()
    params = {"checkpoint": str(partial / "checkpoint"), "recipe": recipe}
    inspected, verdict = _run_one(
        engine, None, "inspect", params, inspected_in, time_limit_s, progress, reads=(partial / "checkpoint",)
    )
    inputs = {"model": request.model, "recipe": recipe, "lock": request.lock.digest}
    if chosen:
        inputs["dataset"] = chosen.inputs(made["measured"]["calibration"]["dataset"])
    if request.hf_ptq:
        inputs["hf_ptq"] = made["measured"]["hf_ptq"]
    return Record(
        stage="inspect",
        subject=f"{request.recipe.id}/{request.environment.id}/{request.model}",
        digest=digest.of_json(inputs),
        status=verdict.status,
        inputs=inputs,
        environment={**made["environment"], **engine.facts((request.environment, request.lock))},
        host=this_host(),
        started=started,
        seconds=made["seconds"] + inspected["seconds"],
        measured={**inspected["measured"], "quantize": made["measured"]},
        findings=verdict.findings,
        fault=verdict.fault,
        repeat=f"qvlfp8 quantize {request.recipe.id} --model {request.model} --out {request.out}"
        + (f" {chosen.options()}" if chosen else "")
        + (f" --hf-ptq {request.hf_ptq.parents[2]}" if request.hf_ptq else "")
        + (" --engine docker" if engine.name == "docker" else ""),
        qvlfp8=__version__,
    )


def _run_one(
    engine: Engine,
    where: tuple[Environment, Lock] | None,
    stage: RecordedStage,
    params: dict[str, Any],
    out: Path,
    limit: float,
    progress: Progress,
    *,
    reads: tuple[Path, ...],
) -> tuple[dict[str, Any], Verdict]:
    label = f"{stage} {where[0].id if where else out.name}"
    progress.task(label, running=True)
    log = out / f"{stage}.log"

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            progress.amount(label, event["task"], done=event["done"], total=event["total"])

    ended: Exit = engine.run(
        where,
        Batch(worker=stage, jobs=(Job(id=stage, params=params, out=out, reads=reads),), time_limit_s=limit),
        log,
        on_event,
    )
    progress.task(label, running=False)
    path = out / "result.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    said = end_of(log)
    verdict = judge(stage, result, ended, limit, log=said)
    if result is None:
        fault = verdict.fault or Fault(kind="unknown", message="no result")
        if kind_of(f"{fault.kind}:"):
            raise error_of(f"{fault.kind}:", f"{stage}: {fault.kind}: {fault.message}")
        raise WorkerError(f"{stage}: {fault.message}", mend="\n".join(said.splitlines()[-5:]) or None)
    return result, verdict


def _as_error(verdict: Verdict, recipe: Recipe) -> QvlError:
    if verdict.findings:
        finding = verdict.findings[0]
        kind = _REFUSED.get(finding.id, RecipeError)
        return kind(f"{recipe.id}: {finding.summary}")
    fault = verdict.fault or Fault(kind="unknown", message="the worker ended without a result")
    said = f"{fault.kind}: {fault.message}"
    return error_of(said, f"{recipe.id}: {said}" + (f" ({fault.where})" if fault.where else ""))
