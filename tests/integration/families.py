"""Small models of Qwen2-VL and Qwen3-VL: FP8 checkpoints of zeros, for loaders, and BF16 ones to quantize."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from qvlfp8.reference import architecture
from qvlfp8.reference.folder import NamedTensor, write_folder
from qvlfp8.tensorfile import write_safetensors

Family = Literal["qwen2_vl", "qwen3_vl"]
Case = Literal["good", "naive", "blind"]
Linear = tuple[str, int, int, bool]

HIDDEN, INNER, WORDS, HEAD = 256, 512, 512, 64
TOWER, TOWER_INNER = 160, 320
BYTES = {"BF16": 2, "F8_E4M3": 1, "F32": 4}

_LANGUAGE: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "vocab_size": WORDS,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "bos_token_id": 505,
    "eos_token_id": 506,
    "tie_word_embeddings": False,
}
_TOKENS = {
    "image_token_id": 500,
    "video_token_id": 501,
    "vision_start_token_id": 502,
    "vision_end_token_id": 503,
    "tie_word_embeddings": False,
}
_TOWER: dict[str, Any] = {"depth": 2, "num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2}


def _config(family: Family, exclusions: list[str]) -> dict[str, Any]:
    quantization = {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": exclusions}
    common = {
        "torch_dtype": "bfloat16",
        "model_type": family,
        **_TOKENS,
        "quantization_config": {"quant_method": "modelopt", "quantization": quantization},
    }
    if family == "qwen2_vl":
        rope = {"type": "mrope", "mrope_section": [8, 12, 12]}
        tower = {
            "embed_dim": TOWER,
            "hidden_size": HIDDEN,
            "mlp_ratio": 2,
            "patch_size": 14,
            "in_channels": 3,
        }
        return {
            "architectures": ["Qwen2VLForConditionalGeneration"],
            **common, **_LANGUAGE, "rope_scaling": rope,
            "vision_config": {**_TOWER, **tower, "model_type": "qwen2_vl"},
        }  # fmt: skip
    turn: dict[str, Any] = {"rope_type": "default", "mrope_section": [8, 12, 12], "mrope_interleaved": True}
    eyes: dict[str, Any] = {
        "hidden_size": TOWER, "intermediate_size": TOWER_INNER, "out_hidden_size": HIDDEN, "patch_size": 16,
        "in_channels": 3, "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    text = {**_LANGUAGE, "head_dim": HEAD, "rope_scaling": turn, "model_type": "qwen3_vl_text"}
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        **common, "text_config": text, "vision_config": {**_TOWER, **eyes, "model_type": "qwen3_vl"},
    }  # fmt: skip


def _linears(family: Family) -> tuple[list[Linear], list[Linear]]:
    """Of the language model and of the tower: name, outputs, inputs, whether there is a bias."""
    tower, language = _names(family)
    biased = family == "qwen2_vl"
    layer, merged = f"{language}layers.0.", 4 * TOWER
    spoken = [
        (layer + "self_attn.q_proj", 4 * HEAD, HIDDEN, biased),
        (layer + "self_attn.k_proj", 2 * HEAD, HIDDEN, biased),
        (layer + "self_attn.v_proj", 2 * HEAD, HIDDEN, biased),
        (layer + "self_attn.o_proj", HIDDEN, 4 * HEAD, False),
        (layer + "mlp.gate_proj", INNER, HIDDEN, False),
        (layer + "mlp.up_proj", INNER, HIDDEN, False),
        (layer + "mlp.down_proj", HIDDEN, INNER, False),
    ]
    first, second = ("fc1", "fc2") if family == "qwen2_vl" else ("linear_fc1", "linear_fc2")
    seen: list[Linear] = []
    for block in range(2):
        at = f"{tower}blocks.{block}."
        seen += [
            (at + "attn.qkv", 3 * TOWER, TOWER, True),
            (at + "attn.proj", TOWER, TOWER, True),
            (at + f"mlp.{first}", TOWER_INNER, TOWER, True),
            (at + f"mlp.{second}", TOWER, TOWER_INNER, True),
        ]
    mergers = (
        [("merger.mlp.0", "merger.mlp.2")]
        if family == "qwen2_vl"
        else [(f"{m}.linear_fc1", f"{m}.linear_fc2") for m in ("merger", "deepstack_merger_list.0")]
    )
    for into, out in mergers:
        seen += [(tower + into, merged, merged, True), (tower + out, HIDDEN, merged, True)]
    return spoken, seen


def _plain(family: Family) -> Iterator[tuple[str, tuple[int, ...]]]:
    tower, language = _names(family)
    yield "lm_head.weight", (WORDS, HIDDEN)
    yield f"{language}embed_tokens.weight", (WORDS, HIDDEN)
    for norm in ("norm", "layers.0.input_layernorm", "layers.0.post_attention_layernorm"):
        yield f"{language}{norm}.weight", (HIDDEN,)
    norms = {f"blocks.{block}.norm{n}": TOWER for block in range(2) for n in (1, 2)}
    if family == "qwen2_vl":
        norms["merger.ln_q"] = TOWER
        yield f"{tower}patch_embed.proj.weight", (TOWER, 3, 2, 14, 14)
    else:
        norms |= {"merger.norm": TOWER, "deepstack_merger_list.0.norm": 4 * TOWER}
        yield f"{tower}patch_embed.proj.weight", (TOWER, 3, 2, 16, 16)
        yield f"{tower}patch_embed.proj.bias", (TOWER,)
        yield f"{tower}pos_embed.weight", (16, TOWER)
        for head in ("q_norm", "k_norm"):
            yield f"{language}layers.0.self_attn.{head}.weight", (HEAD,)
    for name, size in norms.items():
        yield f"{tower}{name}.weight", (size,)
        yield f"{tower}{name}.bias", (size,)


def _names(family: Family) -> tuple[str, str]:
    if family == "qwen2_vl":
        return "visual.", "model."
    return "model.visual.", "model.language_model."


def write(folder: Path, family: Family, case: Case, tokenizer: Path) -> None:
    """Write the checkpoint: right, with stray KV cache scales, or with an exclusion that no vLLM applies.

    ``tokenizer`` is a checkpoint whose tokenizer it takes: some vLLM ask for one when they build the model.
    """
    folder.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        shutil.copy(tokenizer / file, folder)
    spoken, seen = _linears(family)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {n: ("BF16", shape) for n, shape in _plain(family)}
    for linears, fp8 in ((spoken, True), (seen, case != "blind")):
        for name, outputs, inputs, biased in linears:
            tensors[f"{name}.weight"] = ("F8_E4M3" if fp8 else "BF16", (outputs, inputs))
            if biased:
                tensors[f"{name}.bias"] = ("BF16", (outputs,))
            if fp8:
                tensors[f"{name}.weight_scale"] = tensors[f"{name}.input_scale"] = ("F32", ())
    if case == "naive":
        for block in range(2):
            for kind in "kv":
                at = f"{_names(family)[0]}blocks.{block}.attn.{kind}_proj.{kind}_scale"
                tensors[at] = ("F32", ())
    entries = [
        (name, dtype, shape, bytes(BYTES[dtype] * math.prod(shape)))
        for name, (dtype, shape) in sorted(tensors.items())
    ]
    write_safetensors(folder / "model.safetensors", entries, {"format": "pt"})
    exclusions = ["lm_head"] if case != "blind" else ["lm_head", "model.layers.visual*"]
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor" if family == "qwen2_vl" else "Qwen3VLProcessor",
        "patch_size": 14 if family == "qwen2_vl" else 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }
    for file, content in (
        ("config.json", _config(family, exclusions)),
        ("preprocessor_config.json", processor),
    ):
        (folder / file).write_text(json.dumps(content))


def write_unquantized(folder: Path, family: Family) -> None:
    """Write the model in BF16, with the reference model's tokenizer and the ids of its tokens."""
    config = _config(family, [])
    del config["quantization_config"]
    reference = architecture.model_config(tied=False)
    config |= {name: reference[name] for name in config if name.endswith("_token_id") and name in reference}
    write_folder(folder, config, _small_numbers(family))
    patch = {"patch_size": config["vision_config"]["patch_size"]}
    processor = architecture.preprocessor_config() | patch
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def _small_numbers(family: Family) -> Iterator[NamedTensor]:
    shapes = dict(_plain(family))
    for name, outputs, inputs, biased in (linear for part in _linears(family) for linear in part):
        shapes[f"{name}.weight"] = (outputs, inputs)
        if biased:
            shapes[f"{name}.bias"] = (outputs,)
    drawn = random.Random(0)  # noqa: S311
    for name, shape in sorted(shapes.items()):
        if len(shape) == 1 and name.endswith("weight"):
            data = b"\x80\x3f" * shape[0]  # norms: 1.0
        else:
            # Of either sign, from 1/32 to 1/16: the upper byte says so.
            low = drawn.randbytes(math.prod(shape))
            data = bytes(byte for at in low for byte in (at & 0x7F, 0x3D | at & 0x80))
        yield name, "BF16", shape, data
