"""The static answer and vLLM's own loader, side by side over random checkpoints: they must find the same.

`QVLFP8_EXAMPLES` says how many checkpoints each environment is asked about; the count, the share that the
contract says nothing of, and how often each finding was seen are printed (`pytest -s`).
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from qvlfp8 import checkpoint
from qvlfp8.contract.answers import NotRecorded
from qvlfp8.contract.data import Contract, load_all
from qvlfp8.contract.predict import predict
from qvlfp8.contract.subject import subject
from qvlfp8.environments import ServeEnvironment
from qvlfp8.findings import Finding, diagnose_preflight
from qvlfp8.locks import find_lock
from qvlfp8.project import Project
from qvlfp8.worker.contract import write_checkpoint
from tests.contract_cases import Made, checkpoints

EXAMPLES = int(os.environ.get("QVLFP8_EXAMPLES", "120"))

MOST_UNKNOWN = 0.02
"""Share of the random checkpoints about which the contract may say nothing."""

SERVER = Path(__file__).with_name("loader_server.py")
ROOT = Path(__file__).parents[2]


class Loader:
    """vLLM's loader in its own environment, asked one checkpoint at a time."""

    def __init__(self, folder: Path, log: Path) -> None:
        variables = {"VLLM_CACHE_ROOT": str(folder / "cache" / "vllm"), "OMP_NUM_THREADS": "1"}
        self._log = log.open("w")
        self._process = subprocess.Popen(
            [str(folder / "bin" / "python"), "-P", str(SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **variables},
        )
        self.facts = self._answer()
        assert "fault" not in self.facts, self.facts["fault"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the loader ended: see {self._log.name}"
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, made: Made, architectures: Sequence[Any] | None = None) -> dict[str, Any]:
        """What preflight measures; ``architectures`` as the contract's worker takes them."""
        assert self._process.stdin is not None
        case = {"files": made.files, "tensors": made.tensors, "architectures": architectures}
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()


def environments() -> list[Any]:
    project = Project.open(ROOT / "matrix.yaml")
    return [pytest.param(e, id=e.id) for e in project.matrix.file.serve if e.label is None]


@pytest.fixture
def folder(request: pytest.FixtureRequest, shipped: Project) -> Path:
    environment: ServeEnvironment = request.param
    lock = find_lock(shipped.matrix, environment)
    place = shipped.store.environments / f"{environment.id}-{lock.digest[:12]}"
    if not (place / "complete.json").exists():
        pytest.skip(f"{environment.id} is not built")
    return place


def contract_of(environment: str) -> Contract:
    return next(contract for contract in load_all() if contract.environment == environment)


def ids(findings: list[Finding]) -> list[str]:
    return sorted({finding.id for finding in findings})


def static(made: Made, contract: Contract, scratch: Path) -> list[str] | str:
    """The ids of the static answer, or why there is none."""
    write_checkpoint(scratch, made.files, made.tensors)
    try:
        return ids(predict(subject(checkpoint.read(scratch)), contract))
    except NotRecorded as error:
        return str(error)
    finally:
        for file in scratch.iterdir():
            file.unlink()
        scratch.rmdir()


@pytest.mark.parametrize("folder", environments(), indirect=True)
def test_the_static_answer_is_vllms(folder: Path, tmp_path: Path) -> None:
    contract = contract_of(folder.name.rpartition("-")[0])
    seen: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    with Loader(folder, tmp_path / "log") as loader:

        @settings(
            max_examples=EXAMPLES, deadline=None, database=None, derandomize=EXAMPLES <= 200,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(checkpoints())
        def agree(made: Made) -> None:
            measured = loader.ask(made)
            found = ids(diagnose_preflight(measured))
            answer = static(made, contract, tmp_path / "checkpoint")
            seen.update(found or ["none"])
            seen["examples"] += 1
            if isinstance(answer, str):
                unknown[answer] += 1
            else:
                assert answer == found

        agree()
    print(f"\n{contract.environment}: {seen['examples']} examples, {unknown.total()} not recorded")
    print(f"  {dict(seen.most_common())}")
    assert unknown.total() <= MOST_UNKNOWN * seen["examples"] + 1, unknown.most_common(5)
