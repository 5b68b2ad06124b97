"""Size of the tiny Qwen2.5-VL and the JSON files that declare it.

Small, yet with every feature that has broken a real checkpoint: vision heads of 80, a vision MLP
width that is not a multiple of 16 (428, as 3420 in the published models), windowed and full vision
attention, grouped key-value heads, three-part rotary positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qvlfp8.reference.tokenizer import TOKEN_IDS, VOCABULARY_SIZE
from qvlfp8.structure import ARCHITECTURE, MODEL_TYPE

MAX_POSITIONS = 4096
"""Longest sequence in tokens; a token is one byte of text or one merged image patch."""

MAX_MERGED_PATCHES = 256
"""Largest picture in merged patches of 28 x 28 pixels each."""

DEPTH = 5
"""Vision blocks of the seeing model."""

FULL_ATTENTION = (2, 4)
"""Those of them whose attention spans the whole picture; the others see windows."""


def model_config(*, tied: bool) -> dict[str, Any]:
    """Make config.json, flat like the published ones: every transformers reads that."""
    return {
        "architectures": [ARCHITECTURE],
        "attention_dropout": 0.0,
        "bos_token_id": TOKEN_IDS["<|endoftext|>"],
        "eos_token_id": TOKEN_IDS["<|im_end|>"],
        "vision_start_token_id": TOKEN_IDS["<|vision_start|>"],
        "vision_end_token_id": TOKEN_IDS["<|vision_end|>"],
        "vision_token_id": TOKEN_IDS["<|vision_pad|>"],
        "image_token_id": TOKEN_IDS["<|image_pad|>"],
        "video_token_id": TOKEN_IDS["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": 256,
        "initializer_range": 0.02,
        "intermediate_size": 512,
        "max_position_embeddings": MAX_POSITIONS,
        "max_window_layers": 3,
        "model_type": MODEL_TYPE,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        "rope_theta": 1000000.0,
        "sliding_window": MAX_POSITIONS,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 3,
            "fullatt_block_indexes": [1],
            "hidden_act": "silu",
            "hidden_size": 160,
            "in_chans": 3,
            "intermediate_size": 428,
            "num_heads": 2,
            "out_hidden_size": 256,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
        },
        "vocab_size": VOCABULARY_SIZE,
    }


def seeing_config(
    *, tied: bool, depth: int = DEPTH, full_attention: Sequence[int] = FULL_ATTENTION
) -> dict[str, Any]:
    """Make config.json of the model that is trained to see.

    As :func:`model_config`, but ``depth`` vision blocks over windows of 56 pixels, so that the smallest
    picture of an exam holds four; and rotary positions that turn fast enough for a model this
    small to tell neighbouring patches apart (with the published base of 1,000,000 the columns of a
    small picture differ by less than a thousandth of a turn).
    """
    config = model_config(tied=tied)
    vision = {"depth": depth, "fullatt_block_indexes": list(full_attention), "window_size": 56}
    return config | {"rope_theta": 100.0, "vision_config": config["vision_config"] | vision}


def generation_config() -> dict[str, Any]:
    """Make generation_config.json: greedy, so that an answer is a function of the input."""
    return {
        "bos_token_id": TOKEN_IDS["<|endoftext|>"],
        "do_sample": False,
        "eos_token_id": [TOKEN_IDS["<|im_end|>"], TOKEN_IDS["<|endoftext|>"]],
        "pad_token_id": TOKEN_IDS["<|endoftext|>"],
    }


def preprocessor_config() -> dict[str, Any]:
    """Make preprocessor_config.json; mean and deviation are the published models' (CLIP's)."""
    return {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "max_pixels": MAX_MERGED_PATCHES * 28 * 28,
        "merge_size": 2,
        "min_pixels": 4 * 28 * 28,
        "patch_size": 14,
        "processor_class": "Qwen2_5_VLProcessor",
        "temporal_patch_size": 2,
    }
