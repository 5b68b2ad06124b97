"""The checkpoints that a contract is recorded with: one small Qwen2.5-VL in each state of its modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qvlfp8 import structure
from qvlfp8.structure import Structure

__all__ = ["BASES", "Base", "Header", "State", "config", "inline", "preprocessor", "separate"]

State = Literal["fp8", "excluded", "bf16"]
"""Of a module: FP8; left out of a quantization; in a model that is not quantized."""

Header = tuple[str, tuple[int, ...]]
"""Type and shape of a tensor."""

SCALAR: Header = ("F32", ())

_HIDDEN, _INNER, _WORDS = 256, 512, 768
_NUMBER = {"dynamic": False, "num_bits": 8, "type": "float"}


def config(*, tied: bool = False, layers: int = 2, blocks: int = 2) -> dict[str, Any]:
    """config.json in the published, flat form; sides are even, and differ where they can."""
    return {
        "architectures": [structure.ARCHITECTURE],
        "model_type": structure.MODEL_TYPE,
        "torch_dtype": "bfloat16",
        "hidden_size": _HIDDEN,
        "intermediate_size": _INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_window_layers": layers,
        "max_position_embeddings": 2048,
        "vocab_size": _WORDS,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        "tie_word_embeddings": tied,
        "image_token_id": 500,
        "video_token_id": 501,
        "vision_start_token_id": 502,
        "vision_end_token_id": 503,
        "vision_token_id": 504,
        "bos_token_id": 505,
        "eos_token_id": 506,
        "vision_config": {
            "model_type": structure.MODEL_TYPE,
            "depth": blocks,
            "hidden_size": 160,
            "intermediate_size": 428,
            "num_heads": 2,
            "out_hidden_size": _HIDDEN,
            "in_chans": 3,
            "in_channels": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [blocks - 1],
            "tokens_per_second": 2,
            "hidden_act": "silu",
        },
    }


def preprocessor() -> dict[str, Any]:
    """preprocessor_config.json."""
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "min_pixels": 3136,
        "max_pixels": 50176,
    }


def inline(exclusions: Iterable[str], *, kv_fp8: bool = True) -> dict[str, Any]:
    """``quantization_config`` of config.json under all keys, so that every version reads the same."""
    names = list(exclusions)
    return {
        "quant_method": "modelopt",
        "quant_algo": "FP8",
        "ignore": names,
        "exclude_modules": names,
        "kv_cache_quant_algo": "FP8" if kv_fp8 else None,
        **({"kv_cache_scheme": _NUMBER} if kv_fp8 else {}),
    }


def separate(exclusions: Iterable[str], *, kv_fp8: bool = True) -> dict[str, Any]:
    """The content of hf_quant_config.json."""
    inner = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8" if kv_fp8 else None}
    return {"producer": {"name": "modelopt"}, "quantization": {**inner, "exclude_modules": list(exclusions)}}


@dataclass(frozen=True, kw_only=True)
class Base:
    """One state of all modules: the files that declare it, and tensors that agree.

    ``head_fp8``: lm_head is not excluded, and quantized.
    """

    state: State
    tied: bool = False
    head_fp8: bool = False

    @property
    def model(self) -> Structure:
        """What the files declare."""
        return structure.from_config(config(tied=self.tied))

    @property
    def exclusions(self) -> tuple[str, ...]:
        """In spellings that every version matches."""
        if self.state == "excluded":
            return ("lm_head", "visual", "model", "language_model")
        return () if self.head_fp8 else ("lm_head",)

    @property
    def files(self) -> dict[str, Any]:
        """Name -> JSON content."""
        quantized = {} if self.state == "bf16" else {"quantization_config": inline(self.exclusions)}
        return {
            "config.json": {**config(tied=self.tied), **quantized},
            "preprocessor_config.json": preprocessor(),
        }

    @property
    def tensors(self) -> dict[str, Header]:
        """Name -> header. No KV cache scales: that there are none is right in every version."""
        model = self.model
        held: dict[str, Header] = {
            name: ("BF16", shape) for name, shape in model.shapes.items() if name not in model.optional
        }
        if self.state == "fp8":
            for linear in model.linears.values():
                if linear.part != "head" or (self.head_fp8 and not self.tied):
                    held |= {f"{linear.name}.weight": ("F8_E4M3", model.shapes[f"{linear.name}.weight"])}
                    held |= {f"{linear.name}.weight_scale": SCALAR, f"{linear.name}.input_scale": SCALAR}
        return held

    @property
    def as_json(self) -> dict[str, Any]:
        """What the worker reads."""
        return {"files": self.files, "tensors": self.tensors}


BASES: Mapping[str, Base] = {
    "fp8": Base(state="fp8"),
    "excluded": Base(state="excluded"),
    "bf16": Base(state="bf16"),
    "fp8-head": Base(state="fp8", head_fp8=True),
    "fp8-tied": Base(state="fp8", tied=True),
    "fp8-head-tied": Base(state="fp8", tied=True, head_fp8=True),
    "excluded-tied": Base(state="excluded", tied=True),
    "bf16-tied": Base(state="bf16", tied=True),
}
