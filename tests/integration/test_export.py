"""What real ModelOpt leaves behind: a whole folder that can be served, in shards or not, or nothing."""

from __future__ import annotations

import json
from pathlib import Path

from qvlfp8 import checkpoint, reference
from qvlfp8.worker import inspect
from tests.integration.conftest import Sandbox
from tests.integration.probing import said_by

COMPANIONS = {
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
}

EXPORTS = """
import json, sys
from pathlib import Path
from qvlfp8.worker import export_modelopt, quantize

recipe, models, out = json.loads(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
export_modelopt.SHARD = "1MB"
for name, model in models.items():
    (out / name).mkdir(parents=True)
    quantize.run({"model": model, "recipe": recipe, "seed": 0}, out / name)

(out / "broken").mkdir()
save = export_modelopt.save

def full(model, folder):
    save(model, folder)
    raise OSError(28, "No space left on device")

export_modelopt.save = full
try:
    quantize.run({"model": models["untied"], "recipe": recipe, "seed": 0}, out / "broken")
except OSError as error:
    print(error.strerror, sorted(path.name for path in (out / "broken").iterdir()))
"""


def test_an_export_is_whole_or_not_there(sandbox: Sandbox, tmp_path: Path) -> None:
    project = sandbox.project()
    python = next(sandbox.store.environments.glob("modelopt-0.47.0-*")) / "bin" / "python"
    models = {name: tmp_path / "models" / name for name in ("tied", "untied")}
    for name, folder in models.items():
        reference.write_random(folder, seed=0, tied=name == "tied")
    recipe = project.matrix.recipes["lm-fp8"].meaning
    said = {name: str(folder) for name, folder in models.items()}
    lines = said_by(python, EXPORTS, json.dumps(recipe), json.dumps(said), str(tmp_path / "out"))
    assert lines[-1] == "No space left on device []"
    for name, model in models.items():
        made = tmp_path / "out" / name / "checkpoint"
        assert {path.name for path in made.parent.iterdir()} == {"checkpoint"}
        names = {path.name for path in made.iterdir()}
        assert names >= COMPANIONS | {"config.json", "hf_quant_config.json", "model.safetensors.index.json"}
        for file in COMPANIONS - {"generation_config.json", "tokenizer_config.json"}:
            assert (made / file).read_bytes() == (model / file).read_bytes(), file
        shards = {file.name for file in made.glob("*.safetensors")}
        index = json.loads((made / "model.safetensors.index.json").read_text())
        assert len(shards) > 1
        assert shards == set(index["weight_map"].values())
        tensors = checkpoint.read(made).tensors
        assert set(index["weight_map"]) == set(tensors)
        assert ("lm_head.weight" in tensors) == (name == "untied")
        params = {"checkpoint": str(made), "recipe": recipe}
        assert inspect.run(params, tmp_path)["problems"] == []
