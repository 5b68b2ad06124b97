"""``qvlfp8 reference``: the model and a data set of ours as folders; training, and scoring any checkpoint."""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from qvlfp8 import reference
from qvlfp8.engine import Batch, Exit, Job
from qvlfp8.engine.venv import VenvEngine
from qvlfp8.errors import CheckpointError, UsageError, WorkerError
from qvlfp8.judge import judge
from qvlfp8.locks import read_lock
from qvlfp8.project import Project
from qvlfp8.report.progress import ConsoleProgress
from qvlfp8.store import LOG, writing

if TYPE_CHECKING:
    from qvlfp8.reference.exam import Question

TRAIN_LIMIT_S = 24 * 3600.0
ASK_LIMIT_S = 120.0


def make_model(out: Path, *, tied: bool) -> None:
    """Write the shipped model's folder.

    Raises:
        UsageError: ``out`` is there already.
        StoreWriteError: the disk refuses.
    """
    _must_not_exist(out, "DIR")
    with writing(out):
        digest = reference.write_trained(out, tied=tied)
    print(f"{out}: {digest}")


def make_coco(out: Path, *, pictures: int, seed: int) -> None:
    """Write a small data set in the form of COCO 2017.

    Raises:
        UsageError: ``out`` is there already, or numpy is not installed.
        StoreWriteError: the disk refuses.
    """
    _must_not_exist(out, "DIR")
    try:
        from qvlfp8.reference.coco import write_coco
    except ImportError as error:
        raise UsageError(
            f"pictures are drawn by numpy: {error}",
            mend="take `nox -s reference`, or `pip install 'qvlfp8[pictures]'`",
        ) from None
    with writing(out):
        write_coco(out, pictures=pictures, seed=seed)
    print(f"{out}: {pictures} pictures, each with a caption")


def _must_not_exist(out: Path, option: str) -> None:
    if out.exists():
        raise UsageError(f"{out}: exists already", mend=f"name a folder that does not exist yet ({option})")


def run_train(
    matrix: Path, store: Path | None, out: Path, *, steps: int | None, seed: int | None, here: bool
) -> None:
    """Train into ``out``: weights and training record.

    Raises:
        UsageError: ``out`` is there already.
        QvlError: by class; ``out`` is then not there.
    """
    _must_not_exist(out, "--out")
    plan = reference.training_record()
    told = {"steps": steps, "seed": seed}
    params = {
        **plan["plan"],
        **{name: value for name, value in told.items() if value is not None},
        "exam": {name: plan["exam"][name] for name in ("seed", "per_task")},
    }
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".qvlfp8-", dir=out.parent))
    try:
        record = _work("train", params, partial, matrix, store, here=here)
        with writing(out):
            made = partial / "made"
            made.mkdir()
            for name in ("model.safetensors", "training.json"):
                (partial / name).rename(made / name)
            made.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _print_scores({"intact": record["accuracy"], **record["ablations"]})
    print(f"{out}: {record['parameters']} parameters, {record['seconds']} s, {record['model_sha256']}")


def run_eval(
    matrix: Path,
    store: Path | None,
    checkpoint: str | None,
    *,
    per_task: int,
    seed: int,
    ablations: bool,
    url: str | None,
    here: bool,
    as_json: bool,
) -> None:
    """Score a checkpoint's weights, or a served model's answers.

    Raises:
        UsageError: both or neither of what is to be scored, or no answer from the server.
        QvlError: by class.
    """
    exam = {"seed": seed, "per_task": per_task}
    if url is not None:
        if checkpoint is not None:
            raise UsageError("a checkpoint and --url: one of the two is scored", mend="leave one out")
        measured = _score_served(url, exam)
    else:
        with tempfile.TemporaryDirectory(prefix="qvlfp8-eval-") as folder:
            scratch = Path(folder)
            if checkpoint is None:
                reference.write_trained(scratch / "model", tied=True)
            elif not Path(checkpoint).is_dir():
                raise UsageError(f"{checkpoint}: no such folder", mend="name a checkpoint's folder")
            params = {
                "checkpoint": str(Path(checkpoint).resolve() if checkpoint else scratch / "model"),
                "exam": exam,
                "ablations": ablations,
            }
            measured = _work("evaluate", params, scratch, matrix, store, here=here)
    if as_json:
        print(json.dumps(measured, indent=1, sort_keys=True))
        return
    _print_scores({"intact": measured["accuracy"], **measured.get("ablations", {})})


