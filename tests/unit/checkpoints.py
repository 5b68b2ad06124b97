"""Small checkpoints as ModelOpt exports them: right headers and scales, weights of zero."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qvlfp8 import structure
from qvlfp8.checkpoint import WEIGHTS, write_safetensors
from qvlfp8.conformance import KV_SCALES, SCALES
from qvlfp8.reference.architecture import model_config
from qvlfp8.tensorfile import BITS

Entry = tuple[str, tuple[int, ...], bytes]
"""Type, shape and bytes of a tensor."""

SCALE: Entry = ("F32", (), struct.pack("<f", 0.0625))

LM_EXCLUSIONS = ("lm_head", "visual*")
VLM_EXCLUSIONS = ("lm_head", "visual.patch_embed*")

RECIPE: dict[str, Any] = {
    "id": "lm-fp8",
    "scope": ["language_model"],
    "format": "fp8",
    "kv_cache": {"format": "fp8", "attention": ["language_model"]},
}
VLM_RECIPE = RECIPE | {"id": "vlm-fp8", "scope": ["language_model", "vision"]}


def small_config(*, tied: bool = False) -> dict[str, Any]:
    """The reference model's configuration, narrower still: two blocks and two layers."""
    config = model_config(tied=tied)
    config |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 16}
    config["vision_config"] |= {
        "depth": 2, "hidden_size": 16, "intermediate_size": 20, "out_hidden_size": 32,
        "patch_size": 2,
    }  # fmt: skip
    return config


def filled(dtype: str, shape: tuple[int, ...]) -> Entry:
    """A tensor of one small number everywhere (1.0 in E4M3)."""
    return dtype, shape, b"\x38" * (math.prod(shape) * BITS[dtype] // 8)


def fp8_tensors(config: dict[str, Any], *, vision: bool = False) -> dict[str, Entry]:
    """What an FP8 export with FP8 KV cache holds, by canonical name."""
    model = structure.from_config(config)
    tensors = {
        name: filled("BF16", shape) for name, shape in model.shapes.items() if name not in model.optional
    }
    for linear in model.linears.values():
        if linear.part == "language_model" or (vision and linear.part == "vision"):
            weight = f"{linear.name}.weight"
            tensors[weight] = filled("F8_E4M3", model.shapes[weight])
            tensors |= {f"{linear.name}.{scale}": SCALE for scale in SCALES}
    tensors |= {f"{name}.{scale}": SCALE for name in model.attentions for scale in KV_SCALES}
    return tensors


def inline_quantization(exclusions: tuple[str, ...], *, kv: bool = True) -> dict[str, Any]:
    """``quantization_config`` as ModelOpt writes it into config.json."""
    number = {"dynamic": False, "num_bits": 8, "type": "float"}
    return {
        "config_groups": {"group_0": {"input_activations": number, "weights": number, "targets": ["Linear"]}},
        "ignore": list(exclusions),
        "quant_algo": "FP8",
        **({"kv_cache_scheme": number} if kv else {}),
        "producer": {"name": "modelopt", "version": "0.0.0"},
        "quant_method": "modelopt",
    }


def write(
    folder: Path,
    tensors: dict[str, Entry],
    config: dict[str, Any],
    *,
    spell: Callable[[str], str] = str,
) -> Path:
    """Write a folder with the files that serving needs; ``spell`` gives a name's form on disk."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (folder / name).write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    write_safetensors(
        folder / WEIGHTS,
        [(spell(name), *entry) for name, entry in tensors.items()],
        {"format": "pt"},
    )
    return folder


def lm_fp8(folder: Path) -> Path:
    """A sound export of the recipe ``lm-fp8``."""
    config = small_config()
    inline = {"quantization_config": inline_quantization(LM_EXCLUSIONS)}
    return write(folder, fp8_tensors(config), config | inline)
