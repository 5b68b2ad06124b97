"""One small checkpoint of each form that producers write: what is shown to vLLM, and what explain knows.

``samples.json`` was taken from real exports of tiny models of random weights: ModelOpt 0.37.0, 0.41.0,
0.44.0, 0.45.0 and 0.47.0, llm-compressor 0.14.0.1. It holds their config.json, declarations and lists of
exclusions; tensors follow from how the parts are stored. Put together were: tied models, whose config.json
is that of a tied export beside what else the untied one has; and ``portable``, the spelling of exclusions
that recipes and repair write.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from qvlfp8 import families
from qvlfp8.contract.form import LISTS, expected, spelled
from qvlfp8.contract.form_data import SAMPLES
from qvlfp8.contract.stored import Cache, Header, Stored
from qvlfp8.families import ModelType
from qvlfp8.reference import tokenizer
from qvlfp8.structure import Part, Structure

__all__ = ["ARCHITECTURES", "Sample", "Sizes", "samples"]

ARCHITECTURES: tuple[list[str] | None, ...] = (
    None, *([family.architecture] for family in families.FAMILIES.values()),
)  # fmt: skip
"""What ``architectures`` of a sample may be: ModelOpt 0.41 leaves it out of what was never saved before."""

_PROCESSORS: Mapping[ModelType, tuple[str, int]] = {
    "qwen2_vl": ("Qwen2VLProcessor", 14),
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", 14),
    "qwen3_vl": ("Qwen3VLProcessor", 16),
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A model's sizes; heads are 64 wide, those of the tower 80. The defaults are the samples' own."""

    layers: int = 2
    blocks: int = 2
    hidden: int = 256
    inner: int = 512
    vision: int = 160
    vision_inner: int = 320
    mergers: int = 1


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A checkpoint without numbers; ``exclusions`` are by ``FILE KEY``, with ``{}`` for layers' numbers."""

    name: str
    config: Mapping[str, Any]
    inline: Mapping[str, Any]
    separate: Mapping[str, Any] | None
    exclusions: Mapping[str, Sequence[str]]
    parts: Mapping[Part, Stored]
    cache: Cache
    head: bool
    names: str

    @property
    def family(self) -> ModelType:
        """``model_type`` of its config.json."""
        found: ModelType = self.config["model_type"]
        return found

    def structure(self, sizes: Sizes) -> Structure:
        """What it consists of."""
        return families.from_config(resized(self.config, sizes), known=families.EVERY)[1]

    def files(self, sizes: Sizes | None = None) -> dict[str, Any]:
        """Name -> JSON content: all that vLLM reads beside the weights."""
        sizes = sizes or Sizes()
        processor, patch = _PROCESSORS[self.family]
        files: dict[str, Any] = {
            "config.json": {
                **resized(self.config, sizes),
                "quantization_config": self._declaration("config.json", self.inline, sizes),
            },
            "preprocessor_config.json": {
                "image_processor_type": "Qwen2VLImageProcessor", "processor_class": processor,
                "patch_size": patch, "temporal_patch_size": 2, "merge_size": 2,
            },
            # Some vLLM ask for a tokenizer when they build Qwen2-VL and Qwen3-VL.
            "tokenizer.json": tokenizer.tokenizer_json(),
            "tokenizer_config.json": tokenizer.tokenizer_config(2048),
        }  # fmt: skip
        if self.separate is not None:
            files["hf_quant_config.json"] = self._declaration("hf_quant_config.json", self.separate, sizes)
        return files

    def tensors(self, sizes: Sizes | None = None) -> dict[str, Header]:
        """Name -> header."""
        found = expected(self.structure(sizes or Sizes()), self.parts, self.cache, head=self.head)
        return {spelled(name, self.names): header for name, header in found.items()}

    def _declaration(self, file: str, declared: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
        content = copy.deepcopy(dict(declared))
        inner = content.get("quantization", content)
        for key in LISTS:
            if (patterns := self.exclusions.get(f"{file} {key}")) is not None:
                inner[key] = [name for pattern in patterns for name in _expanded(pattern, sizes)]
        return content


def _expanded(pattern: str, sizes: Sizes) -> list[str]:
    if "{}" not in pattern:
        return [pattern]
    stem = pattern.partition(".{}")[0].rpartition(".")[2]
    counts = {"layers": sizes.layers, "blocks": sizes.blocks, "deepstack_merger_list": sizes.mergers}
    return [pattern.replace("{}", str(number)) for number in range(counts[stem])]


def resized(config: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    """config.json with other sizes, wherever it says them."""
    found = copy.deepcopy(dict(config))
    text: dict[str, Any] = {
        "hidden_size": sizes.hidden, "intermediate_size": sizes.inner, "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.hidden // 64, "max_window_layers": sizes.layers,
        "layer_types": ["full_attention"] * sizes.layers, "num_key_value_heads": 2, "head_dim": 64,
        "max_position_embeddings": 2048, "vocab_size": tokenizer.VOCABULARY_SIZE,
    }  # fmt: skip
    for section in (found, found.get("text_config", {})):
        section |= {key: value for key, value in text.items() if key in section}
        for key in ("rope_scaling", "rope_parameters"):
            if "mrope_section" in section.get(key, {}):
                section[key]["mrope_section"] = [8, 12, 12]
    width = "embed_dim" if "embed_dim" in found["vision_config"] else "hidden_size"
    vision: dict[str, Any] = {
        "depth": sizes.blocks, "num_heads": sizes.vision // 80, "intermediate_size": sizes.vision_inner,
        "fullatt_block_indexes": [sizes.blocks - 1], "out_hidden_size": sizes.hidden,
        "deepstack_visual_indexes": list(range(sizes.mergers)), "hidden_size": sizes.hidden,
    }  # fmt: skip
    vision[width] = sizes.vision
    found["vision_config"] |= {k: value for k, value in vision.items() if k in found["vision_config"]}
    return found


@cache
def samples() -> tuple[Sample, ...]:
    """Every sample, by name."""
    content = json.loads(SAMPLES.read_bytes())
    return tuple(
        Sample(
            name=name,
            config=content["configs"][held["config"]],
            inline=content["declarations"][held["declared"]]["config.json"],
            separate=content["declarations"][held["declared"]]["hf_quant_config.json"],
            exclusions=content["exclusions"][held["exclusions"]],
            parts=held["parts"],
            cache=held["cache"],
            head=held["head"],
            names=held["names"],
        )
        for name, held in sorted(content["samples"].items())
    )