def _work(
    worker: str, params: Mapping[str, Any], out: Path, matrix: Path, store: Path | None, *, here: bool
) -> dict[str, Any]:
    """Run one job in the newest environment of ModelOpt, which has torch, or in this Python."""
    project = Project.open(matrix, store)
    made_with = [e for e in project.matrix.file.quantize if e.producer == "modelopt"]
    environment = max(made_with or project.matrix.file.quantize, key=lambda e: e.version)
    with ExitStack() as stack:
        progress = stack.enter_context(ConsoleProgress(Console(stderr=True), verbose=False))
        settings = project.matrix.file.locks
        engine = VenvEngine(
            project.store, python=settings.python, torch=settings.torch, announce=progress.announce
        )
        where = None
        if not here:
            stack.enter_context(project.store.locked())
            lock = read_lock(project.matrix, environment)
            where = (environment, lock)
            if not engine.built(*where):
                engine.build(*where, project.store.scratch("build") / LOG)
        progress.task(worker, running=True)
        try:
            batch = Batch(
                worker=worker,
                jobs=(Job(id=worker, params=dict(params), out=out),),
                time_limit_s=TRAIN_LIMIT_S,
            )
            ended = engine.run(where, batch, out / LOG, lambda _event: None)
        except BaseException:
            engine.stop()
            raise
        progress.task(worker, running=False)
    return _measured(out, ended)


def _measured(out: Path, ended: Exit) -> dict[str, Any]:
    path = out / "result.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    verdict = judge("quantize", result, ended, TRAIN_LIMIT_S)
    if result is None or verdict.status != "pass":
        said = (out / LOG).read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        if result is not None and result["outcome"] == "refused":
            raise CheckpointError(result["failure"]["message"])
        told = verdict.fault.message if verdict.fault else verdict.findings[0].summary
        raise WorkerError(told, mend="\n".join(said) or None)
    measured: dict[str, Any] = result["measured"]
    return measured


def _print_scores(rows: Mapping[str, Mapping[str, float]]) -> None:
    tasks = list(next(iter(rows.values())))
    width = max(map(len, rows)) + 2
    print(" " * width + " ".join(f"{task:>9}" for task in tasks))
    for name, row in rows.items():
        print(f"{name:<{width}}" + " ".join(f"{row[task]:>9.1%}" for task in tasks))


def _score_served(url: str, exam: Mapping[str, int]) -> dict[str, Any]:
    from qvlfp8.reference.exam import CHANCE, exam_digest, make_exam

    questions = make_exam(**exam)
    model = _ask(f"{url}/models", None)["data"][0]["id"]
    right: dict[str, list[bool]] = {}
    for question in questions:
        said = _ask(f"{url}/chat/completions", _request(model, question))
        answer = said["choices"][0]["message"]["content"] or ""
        right.setdefault(question.task, []).append(answer.strip() == question.answer)
    return {
        "model": model,
        "exam": dict(exam),
        "exam_digest": exam_digest(questions),
        "accuracy": {task: sum(found) / len(found) for task, found in right.items()},
        "chance": dict(CHANCE),
    }


def _request(model: str, question: Question) -> dict[str, Any]:
    from qvlfp8.report.proof import png

    content: list[dict[str, Any]] = []
    if question.picture is not None:
        data = base64.b64encode(png(question.picture)).decode()
        content.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
    content.append({"type": "text", "text": question.prompt})
    messages = [{"role": "user", "content": content}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": 16}


def _ask(url: str, body: Mapping[str, Any] | None) -> Any:
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url}: not an address", mend="write it like http://localhost:8000/v1")
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=ASK_LIMIT_S) as answer:  # noqa: S310
            return json.load(answer)
    except (OSError, ValueError) as error:
        raise UsageError(f"{url}: no answer: {error}", mend="start the server, or correct --url") from None
