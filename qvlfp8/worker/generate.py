"""Worker ``generate``: run vLLM for real, and record what it says to every question of an exam.

The engine is started as a user starts it, questions and pictures go through the checkpoint's own chat
template and processor, answers are greedy. An exception of vLLM is a measured result: ``load`` says
where it came from, and whether the checkpoint or the environment is to blame. What the numbers mean
is said by :mod:`qvlfp8.scoring`.
"""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvlfp8 import checkpoint as ck
from qvlfp8.worker import fresh, generate_faults, generate_gpu, generate_patches, generate_plants
from qvlfp8.worker.generate_log import LogMarks
from qvlfp8.worker.protocol import Refused
from qvlfp8.worker.vllm_patches import version_of_vllm

if TYPE_CHECKING:
    from qvlfp8.reference.exam import Question
    from qvlfp8.worker.generate_engine import Reply

__all__ = ["IDS", "LOGPROBS", "TOKENS", "prepare", "run"]

FOLDER = "generation"
LOGPROBS = f"{FOLDER}/logprobs.npy"
"""Float32, a row an answered token, in the order of :data:`IDS`: log-probabilities, likeliest first; not a
number where vLLM gave none."""

TOKENS = f"{FOLDER}/tokens.npy"
"""Int32, of the same shape: which token each of them is about; -1 where there is none."""

IDS = f"{FOLDER}/ids.json"
"""The token ids of each answer: of a question, and if it has pictures then of the swapped one."""

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Whether there is a GPU is asked of the driver: CUDA, once initialised, does not survive a fork.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}

_SMALL = 200_000_000
"""Bytes of weights up to which a model is small."""

_fault: dict[str, Any] | None = None
"""Set by :func:`prepare` when vLLM cannot run here: every job then reports it."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A question as it is asked: with its own picture, with the swapped one, or without."""

    question: Question
    swapped: bool


