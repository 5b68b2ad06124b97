"""What vLLM versions did with the samples, and which form each sample stands for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from qvlfp8.contract.form import Form
from qvlfp8.contract.verdict import Worth

__all__ = ["FOLDER", "SAMPLES", "Answer", "FormRecords", "forms", "load_all", "save"]

FOLDER = Path(__file__).with_name("forms_recorded")

SAMPLES = Path(__file__).with_name("samples.json")
"""The samples that were shown to vLLM; :mod:`qvlfp8.contract.samples` says what it holds."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one vLLM made of one sample.

    ``findings``: those that count against it, each with the first line of its evidence. ``reason``: why the
    worth is unknown.
    """

    worth: Worth
    findings: tuple[tuple[str, str], ...] = ()
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class FormRecords:
    """What was recorded of one serve environment; ``answers`` are by the samples' names."""

    environment: str
    vllm: str
    transformers: str
    lock: str
    answers: Mapping[str, Answer]


def save(records: FormRecords, folder: Path = FOLDER) -> Path:
    """Write records as ``ENVIRONMENT.json``: the samples by what became of them."""
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[Answer, list[str]] = {}
    for name, answer in sorted(records.answers.items()):
        groups.setdefault(answer, []).append(name)
    content = asdict(records) | {
        "answers": [{**asdict(answer), "samples": names} for answer, names in groups.items()]
    }
    file = folder / f"{records.environment}.json"
    file.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return file


def load(file: Path) -> FormRecords:
    """Read records."""
    content = json.loads(file.read_bytes())
    answers = {
        name: Answer(
            worth=group["worth"],
            findings=tuple((kind, evidence) for kind, evidence in group["findings"]),
            reason=group["reason"],
        )
        for group in content["answers"]
        for name in group["samples"]
    }
    return FormRecords(**{**content, "answers": answers})


@cache
def load_all(folder: Path = FOLDER) -> tuple[FormRecords, ...]:
    """All records that ship with this package, oldest vLLM first."""
    from packaging.version import Version

    found = [load(file) for file in folder.glob("*.json")]
    return tuple(sorted(found, key=lambda records: (Version(records.vllm), records.environment)))


@cache
def forms() -> Mapping[Form, str]:
    """The forms that were shown to vLLM, and the sample of each."""
    content = json.loads(SAMPLES.read_bytes())
    return {Form(**held["form"]): name for name, held in content["samples"].items()}
