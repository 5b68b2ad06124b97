"""`qvlfp8 repair` on real ModelOpt exports, judged by inspect and by the loader of every vLLM that is built.

Two recipes whose exports fail: `vlm-fp8-naive` (KV cache scales for the vision tower) and `lm-fp8` (an
exclusion that some versions do not match: blind). Every quantize environment that was run gives one of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from qvlfp8 import checkpoint, repair
from qvlfp8.judge import Verdict
from qvlfp8.mending import carry_out
from qvlfp8.project import Project
from tests.integration.asking import Asker

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
    verdicts = asker.ask("inspect", None)
    assert {name: _short(verdict) for name, verdict in verdicts.items()} == dict.fromkeys(verdicts, "pass")


def _serve() -> list[object]:
    project = Project.open(ROOT / "matrix.yaml")
    plain = [e for e in project.matrix.file.serve if e.device == "cuda" and e.label is None]
    return [pytest.param(e.id, e.default, id=e.id) for e in plain]


@pytest.mark.parametrize(("serve", "default"), _serve())
def test_every_loader_takes_what_was_mended(
    shipped: Project, asker: Asker, serve: str, *, default: bool
) -> None:
    cell = shipped.cells(only=[f"lm-fp8/modelopt-0.47.0/seeing-untied/{serve}"], everything=True)[0]
    if not default and not asker.built(cell):
        pytest.skip("not built: the default slice does without it")
    verdicts = asker.ask("preflight", cell)
    expected = {
        name: f"fail {KV}" if serve in CANNOT_PLACE_KV_SCALES and not name.endswith(" without") else "pass"
        for name in verdicts
    }
    assert {name: _short(verdict) for name, verdict in verdicts.items()} == expected


def _short(verdict: Verdict) -> str:
    """The status, and what made it so."""
    causes = sorted(finding.id for finding in verdict.findings if finding.severity != "note")
    return " ".join([verdict.status, *causes])
