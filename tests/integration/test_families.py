"""The families' shapes against transformers' own classes, in every ModelOpt environment that is built.

The classes are made on the meta device. Both sides get the same config.json: the one that the class writes,
and the flat one that is published.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from qvlfp8 import families
from qvlfp8.project import Project
from qvlfp8.structure import canonical, spellings
from tests.integration.probing import said_by

TEXT = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
}  # fmt: skip
TEXT3 = TEXT | {"rope_scaling": {"rope_type": "default", "mrope_section": [2, 3, 3]}}
CONFIGS: Mapping[str, dict[str, Any]] = {
    "qwen2_vl flat": TEXT
    | {"vision_config": {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 64}},
    "qwen2_vl nested": {
        "text_config": TEXT,
        "vision_config": {"depth": 1, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 3, "patch_size": 4},
    },
    "qwen2_vl default": {},
    "qwen2_5_vl flat": TEXT | {"vision_config": {"depth": 2, "hidden_size": 32, "num_heads": 2}},
    "qwen2_5_vl default": {},
    "qwen3_vl nested": {
        "text_config": TEXT3 | {"head_dim": 24},
        "vision_config": {
            "depth": 3, "hidden_size": 32, "num_heads": 2, "intermediate_size": 44, "out_hidden_size": 64,
            "deepstack_visual_indexes": [0, 2], "num_position_embeddings": 9, "spatial_merge_size": 3,
        },
    },
    "qwen3_vl biased": {
        "text_config": TEXT3 | {"attention_bias": True},
        "vision_config": {"depth": 2, "deepstack_visual_indexes": []},
    },
    # transformers 4.57 cannot make the class without these two, which every published config has.
    "qwen3_vl default": {"text_config": {"rope_scaling": TEXT3["rope_scaling"]}},
}  # fmt: skip

REAL = """
import json, sys
import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

found = {}
for name, config in json.loads(sys.argv[1]).items():
    if name.split()[0] not in CONFIG_MAPPING_NAMES:  # Qwen3-VL came with 4.57
        continue
    made = AutoConfig.for_model(name.split()[0], **config)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(made)
    found[name] = {
        "architecture": type(model).__name__,
        "written": json.loads(made.to_json_string(use_diff=False)),
        "shapes": {key: list(tensor.shape) for key, tensor in model.state_dict().items()},
        "linears": {
            key: [module.out_features, module.in_features, module.bias is not None]
            for key, module in model.named_modules() if isinstance(module, torch.nn.Linear)
        },
    }
print("\\n" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def real(shipped: Project) -> Mapping[str, Mapping[str, Any]]:
    """What the real classes have, by environment and configuration."""
    found = {}
    for python in sorted(shipped.store.environments.glob("modelopt-*/bin/python")):
        found[python.parts[-3]] = json.loads(said_by(python, REAL, json.dumps(CONFIGS))[-1])
    assert found, "no ModelOpt environment is built: run `nox -s matrix` first"
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_the_structure_is_that_of_the_real_class(name: str, real: Mapping[str, Mapping[str, Any]]) -> None:
    knowing = {environment: held[name] for environment, held in real.items() if name in held}
    assert knowing
    for environment, theirs in knowing.items():
        given = {"model_type": name.split(maxsplit=1)[0], "architectures": [theirs["architecture"]]}
        for config in (CONFIGS[name] | given, theirs["written"] | given):
            family, ours = families.from_config(config, known=families.EVERY)
            assert family.architecture == theirs["architecture"]
            assert dict(ours.shapes) == {
                canonical(key): tuple(shape) for key, shape in theirs["shapes"].items()
            }, environment
            assert {
                key: [linear.out_features, linear.in_features, linear.bias]
                for key, linear in ours.linears.items()
            } == {canonical(key): linear for key, linear in theirs["linears"].items()}, environment


def test_every_real_name_is_a_spelling_that_is_known(real: Mapping[str, Mapping[str, Any]]) -> None:
    for held in real.values():
        for theirs in held.values():
            assert all(key in spellings(canonical(key)) for key in theirs["shapes"])
