"""Record what vLLM does with the samples: one small checkpoint of each form."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qvlfp8.contract.form_data import Answer, FormRecords
from qvlfp8.contract.recording import answers_of
from qvlfp8.contract.samples import ARCHITECTURES, Sample, samples
from qvlfp8.contract.verdict import failing, worth_of
from qvlfp8.engine import Engine
from qvlfp8.environments import ServeEnvironment
from qvlfp8.families import FAMILIES
from qvlfp8.findings import diagnose_preflight
from qvlfp8.locks import Lock
from qvlfp8.store import writing
from qvlfp8.structure import MODEL_TYPE

__all__ = ["answer", "controlled", "record", "write"]

MOST_CHARACTERS = 160
"""Of a line of evidence, or of a reason."""


_OF_A_GPU = re.compile(r"platform|kernel|backend|capability|blackwell|hopper|cuda|gpu", re.IGNORECASE)
"""In a refusal: the machine is at fault, which is none of a checkpoint's."""


def record(
    environment: ServeEnvironment, lock: Lock, engine: Engine, work: Path, advance: Callable[[int, int], None]
) -> FormRecords:
    """Show every sample to an environment that is built.

    Args:
        environment: the environment.
        lock: its lock.
        engine: where it runs.
        work: a folder for the worker's files; what is in it is overwritten.
        advance: is told how many samples are answered, of how many.

    Raises:
        WorkerError: the environment cannot judge.
        QvlError: the engine's, by class.
    """
    shown = samples()
    with writing(work):
        work.mkdir(parents=True, exist_ok=True)
        params = write(work, shown)
    observed, result = answers_of(
        environment, lock, engine, work, params, lambda done: advance(done, len(shown))
    )
    answers = {
        sample.name: answer(sample, measured) for sample, measured in zip(shown, observed, strict=True)
    }
    return FormRecords(
        environment=environment.id,
        vllm=environment.vllm,
        transformers=result["environment"]["transformers"],
        lock=lock.digest,
        answers=controlled(shown, answers),
    )


def controlled(shown: Sequence[Sample], answers: Mapping[str, Answer]) -> dict[str, Answer]:
    """The answers, where some sample of the family works; of a family of which none does, nothing is known.

    It may be one that this vLLM has no class for, or that it builds on a GPU only. Of Qwen2.5-VL preflight's
    own controls have worked.
    """
    found = dict(answers)
    for family in {sample.family for sample in shown} - {MODEL_TYPE}:
        names = [sample.name for sample in shown if sample.family == family]
        if not any(answers[name].worth == "works" for name in names):
            title = FAMILIES[family].title
            reason = f"no sample of {title} loads in this vLLM without a GPU, so nothing is known of it"
            found |= dict.fromkeys(names, Answer(worth="unknown", reason=reason))
    return found


def write(folder: Path, shown: Sequence[Sample]) -> Mapping[str, Any]:
    """Write what the worker reads; returns its parameters."""
    bases, cases = folder / "bases.json", folder / "cases.jsonl"
    bases.write_text(json.dumps({"empty": {"files": {}, "tensors": {}}}), encoding="utf-8")
    with cases.open("w", encoding="utf-8") as stream:
        for sample in shown:
            case = {"base": "empty", "files": sample.files(), "put": sample.tensors()}
            stream.write(json.dumps(case) + "\n")
    return {"bases": str(bases), "cases": str(cases), "architectures": ARCHITECTURES}


def answer(sample: Sample, measured: Mapping[str, Any]) -> Answer:
    """What of an observation of a sample is kept."""
    if "refused_kind" in measured:
        return Answer(worth="unknown", reason=f"preflight refuses it: {measured['refused_kind']}")
    if (reason := _of_the_machine(measured["exception"])) is not None:
        return Answer(worth="unknown", reason=reason[:MOST_CHARACTERS])
    if any(way.startswith("nvfp4") for way in sample.parts.values()) and "fused_scales" in measured:
        # vLLM takes the largest of a fused layer's scales. FP8's that were not written are the lowest number;
        # NVFP4's hold whatever was in memory.
        partly = [*measured["partly_written"], *measured["fused_scales"]]
        measured = {**measured, "partly_written": partly, "fused_scales": []}
    findings = diagnose_preflight(measured)
    return Answer(
        worth=worth_of(findings),
        findings=tuple((finding.id, finding.evidence[0][:MOST_CHARACTERS]) for finding in failing(findings)),
    )


def _of_the_machine(error: Mapping[str, Any] | None) -> str | None:
    """What only a GPU can answer."""
    if error is None:
        return None
    # The scheme that takes FP8's place on a machine that cannot compute in it.
    stood_in = "w8a16_fp8" in (error["where"] or "")
    if error["origin"] == "checkpoint" and not stood_in and not _OF_A_GPU.search(error["message"]):
        return None
    return f"vLLM's loader does not say so without a GPU: {error['type']}: {error['message'].strip()}"
