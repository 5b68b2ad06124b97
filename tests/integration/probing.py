"""Run a script of these tests by the Python of an environment that `nox -s matrix` built."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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


NAIVE, GOOD = "vlm-fp8-naive modelopt-0.41.0", "vlm-fp8 modelopt-0.41.0"
"""Exports that the default slice of the matrix makes, with a configuration that every vLLM reads."""

MISSPELLED = "lm-fp8 misspelled"
"""The export of ModelOpt 0.41.0 with its exclusion spelled as ModelOpt 0.37.0 does, and no vLLM reads it."""


def exports(shipped: Project, recipes: Sequence[str], made: Path) -> dict[str, str]:
    """Every export of these recipes that the store has, by recipe and quantize environment.

    Also :data:`MISSPELLED`, which is written below ``made``.
    """
    found = {}
    for cell in shipped.cells(only=["*/seeing-untied/vllm-0.26.0"], everything=True):
        if cell.recipe.id not in recipes or cell.quantize.label:
            continue
        plan = shipped.plan([cell], shipped.locks([cell]))
        folder = shipped.store.entry("quantize", plan.step(cell, "quantize").digest) / "checkpoint"
        if folder.is_dir():
            found[f"{cell.recipe.id} {cell.quantize.id}"] = str(folder.resolve())
    source = found.get("lm-fp8 modelopt-0.41.0")
    assert source, "run `nox -s matrix` first"
    found[MISSPELLED] = str(_misspelled(Path(source), made / "misspelled"))
    return found


def _misspelled(source: Path, out: Path) -> Path:
    shutil.copytree(source, out)
    for name in ("config.json", "hf_quant_config.json"):
        text = (out / name).read_text()
        assert '"model.visual*"' in text
        (out / name).chmod(0o644)
        (out / name).write_text(text.replace('"model.visual*"', '"model.layers.visual*"'))
    return out


def said_by(python: Path, code: str, *arguments: str) -> list[str]:
    """The lines that a program prints, run by an environment's Python with the repository importable."""
    done = subprocess.run(
        [str(python), "-c", code, *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
        # As a worker that quantizes has it; a second thread would wait for the test beside this one.
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


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
