"""The static answer and vLLM's own loader, side by side over random checkpoints: they must find the same.

`QVLFP8_EXAMPLES` says how many checkpoints each environment is asked about; the count, the share that the
contract says nothing of, and how often each finding was seen are printed (`pytest -s`). By default they are
few and the same every time; `nox -s nightly` asks about many that are new.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from qvlfp8 import checkpoint
from qvlfp8.contract.answers import NotRecorded
from qvlfp8.contract.data import Contract, load_all
from qvlfp8.contract.predict import predict
from qvlfp8.contract.subject import subject
from qvlfp8.contract.verdict import verdicts
from qvlfp8.findings import Finding, diagnose_preflight
from qvlfp8.project import Project
from qvlfp8.report.table import view_cells
from qvlfp8.survey import survey
from qvlfp8.worker.contract import write_checkpoint
from tests.contract_cases import Made, checkpoints
from tests.contract_found import FOUND
from tests.integration.loader import ROOT, THOROUGH, Hosts

EXAMPLES = int(os.environ.get("QVLFP8_EXAMPLES", "400" if THOROUGH else "40"))

MOST_UNKNOWN = 0.02
"""Share of the random checkpoints about which the contract may say nothing."""


def environments() -> list[str]:
    project = Project.open(ROOT / "matrix.yaml")
    return [environment.id for environment in project.matrix.file.serve if environment.recordable]


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


@pytest.mark.parametrize("environment", environments())
def test_the_static_answer_is_vllms(hosts: Hosts, environment: str, tmp_path: Path) -> None:
    host = hosts.of(environment)
    if host is None:
        pytest.skip(f"{environment} is not built")
    contract = contract_of(environment)
    seen: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    with host.cases() as ask:
        for name, made in FOUND.items():
            assert ids(diagnose_preflight(ask(made))) == static(made, contract, tmp_path / "it"), name

        @settings(
            max_examples=EXAMPLES, deadline=None, database=None, derandomize=EXAMPLES <= 200,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(checkpoints())
        def agree(made: Made) -> None:
            measured = ask(made)
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


def test_the_static_answer_is_what_the_matrix_found(shipped: Project) -> None:
    cells = [cell for cell in shipped.cells(everything=True) if cell.serve.recordable]
    plan = shipped.plan(cells, shipped.locks(cells))
    compared = 0
    wrong: dict[str, Any] = {}
    for cell in cells:
        made, asked = plan.step(cell, "quantize"), plan.step(cell, "preflight")
        record = shipped.lookup(asked) if asked else None
        folder = shipped.store.entry("quantize", made.digest) / "checkpoint" if made else None
        if record is None or record.status == "error" or folder is None or not folder.is_dir():
            continue
        found = sorted({finding.id for finding in record.findings})
        answer = ids(predict(subject(checkpoint.read(folder)), contract_of(cell.serve.id)))
        compared += 1
        if answer != found:
            wrong[cell.id] = {"vllm": found, "static": answer}
    print(f"\n{compared} checkpoints that ModelOpt exported, each in one vLLM")
    assert compared >= 40, "run `nox -s matrix` first"
    assert wrong == {}


def test_the_static_answer_is_what_gpus_saw(shipped: Project) -> None:
    """Committed runs on GPUs of the checkpoints that were exported here: refused, blind, or right answers."""
    cells = [cell for cell in shipped.cells(everything=True) if cell.serve.recordable]
    plan = shipped.plan(cells, shipped.locks(cells))
    compared: Counter[str] = Counter()
    wrong = []
    for name in shipped.evidence.accelerators:
        seen = survey(plan, shipped.evidence.at(name).record)
        for view in view_cells(plan, seen, shipped.matrix.bounds):
            load, text, image = (view.stage(stage) for stage in ("load", "text", "image"))
            made = plan.step(view.cell, "quantize")
            folder = shipped.store.entry("quantize", made.digest) / "checkpoint" if made else None
            if load is None or load.status not in {"pass", "fail"} or not (folder and folder.is_dir()):
                continue
            assert text is not None
            assert image is not None
            refused = load.status == "fail" or "not-generative" in text.findings
            saw = "fails" if refused else "blind" if "blind" in image.findings else "works"
            (verdict,) = verdicts(subject(checkpoint.read(folder)), [contract_of(view.cell.serve.id)])
            compared[saw] += 1
            if verdict.worth != saw:
                wrong.append((name, view.cell.id, saw, verdict.worth))
    print(f"\nruns on GPUs: {dict(compared)}")
    assert set(compared) == {"works", "blind", "fails"}, "run `nox -s matrix` first"
    assert wrong == []
