"""Small checkpoints as ModelOpt exports them: right headers and scales, weights of zero."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal

from qvlfp8 import families, structure
from qvlfp8.checkpoint import WEIGHTS, write_safetensors
from qvlfp8.conformance import KV_SCALES, SCALES
from qvlfp8.reference.architecture import model_config
from qvlfp8.structure import Part
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
    half = config["hidden_size"] // config["num_attention_heads"] // 2
    config["rope_scaling"] = {"type": "mrope", "mrope_section": [half - 2, 1, 1]}
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


Stored = Literal["fp8", "fp8-static", "fp8-channel", "fp8-block", "nvfp4", "nvfp4-packed", "nvfp4-packed-16"]
"""How a linear module can be stored: ModelOpt's FP8 and NVFP4, then compressed-tensors' forms of them."""


def bf16_tensors(config: dict[str, Any]) -> dict[str, Entry]:
    """What a model of any family holds before it is quantized, by canonical name."""
    _, model = families.from_config(config, known=families.EVERY)
    return {n: filled("BF16", shape) for n, shape in model.shapes.items() if n not in model.optional}


def store(tensors: dict[str, Entry], config: dict[str, Any], form: Stored, parts: Collection[Part]) -> None:
    """Store the linear modules of these parts in a form, as tests/unit/data/producers.json has it."""
    _, model = families.from_config(config, known=families.EVERY)
    for linear in model.linears.values():
        if linear.part in parts and f"{linear.name}.weight" in tensors:
            del tensors[f"{linear.name}.weight"]
            entries = _stored(linear.out_features, linear.in_features, form)
            tensors |= {f"{linear.name}.{suffix}": entry for suffix, entry in entries.items()}


def _stored(out: int, in_: int, form: Stored) -> dict[str, Entry]:
    weight, one = filled("F8_E4M3", (out, in_)), filled("BF16", (1,))
    packed, groups = filled("U8", (out, in_ // 2)), filled("F8_E4M3", (out, in_ // 16))
    outer = ("F32", (1,), SCALE[2])
    match form:
        case "fp8":
            return {"weight": weight, "weight_scale": SCALE, "input_scale": SCALE}
        case "fp8-static":
            return {"weight": weight, "weight_scale": one, "input_scale": one}
        case "fp8-channel":
            return {"weight": weight, "weight_scale": filled("BF16", (out, 1))}
        case "fp8-block":
            blocks = (-(-out // 128), -(-in_ // 128))
            return {"weight": weight, "weight_scale": filled("BF16", blocks)}
        case "nvfp4":
            scales = {"weight_scale": groups, "weight_scale_2": SCALE, "input_scale": SCALE}
            return {"weight": packed, **scales}
        case "nvfp4-packed-16":
            return {"weight_packed": packed, "weight_scale": groups, "weight_global_scale": outer}
        case "nvfp4-packed":
            scales = {"weight_scale": groups, "weight_global_scale": outer, "input_global_scale": outer}
            return {"weight_packed": packed, **scales}


def nvfp4_quantization(exclusions: tuple[str, ...]) -> dict[str, Any]:
    """``quantization_config`` of an NVFP4 export, as ModelOpt writes it into config.json."""
    group = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
    groups = {"group_0": {"input_activations": group, "weights": group, "targets": ["Linear"]}}
    return inline_quantization(exclusions) | {"config_groups": groups, "quant_algo": "NVFP4"}


def separate_quantization(exclusions: tuple[str, ...], algorithm: str = "FP8") -> dict[str, Any]:
    """hf_quant_config.json as ModelOpt writes it."""
    size = {"group_size": 16} if algorithm == "NVFP4" else {}
    return {
        "producer": {"name": "modelopt", "version": "0.0.0"},
        "quantization": {
            "quant_algo": algorithm, "kv_cache_quant_algo": "FP8", **size, "exclude_modules": [*exclusions],
        },
    }  # fmt: skip


def compressed_quantization(
    ignore: tuple[str, ...], form: Stored = "fp8-channel", *, kv: bool = False
) -> dict[str, Any]:
    """``quantization_config`` as llm-compressor writes it, without the fields that are null."""
    number = {"num_bits": 4 if form.startswith("nvfp4") else 8, "type": "float", "symmetric": True}
    scheme: dict[Stored, tuple[dict[str, Any], dict[str, Any] | None]] = {
        "fp8-static": ({"strategy": "tensor"}, {"strategy": "tensor", "dynamic": False}),
        "fp8-channel": ({"strategy": "channel"}, {"strategy": "token", "dynamic": True}),
        "fp8-block": (
            {"strategy": "block", "block_structure": [128, 128]},
            {"strategy": "group", "group_size": 128, "dynamic": True},
        ),
        "nvfp4-packed": (
            {"strategy": "tensor_group", "group_size": 16},
            {"strategy": "tensor_group", "group_size": 16, "dynamic": "local"},
        ),
        "nvfp4-packed-16": ({"strategy": "tensor_group", "group_size": 16}, None),
    }
    weights, activations = scheme[form]
    name = "nvfp4-pack-quantized" if form.startswith("nvfp4") else "float-quantized"
    group = {
        "format": name,
        "targets": ["Linear"],
        "weights": number | {"dynamic": False} | weights,
        "input_activations": None if activations is None else number | activations,
    }
    cache = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
    return {
        "quant_method": "compressed-tensors", "format": name, "config_groups": {"group_0": group},
        "ignore": [*ignore], "kv_cache_scheme": cache if kv else None, "version": "0.0.0",
        "quantization_status": "compressed", "sparsity_config": {}, "transform_config": {},
    }  # fmt: skip


def other_config(family: Literal["qwen2_vl", "qwen3_vl"]) -> dict[str, Any]:
    """A small config.json of another family: two blocks and two layers, widths that NVFP4 can pack."""
    text = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 16,
        "num_attention_heads": 2, "num_key_value_heads": 1,
    }  # fmt: skip
    if family == "qwen2_vl":
        vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "patch_size": 2}
        return {"model_type": family, "architectures": [families.FAMILIES[family].architecture],
                "vision_config": vision, **text}  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32, "patch_size": 2,
        "num_position_embeddings": 4,
    }  # fmt: skip
    return {
        "model_type": family, "architectures": [families.FAMILIES[family].architecture],
        "text_config": text | {"head_dim": 16},
        "vision_config": vision | {"deepstack_visual_indexes": [0]},
    }  # fmt: skip


STYLES: dict[str, dict[str, str]] = {
    "published": {},
    "transformers>=4.52": {"visual": "model.visual", "model": "model.language_model"},
    "vllm": {"model": "language_model.model", "lm_head": "language_model.lm_head"},
}
"""How the first word of a canonical name is spelled, by who names it."""


def spelling(style: str) -> Callable[[str], str]:
    """Give what spells a canonical name in a style."""

    def spell(name: str) -> str:
        first, dot, rest = name.partition(".")
        return STYLES[style].get(first, first) + dot + rest

    return spell
