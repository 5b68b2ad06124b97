"""Run a script of these tests by the Python of an environment that `nox -s matrix` built."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from qvlfp8.engine.launch import kept_variables
from qvlfp8.project import Project

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "plugin"


def python_of(shipped: Project, environment: str) -> Path | None:
    """The Python of a serve or quantize environment, by its id; None if it is not built."""
    cells = shipped.cells(everything=True)
    ids = {cell.serve.id: cell for cell in cells} | {cell.quantize.id: cell for cell in cells}
    cell = ids[environment]
    lock = shipped.locks([cell])[environment, "cpu"]
    folder = shipped.store.environments / f"{environment}-{lock.digest[:12]}"
    return folder / "bin" / "python" if (folder / "complete.json").exists() else None


OLDEST = "modelopt-0.37.0"
"""The ModelOpt whose exclusions no vLLM before 0.13 matches."""


def exports(shipped: Project, recipes: Sequence[str]) -> dict[str, str]:
    """Every export of these recipes that the store has, by recipe and quantize environment.

    Skips the test where those of an old ModelOpt are not there: the matrix's default slice makes none.
    """
    found = {}
    for cell in shipped.cells(only=["*/seeing-untied/vllm-0.26.0"], everything=True):
        if cell.recipe.id not in recipes or cell.quantize.label:
            continue
        plan = shipped.plan([cell], shipped.locks([cell]))
        folder = shipped.store.entry("quantize", plan.step(cell, "quantize").digest) / "checkpoint"
        if folder.is_dir():
            found[f"{cell.recipe.id} {cell.quantize.id}"] = str(folder.resolve())
    if missing := sorted({f"{recipe} {OLDEST}" for recipe in recipes} - set(found)):
        pytest.skip(f"there is no export of {missing[0]}: run `nox -s matrix -- --all`")
    return found


def probe(
    script: str, python: Path, job: Mapping[str, Any], folder: Path, path: Sequence[Path], **variables: str
) -> dict[str, Any]:
    """What the script answers; ``path`` is all that it can import beside the environment's packages."""
    folder.mkdir(parents=True, exist_ok=True)
    asked, answer = folder / "job.json", folder / "result.json"
    asked.write_text(json.dumps(job))
    with (folder / "log.txt").open("w") as log:
        done = subprocess.run(
            [python, Path(__file__).with_name(script), asked, answer],
            stdout=log, stderr=log, cwd=folder, timeout=600, check=False,
            env={
                **kept_variables(),
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": "1",
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONPATH": os.pathsep.join(map(str, path)),
                # As the engine has it: what vLLM keeps of one version does not serve another.
                "VLLM_CACHE_ROOT": str(folder / "cache"),
                **variables,
            },
        )  # fmt: skip
    assert done.returncode == 0, (folder / "log.txt").read_text()[-3000:]
    result: dict[str, Any] = json.loads(answer.read_text())
    return result
