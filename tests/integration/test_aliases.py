"""A recipe under a name of ModelOpt's switches on what ModelOpt's own recipe of that name does."""

from __future__ import annotations

import json
from pathlib import Path

from qvlfp8 import reference
from tests.integration.conftest import Sandbox
from tests.integration.probing import said_by

SWITCHES = """
import copy, json, sys
from importlib.resources import files
import torch
import modelopt.torch.quantization as mtq
from modelopt.recipe import load_recipe
from modelopt.torch.quantization.nn import TensorQuantizer
from transformers import AutoModelForImageTextToText
from qvlfp8.quant_cfg import quant_cfg
from qvlfp8.worker import audit

def switched_on(model, config, prefix):
    config = {"quant_cfg": config["quant_cfg"], "algorithm": None}
    mtq.quantize(model, config)
    return {
        prefix + name: [*map(str, (m.num_bits, m.axis, m.block_sizes)), getattr(m, "_use_constant_amax", 0)]
        for name, m in model.named_modules() if isinstance(m, TensorQuantizer) and m.is_enabled
    }

base = AutoModelForImageTextToText.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
places = audit.places(base)
said = {}
for alias, recipe in json.loads(sys.argv[2]).items():
    found = files("modelopt_recipes") / "general" / "ptq" / f"{alias}.yaml"
    if not found.is_file():
        continue
    theirs = load_recipe(f"general/ptq/{alias}").quantize.model_dump(exclude_unset=True)
    ours, upstream = copy.deepcopy(base), copy.deepcopy(base)
    # As hf_ptq.py does: of a vision-language model, the language model alone.
    part = places["language_model"]
    said[alias] = [
        switched_on(ours, quant_cfg(recipe, "0.47.0", places), ""),
        switched_on(upstream.get_submodule(part.rstrip(".")), theirs, part),
    ]
print("\\n" + json.dumps(said))
"""


def test_aliases_mean_what_modelopt_means_by_them(sandbox: Sandbox, tmp_path: Path) -> None:
    recipes = sandbox.project().matrix.recipes
    aliases = {alias: recipe.meaning for recipe in recipes.values() for alias in recipe.aliases}
    python = next(sandbox.store.environments.glob("modelopt-0.47.0-*")) / "bin" / "python"
    reference.write_random(tmp_path / "model", seed=0, tied=False)
    said = json.loads(said_by(python, SWITCHES, str(tmp_path / "model"), json.dumps(aliases))[-1])
    assert set(said) == {"fp8_default-kv_fp8", "fp8_default-kv_fp8_cast", "nvfp4_default-kv_fp8"}
    for alias, (ours, theirs) in said.items():
        assert ours, alias
        assert ours == theirs, alias
