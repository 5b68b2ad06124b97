"""Control checkpoints: before any verdict, this environment must pass a right one and see a wrong one.

They are the smallest Qwen2.5-VL that vLLM builds (one layer, one block; headers only, no payload).
What goes wrong with the right ones is the environment's doing: a missing package or operator, a
patch that does not fit, a vLLM whose loader has changed beyond what is watched.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qvlfp8.checkpoint import Checkpoint, Tensor

__all__ = ["ControlFailed", "RightControlFaulted", "check"]

_HIDDEN, _INNER, _WORDS = 256, 512, 512
_VISION, _VISION_INNER = 160, 428
_MERGED = 4 * _VISION

_CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "torch_dtype": "bfloat16",
    "hidden_size": _HIDDEN,
    "intermediate_size": _INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_window_layers": 1,
    "max_position_embeddings": 2048,
    "vocab_size": _WORDS,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
    "tie_word_embeddings": False,
    "image_token_id": 500,
    "video_token_id": 501,
    "vision_start_token_id": 502,
    "vision_end_token_id": 503,
    "vision_token_id": 504,
    "bos_token_id": 505,
    "eos_token_id": 506,
    "vision_config": {
        "model_type": "qwen2_5_vl",
        "depth": 1,
        "hidden_size": _VISION,
        "intermediate_size": _VISION_INNER,
        "num_heads": 2,
        "out_hidden_size": _HIDDEN,
        "in_chans": 3,
        "in_channels": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [0],
        "tokens_per_second": 2,
        "hidden_act": "silu",
    },
}

_PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "min_pixels": 3136,
    "max_pixels": 50176,
}

_LAYER = "model.layers.0."
_BLOCK = "visual.blocks.0."
_MISSING = _LAYER + "mlp.down_proj.weight_scale"
_STRAY = _LAYER + "mlp.down_proj.nowhere"

# (module, outputs, inputs, has a bias)
_LANGUAGE_LINEARS = (
    (_LAYER + "self_attn.q_proj", 256, _HIDDEN, True),
    (_LAYER + "self_attn.k_proj", 128, _HIDDEN, True),
    (_LAYER + "self_attn.v_proj", 128, _HIDDEN, True),
    (_LAYER + "self_attn.o_proj", _HIDDEN, 256, False),
    (_LAYER + "mlp.gate_proj", _INNER, _HIDDEN, False),
    (_LAYER + "mlp.up_proj", _INNER, _HIDDEN, False),
    (_LAYER + "mlp.down_proj", _HIDDEN, _INNER, False),
)
_VISION_LINEARS = (
    (_BLOCK + "attn.qkv", 3 * _VISION, _VISION, True),
    (_BLOCK + "attn.proj", _VISION, _VISION, True),
    (_BLOCK + "mlp.gate_proj", _VISION_INNER, _VISION, True),
    (_BLOCK + "mlp.up_proj", _VISION_INNER, _VISION, True),
    (_BLOCK + "mlp.down_proj", _VISION, _VISION_INNER, True),
    ("visual.merger.mlp.0", _MERGED, _MERGED, True),
    ("visual.merger.mlp.2", _HIDDEN, _MERGED, True),
)
_PLAIN: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (_WORDS, _HIDDEN),
    "model.norm.weight": (_HIDDEN,),
    "lm_head.weight": (_WORDS, _HIDDEN),
    _LAYER + "input_layernorm.weight": (_HIDDEN,),
    _LAYER + "post_attention_layernorm.weight": (_HIDDEN,),
    "visual.patch_embed.proj.weight": (_VISION, 3, 2, 14, 14),
    _BLOCK + "norm1.weight": (_VISION,),
    _BLOCK + "norm2.weight": (_VISION,),
    "visual.merger.ln_q.weight": (_VISION,),
}
_SCALAR: tuple[str, tuple[int, ...]] = ("F32", ())


class ControlFailed(Exception):
    """A control checkpoint was not judged as it must be: nothing this environment says can be used."""


class RightControlFaulted(ControlFailed):
    """A right control was faulted: no checkpoint can pass here."""


def check(examine: Callable[[Checkpoint], Mapping[str, Any]]) -> None:
    """Examine the controls.

    Raises:
        RightControlFaulted: a right one was refused, or not loaded whole.
        ControlFailed: a wrong one was not, or what was raised may be the machine's fault.
    """
    with tempfile.TemporaryDirectory(prefix="preflight-") as folder:
        for vision, exclusions in ((True, ["lm_head"]), (False, ["lm_head", "visual"])):
            tensors = dict(_tensors(fp8_vision=vision))
            control = _control(Path(folder) / f"vision-{vision}", exclusions)
            name = "FP8 everywhere" if vision else "FP8 language model"
            measured = examine(control(tensors))
            fault = _complaint(measured)
            if fault is not None:
                error = measured["exception"]
                refused = error is None or error["origin"] == "checkpoint"
                kind = RightControlFaulted if refused else ControlFailed
                raise kind(f"the right control ({name}) was faulted: {fault}")
            incomplete = {key: value for key, value in tensors.items() if key != _MISSING}
            for wrong in (incomplete, {**tensors, _STRAY: _SCALAR}):
                if _complaint(examine(control(wrong))) is None:
                    raise ControlFailed(f"a wrong control ({name}) was not faulted")


def _complaint(measured: Mapping[str, Any]) -> str | None:
    error = measured["exception"]
    if error is not None:
        return f"{error['type']}: {error['message']} ({error['where']})"
    for name in ("never_loaded", "partly_written", "casts", "reshapes", "truncated", "dropped"):
        if measured[name]:
            return f"{name}: {measured[name][:3]}"
    return None


def _tensors(*, fp8_vision: bool) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    for name, shape in _PLAIN.items():
        yield name, ("BF16", shape)
    linears = [(linear, True) for linear in _LANGUAGE_LINEARS]
    linears += [(linear, fp8_vision) for linear in _VISION_LINEARS]
    # No KV scales: their absence is always right, and 0.10.0 cannot load them for this model.
    for (name, outputs, inputs, biased), fp8 in linears:
        yield f"{name}.weight", ("F8_E4M3" if fp8 else "BF16", (outputs, inputs))
        if biased:
            yield f"{name}.bias", ("BF16", (outputs,))
        if fp8:
            yield f"{name}.weight_scale", _SCALAR
            yield f"{name}.input_scale", _SCALAR


def _control(
    root: Path, exclusions: list[str]
) -> Callable[[Mapping[str, tuple[str, tuple[int, ...]]]], Checkpoint]:
    """Write the configuration once; the tensors exist only as the headers that are returned."""
    quantization = {
        "quant_method": "modelopt",
        "quantization": {
            "quant_algo": "FP8",
            "kv_cache_quant_algo": "FP8",
            "exclude_modules": exclusions,
        },
    }
    # In config.json, where every version looks: 0.10.0 does not open hf_quant_config.json by itself.
    config = {**_CONFIG, "quantization_config": quantization}
    root.mkdir()
    for name, content in (("config.json", config), ("preprocessor_config.json", _PREPROCESSOR)):
        (root / name).write_text(json.dumps(content), encoding="utf-8")

    def with_tensors(headers: Mapping[str, tuple[str, tuple[int, ...]]]) -> Checkpoint:
        file = root / "model.safetensors"
        return Checkpoint(
            root=root,
            tensors={
                name: Tensor(name=name, dtype=dtype, shape=shape, file=file, start=0, end=0)
                for name, (dtype, shape) in sorted(headers.items())
            },
            config=config,
            quantization=quantization,
            quantization_source="config.json",
            hf_quant_config=None,
            weight_files=(file.name,),
        )

    return with_tensors
