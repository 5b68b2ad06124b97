"""Qwen2-VL and Qwen3-VL, quantized by real ModelOpt: one worker, so that ModelOpt is imported once (10 s)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

from qvlfp8.engine import Batch, Job
from qvlfp8.engine.venv import VenvEngine
from qvlfp8.locks import read_lock
from qvlfp8.worker import inspect
from tests.integration import families
from tests.integration.conftest import Sandbox

ENVIRONMENT = "modelopt-0.47.0"
RECIPES = ("lm-fp8", "vlm-fp8")
LINEARS = {"qwen2_vl": (7, 10), "qwen3_vl": (7, 12)}
"""Of the language model, and of the vision tower."""


def test_other_families_are_quantized_and_pass_inspection(sandbox: Sandbox, tmp_path: Path) -> None:
    project = sandbox.project()
    environment = next(e for e in project.matrix.file.quantize if e.id == ENVIRONMENT)
    locks = project.matrix.file.locks
    engine = VenvEngine(sandbox.store, python=locks.python, torch=locks.torch, announce=lambda _: None)
    jobs = []
    for family in get_args(families.Family):
        families.write_unquantized(tmp_path / family, family)
        for recipe in RECIPES:
            meaning = project.matrix.recipes[recipe].meaning
            out = tmp_path / f"{family} {recipe}"
            out.mkdir()
            params = {"model": str(tmp_path / family), "recipe": meaning, "seed": 0}
            jobs.append(Job(id=out.name, params=params, out=out))
    batch = Batch(worker="quantize", jobs=jobs, time_limit_s=120)
    lock = read_lock(project.matrix, environment)
    engine.run((environment, lock), batch, tmp_path / "log.txt", lambda _: None)
    for job in jobs:
        result = json.loads((job.out / "result.json").read_text())
        assert result["outcome"] == "done", (job.id, result)
        params = {"checkpoint": str(job.out / "checkpoint"), "recipe": job.params["recipe"]}
        found = inspect.run(params, job.out)
        assert found["problems"] == [], job.id
        language, vision = LINEARS[job.id.split()[0]]
        seen = vision if "vision" in job.params["recipe"]["scope"] else 0
        assert found["scope_quantized"] == {"language_model": [language, language], "vision": [seen, vision]}
        assert found["kv_scales"]["language_model"] == 2
