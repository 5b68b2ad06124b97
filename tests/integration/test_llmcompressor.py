"""Real llm-compressor, in one process: it imports in 10 s; an environment that is not there is built."""

from __future__ import annotations

import json
from pathlib import Path

from qvlfp8 import reference
from qvlfp8.engine.venv import VenvEngine
from qvlfp8.locks import read_lock
from qvlfp8.worker import inspect
from tests.integration import families
from tests.integration.conftest import Sandbox
from tests.integration.probing import said_by

ENVIRONMENT = "llmcompressor-0.14.0.1"

# What people wrote before transformers 4.52 called the tower model.visual: it no longer names anything.
QUANTIZES = """
import json, sys
from pathlib import Path
from qvlfp8.worker import export_llmcompressor, quantize
from qvlfp8.worker.protocol import Refused

recipe, models, out = json.loads(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
for model in models:
    folder = out / Path(model).name
    folder.mkdir(parents=True)
    quantize.run({"model": model, "recipe": recipe, "seed": 0}, folder)
export_llmcompressor._IGNORED = {"vision": ("re:^visual.*",)}
try:
    quantize.run({"model": models[0], "recipe": recipe, "seed": 0}, out)
except Refused as refused:
    print(refused.kind, refused)
assert not (out / "checkpoint").exists()
"""


def test_llm_compressor_quantizes_and_a_pattern_that_no_longer_matches_is_refused(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    project = sandbox.project()
    environment = next(e for e in project.matrix.file.quantize if e.id == ENVIRONMENT)
    lock = read_lock(project.matrix, environment)
    settings = project.matrix.file.locks
    engine = VenvEngine(sandbox.store, python=settings.python, torch=settings.torch, announce=lambda _: None)
    if not engine.built(environment, lock):
        engine.build(environment, lock, tmp_path / "build.txt")
    python = sandbox.store.environments / f"{ENVIRONMENT}-{lock.digest[:12]}" / "bin" / "python"
    reference.write_random(tmp_path / "qwen2_5_vl", seed=0, tied=False)
    families.write_unquantized(tmp_path / "qwen3_vl", "qwen3_vl")
    models = [str(tmp_path / name) for name in ("qwen2_5_vl", "qwen3_vl")]
    recipe = project.matrix.recipes["llmcompressor-fp8-dynamic"].meaning
    lines = said_by(python, QUANTIZES, json.dumps(recipe), json.dumps(models), str(tmp_path / "out"))
    for name, (language, vision) in {"qwen2_5_vl": (21, 17), "qwen3_vl": (7, 12)}.items():
        params = {"checkpoint": str(tmp_path / "out" / name / "checkpoint"), "recipe": recipe}
        found = inspect.run(params, tmp_path)
        assert found["problems"] == [], name
        assert found["format"] == "compressed-tensors-fp8"
        assert found["scope_quantized"] == {"language_model": [language, language], "vision": [0, vision]}
    assert lines[-1].startswith("recipe-not-honoured recipe ")
    assert "17 modules that it does not name are quantized" in lines[-1]
