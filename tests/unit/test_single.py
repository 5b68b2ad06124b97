"""One recipe on a model of the user's, with an engine that only says what a worker would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qvlfp8 import digest, reference, single
from qvlfp8.dataset import Options
from qvlfp8.engine import Batch, Exit
from qvlfp8.environments import Environment
from qvlfp8.errors import DatasetError
from qvlfp8.locks import Lock
from qvlfp8.progress import Progress
from qvlfp8.results import Record
from tests.unit.factory import open_project

CALIBRATION = {"modality": "text", "samples": 3, "images": 0, "tokens": 99}
READ = {"source": "data:x", "rows": 9, "revision": None, "digest": "abc", "skipped": {}, "examples": []}


class SaysSo:
    """An engine whose quantize worker measures what it is told to."""

    name = "venv"

    def __init__(self, quantized: dict[str, Any]) -> None:
        self.quantized = quantized
        self.batches: list[Batch] = []

    def built(self, environment: Environment, lock: Lock) -> bool:
        return True

    def build(self, environment: Environment, lock: Lock, log: Path) -> dict[str, Any]:
        raise AssertionError

    def facts(self, environment: tuple[Environment, Lock] | None) -> dict[str, str]:
        return {"engine": self.name}

    def run(
        self,
        environment: tuple[Environment, Lock] | None,
        batch: Batch,
        log: Path,
        on_event: Callable[[dict[str, Any]], None],
    ) -> Exit:
        self.batches.append(batch)
        job = batch.jobs[0]
        log.touch()
        result: dict[str, Any] = {"outcome": "done", "measured": {}, "failure": None}
        if batch.worker == "quantize":
            (job.out / "checkpoint").mkdir()
            on_event({"event": "progress", "job": job.id, "task": "calibrating", "done": 1, "total": 3})
            result |= self.quantized
        else:
            result["measured"] = {"tensors": 1, "bytes": 1}
        result |= {"environment": {}, "seconds": 1.0}
        (job.out / "result.json").write_text(json.dumps(result))
        return Exit(code=0)

    def stop(self) -> None:
        """Nothing runs."""


class Counts(Progress):
    def __init__(self) -> None:
        self.seen: list[tuple[str, str, int, int]] = []

    def amount(self, name: str, what: str, *, done: int, total: int) -> None:
        self.seen.append((name, what, done, total))


Quantize = Callable[..., tuple[Record, SaysSo, Counts]]


@pytest.fixture
def quantize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Quantize:
    """Quantize the reference model with the options given, by an engine that measures what is given."""
    monkeypatch.setattr("qvlfp8.judge.findings.diagnose_inspect", lambda _measured: ())
    project = open_project(tmp_path / "project")
    reference.write_random(tmp_path / "model", seed=0, tied=True)

    def go(quantized: dict[str, Any], **options: Any) -> tuple[Record, SaysSo, Counts]:
        engine, counts = SaysSo(quantized), Counts()
        request = single.prepare(
            project, "lm-fp8", str(tmp_path / "model"), tmp_path / "out", None, Options(**options)
        )
        record = single.quantize(request, engine, project.store, time_limit_s=9.0, progress=counts)
        return record, engine, counts

    return go


def test_without_a_data_set_a_step_is_what_it_was(quantize: Quantize, tmp_path: Path) -> None:
    record, engine, _ = quantize({"measured": {"calibration": CALIBRATION}})
    params = engine.batches[0].jobs[0].params
    assert set(params) == set(record.inputs) - {"lock"} | {"seed"} == {"model", "recipe", "seed"}
    assert record.digest == digest.of_json(dict(record.inputs))
    assert engine.batches[0].jobs[0].reads == (tmp_path / "model",)
    assert "--dataset" not in record.repeat


def test_a_data_set_is_read_told_and_on_record(quantize: Quantize, tmp_path: Path) -> None:
    table = tmp_path / "rows.jsonl"
    table.touch()
    measured = {"measured": {"calibration": {**CALIBRATION, "padding": 0, "cut": 0, "dataset": READ}}}
    record, engine, counts = quantize(measured, dataset=f"data:{table}", columns="text=a", samples=3)
    job = engine.batches[0].jobs[0]
    assert job.params["dataset"]["files"] == [str(table)]
    assert table in job.reads
    assert record.inputs["dataset"]["digest"] == "abc"
    assert record.inputs["dataset"]["samples"] == 3
    assert f"--dataset data:{table}" in record.repeat
    assert "--columns text=a" in record.repeat
    assert record.measured["quantize"]["calibration"]["dataset"] == READ
    assert counts.seen == [("quantize modelopt-0.47.0", "calibrating", 1, 3)]


def test_another_data_set_is_another_step(quantize: Quantize, tmp_path: Path) -> None:
    table = tmp_path / "rows.jsonl"
    table.touch()
    digests = set()
    for read in ("abc", "abd"):
        measured = {"measured": {"calibration": {**CALIBRATION, "dataset": {**READ, "digest": read}}}}
        record, _, _ = quantize(measured, dataset=f"data:{table}")
        digests.add(record.digest)
        (tmp_path / "out").rename(tmp_path / read)
    assert len(digests) == 2


def test_a_data_set_that_cannot_be_used_has_an_exit_code_of_its_own(
    quantize: Quantize, tmp_path: Path
) -> None:
    table = tmp_path / "rows.jsonl"
    table.touch()
    failure = {"kind": "dataset-unusable", "message": "data:x: too few", "where": None}
    with pytest.raises(DatasetError, match="data:x: too few"):
        quantize({"outcome": "refused", "failure": failure}, dataset=f"data:{table}")
    assert not (tmp_path / "out").exists()
