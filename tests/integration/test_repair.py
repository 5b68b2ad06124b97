"""`qvlfp8 repair` on real ModelOpt exports, judged by inspect and by the loader of every vLLM that is built.

Two recipes whose exports fail: `vlm-fp8-naive` (KV cache scales for the vision tower) and `lm-fp8` (an
exclusion that some versions do not match: blind). Every quantize environment that was run gives one of each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from qvlfp8 import checkpoint, repair
from qvlfp8.engine import Batch, Job
from qvlfp8.engine.venv import VenvEngine
from qvlfp8.judge import Verdict
from qvlfp8.mending import carry_out
from qvlfp8.project import Project
from qvlfp8.scoring import Bounds, score
from tests.integration.asking import Asker
from tests.integration.loader import THOROUGH, Hosts

ROOT = Path(__file__).parents[2]
KV = "language-kv-scale-unsupported"
CANNOT_PLACE_KV_SCALES = {"vllm-0.10.0", "vllm-0.24.0"}
"""As matrix.yaml expects of every recipe with an FP8 KV cache; `--without-kv-cache` is for these."""


def _exports(shipped: Project) -> Iterator[tuple[str, Path]]:
    """Every export of the two recipes that the store has, by recipe and quantize environment."""
    for cell in shipped.cells(only=["*/seeing-untied/vllm-0.26.0"], everything=True):
        if cell.recipe.id not in {"vlm-fp8-naive", "lm-fp8"} or cell.quantize.label:
            continue
        plan = shipped.plan([cell], shipped.locks([cell]))
        folder = shipped.store.entry("quantize", plan.step(cell, "quantize").digest) / "checkpoint"
        if folder.is_dir():
            yield f"{cell.recipe.id} {cell.quantize.id}", folder


@pytest.fixture(scope="session")
def mended(shipped: Project, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """What repair makes of each, with the KV cache and without."""
    root = tmp_path_factory.mktemp("mended")
    made = {}
    for name, export in _exports(shipped):
        for without in (False, True):
            out = root / f"{name} without" if without else root / name
            planned = repair.plan(checkpoint.read(export), without_kv_cache=without)
            carry_out(planned, out)
            made[out.name] = out
    assert len(made) >= 8, "run `nox -s matrix` first"
    return made


@pytest.fixture(scope="session")
def asker(shipped: Project, mended: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Asker:
    return Asker(shipped, mended, tmp_path_factory.mktemp("asked"))


def test_inspect_passes_what_was_mended(asker: Asker) -> None:
    verdicts = asker.inspect()
    assert {name: _short(verdict) for name, verdict in verdicts.items()} == dict.fromkeys(verdicts, "pass")


def _serve() -> list[object]:
    project = Project.open(ROOT / "matrix.yaml")
    plain = [e for e in project.matrix.file.serve if e.recordable]
    return [pytest.param(e.id, e.default, id=e.id) for e in plain]


@pytest.mark.parametrize(("serve", "default"), _serve())
def test_every_loader_takes_what_was_mended(hosts: Hosts, asker: Asker, serve: str, *, default: bool) -> None:
    host = hosts.of(serve)
    if not default and host is None:
        pytest.skip("not built: the default slice does without it")
    verdicts = asker.preflight(serve, host)
    expected = {
        name: f"fail {KV}" if serve in CANNOT_PLACE_KV_SCALES and not name.endswith(" without") else "pass"
        for name in verdicts
    }
    assert {name: _short(verdict) for name, verdict in verdicts.items()} == expected


def _short(verdict: Verdict) -> str:
    """The status, and what made it so."""
    causes = sorted(finding.id for finding in verdict.findings if finding.severity != "note")
    return " ".join([verdict.status, *causes])


SEEN = ("vlm-fp8-naive modelopt-0.47.0", "lm-fp8 modelopt-0.47.0 without")
"""Each recipe and each form of KV cache once: a run of vLLM takes half a minute. Loaders take them all."""


def test_what_was_mended_sees(shipped: Project, mended: Mapping[str, Path], tmp_path: Path) -> None:
    """Answers of vLLM's CPU build held against BF16's; that of ModelOpt 0.37.0, if it is there, was blind."""
    of_old = [name for name in mended if "modelopt-0.37.0" in name]
    asked = [name for name in mended if "modelopt-0.47.0" in name] if THOROUGH else list(SEEN)
    asked += of_old
    assert set(SEEN) <= set(asked) <= mended.keys()
    cell = shipped.cells(only=["vlm-fp8/modelopt-0.47.0/seeing-untied/vllm-0.32.0-cpu"])[0]
    plan = shipped.plan([cell], shipped.locks([cell]))
    step = plan.step(cell, "image")
    (baseline,) = (need for need in step.needs if plan.steps[need].stage == "generate")
    against = shipped.store.entry("generate", baseline)
    jobs = []
    for name in asked:
        out = tmp_path / name.replace(" ", "-")
        out.mkdir()
        params = {"checkpoint": str(mended[name]), "baseline": str(against), **step.params}
        jobs.append(Job(id=name, params=params, out=out))
    locks = shipped.matrix.file.locks
    engine = VenvEngine(shipped.store, python=locks.python, torch=locks.torch, announce=lambda _: None)
    lock = shipped.locks([cell])[cell.serve.id, "cpu"]
    batch = Batch(worker="generate", jobs=jobs, time_limit_s=300, threads=1)
    engine.run((cell.serve, lock), batch, tmp_path / "log", lambda _event: None)
    bf16 = _measured(against)
    for job in jobs:
        stages = score(_measured(job.out), bf16, Bounds())
        assert {
            stage: scored.status for stage, scored in stages.items() if stage != "speed"
        } == dict.fromkeys(("load", "text", "image", "fidelity"), "pass"), job.id


def _measured(folder: Path) -> Mapping[str, Any]:
    measured: Mapping[str, Any] = json.loads((folder / "result.json").read_text())["measured"]
    return measured