def prepare(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """Import vLLM and patch it where the CPU build needs it, without initialising CUDA."""
    global _fault  # noqa: PLW0603  (set once, before any job is forked)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if all(_weight(job["checkpoint"]) < _SMALL for job in jobs):
        # A small model gains nothing from a second thread, and loses much where others compute as well.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    started = time.monotonic()
    devices = {job["options"]["device"] for job in jobs}
    facts: dict[str, Any] = {"python": platform.python_version(), "patches": []}
    try:
        facts |= {"vllm": version_of_vllm(), "torch": version("torch")}
        facts["transformers"] = version("transformers")
        if "cuda" in devices:
            facts |= generate_gpu.describe()
            generate_gpu.spare_queries(facts["compute_capability"])
        if any(job["options"]["door"] == "engine" for job in jobs):
            facts["patches"] = generate_patches.apply(on_cpu=devices == {"cpu"})
            import vllm.entrypoints.llm
            import vllm.model_executor.models.qwen2_5_vl  # noqa: F401  (what each job would import)
    except Exception as error:
        _fault = generate_faults.describe(error, stage="load", origin="environment")
        facts["fault"] = _fault
    facts["import_seconds"] = round(time.monotonic() - started, 1)
    # What is imported stays: jobs need not look through it for garbage.
    gc.freeze()
    return facts


def run(params: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Ask the checkpoint folder ``params["checkpoint"]`` the exam, and hold what it says against BF16.

    ``params["baseline"]`` is the output folder of the BF16 model's job; for that job itself there is none.
    ``params["plant"]`` names a fault to plant in vLLM (:mod:`qvlfp8.worker.generate_plants`).

    Raises:
        Refused: ``not-a-checkpoint``.
    """
    from qvlfp8.reference.exam import exam_digest, make_exam

    root, options = Path(params["checkpoint"]), dict(params["options"])
    try:
        checkpoint = ck.read(root)
        digest = ck.folder_digest(root)
    except ck.NotACheckpoint as error:
        raise Refused("not-a-checkpoint", str(error)) from error
    questions = make_exam(params["exam"]["seed"], params["exam"]["per_task"])
    measured: dict[str, Any] = {
        "checkpoint_digest": digest,
        "exam_digest": exam_digest(questions),
        "options": options,
        "load": {"seconds": None, "memory_mb": None, "exception": _fault},
        "answers": [],
        "fidelity": None,
        "speed": None,
        "log_marks": [],
    }
    if _fault is None and options["device"] == "cuda" and generate_gpu.lost_by_fork():
        return fresh.run("generate", params, out)
    if _fault is None:
        with LogMarks() as marks:
            _generate(params, checkpoint, questions, out, measured)
        measured["log_marks"] = measured["log_marks"] or marks.lines
    return measured


def _generate(
    params: Mapping[str, Any],
    checkpoint: ck.Checkpoint,
    questions: Sequence[Question],
    out: Path,
    measured: dict[str, Any],
) -> None:
    """Fill ``measured`` as far as vLLM comes."""
    options = params["options"]
    load = measured["load"]
    stage: generate_faults.Stage = "load"
    prompts = list(_prompts(questions))
    try:
        with generate_plants.planted(params.get("plant")), generate_gpu.one_at_a_time(options["device"]):
            # What others need the GPU for is no time of this checkpoint: it starts here.
            started = time.monotonic()
            with _door(checkpoint, options, out) as model:
                load["seconds"] = round(time.monotonic() - started, 2)
                load |= model.facts
                stage = "generate"
                replies, seconds = _ask(model, prompts)
                if options["door"] == "engine":
                    load["memory_mb"] = generate_gpu.peak_memory_mb(options["device"])
                measured["log_marks"] = model.marks()
    except Exception as error:
        load["exception"] = generate_faults.describe(error, stage=stage)
        return
    measured["answers"] = _answers(prompts, replies)
    measured["speed"] = _speed(replies, seconds)
    from qvlfp8.worker import generate_fidelity

    baseline = params.get("baseline")
    measured["fidelity"] = generate_fidelity.compare(
        replies, out, Path(baseline) if baseline is not None else None
    )


def _door(checkpoint: ck.Checkpoint, options: Mapping[str, Any], out: Path) -> Any:
    """The model as a context manager: ``facts``, and ``ask`` (prompts in, replies out)."""
    if options["door"] == "server":
        from qvlfp8.worker.generate_server import Server

        return Server(checkpoint, options, out)
    from qvlfp8.worker.generate_engine import Engine

    return Engine(checkpoint, options)


def _prompts(questions: Sequence[Question]) -> Iterator[Prompt]:
    for question in questions:
        yield Prompt(question=question, swapped=False)
        if question.sight:
            yield Prompt(question=question, swapped=True)


def _ask(model: Any, prompts: Sequence[Prompt]) -> tuple[list[Reply], float]:
    """Ask all prompts; returns the replies in their order and the wall seconds.

    Those without a picture come first: what a broken tower leaves in the KV cache, NaN for one, can
    spoil other answers of the same engine. Of each kind one is asked before, untimed.
    """
    replies: dict[int, Reply] = {}
    seconds = 0.0
    for sight in (False, True):
        chosen = [number for number, prompt in enumerate(prompts) if prompt.question.sight is sight]
        model.ask([prompts[number] for number in chosen[:1]])
        started = time.monotonic()
        asked = model.ask([prompts[number] for number in chosen])
        seconds += time.monotonic() - started
        replies |= dict(zip(chosen, asked, strict=True))
    return [replies[number] for number in range(len(prompts))], seconds


def _answers(prompts: Sequence[Prompt], replies: Sequence[Reply]) -> list[dict[str, Any]]:
    answers: dict[str, dict[str, Any]] = {}
    for prompt, reply in zip(prompts, replies, strict=True):
        question = prompt.question
        if prompt.swapped:
            answers[question.id]["swapped_answer"] = reply.text
            continue
        answers[question.id] = {
            "id": question.id,
            "task": question.task,
            "sight": question.sight,
            "expected": question.answer,
            "answer": reply.text,
            "swapped_expected": question.swapped_answer,
            "swapped_answer": None,
            "ids": reply.ids,
        }
    return list(answers.values())


def _speed(replies: Sequence[Reply], seconds: float) -> dict[str, Any]:
    output = sum(reply.output_tokens for reply in replies)
    return {
        "seconds": round(seconds, 3),
        "questions": len(replies),
        "prompt_tokens": sum(reply.prompt_tokens for reply in replies),
        "output_tokens": output,
        "output_tokens_per_second": round(output / seconds, 2),
    }


def _weight(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
