"""The faults: what has gone wrong in real checkpoints and servers, each by a function that plants it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qvlfp8.checkpoint import HF_QUANT_CONFIG
from qvlfp8.truth.editing import Draft, rescale_e4m3

__all__ = ["FAULTS", "Base", "Fault", "faults_for", "plant"]

Base = Literal["lm-fp8", "vlm-fp8"]

SENTINEL = -3.4028234663852886e38
"""What vLLM fills scales with before they are loaded: the lowest number of float32."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault: ``change`` makes it in a copy of the good checkpoint of recipe ``base``.

    ``in_vllm`` names one that no checkpoint can have: it is planted in vLLM while it runs.
    """

    id: str
    description: str
    base: Base = "vlm-fp8"
    change: Callable[[Draft], None] = lambda _draft: None
    in_vllm: str | None = None


def plant(fault: Fault, good: Path, folder: Path) -> None:
    """Copy the good checkpoint to ``folder`` and plant the fault there.

    Raises:
        LookupError: the checkpoint has not got what the fault is about.
    """
    draft = Draft(good, folder)
    fault.change(draft)
    draft.save()


def _ignore_exclusion(draft: Draft) -> None:
    def forget(section: dict[str, Any]) -> None:
        for key in ("ignore", "exclude_modules"):
            if key in section:
                section[key] = [pattern for pattern in section[key] if "visual" not in pattern]

    for section in draft.sections():
        forget(section)
    draft.edit_json(HF_QUANT_CONFIG, lambda content: forget(content["quantization"]))


def _leave_scales_unset(draft: Draft) -> None:
    for scale in ("weight_scale", "input_scale"):
        for name in draft.names(f".{scale}", part="vision"):
            draft.set_scalar(name, SENTINEL)


def _shuffle_tower(draft: Draft) -> None:
    for name in draft.names(".weight", part="vision"):
        draft.shuffle(name)


def _skip_block(number: int) -> Callable[[Draft], None]:
    def skip(draft: Draft) -> None:
        for module in ("attn.proj", "mlp.down_proj"):
            for name in draft.names(f"visual.blocks.{number}.{module}.weight"):
                draft.zero(name)
                draft.zero(name.replace(".weight", ".bias"))

    return skip


def _all_windowed(draft: Draft) -> None:
    draft.config["vision_config"]["fullatt_block_indexes"] = []


def _plain_positions(draft: Draft) -> None:
    for section in draft.sections():
        for key in ("rope_scaling", "rope_parameters"):
            rope = section.get(key)
            if isinstance(rope, dict):
                rope.pop("mrope_section", None)
                rope |= {kind: "default" for kind in ("type", "rope_type") if kind in rope}
                if key == "rope_scaling" and not set(rope) - {"type", "rope_type"}:
                    section[key] = None


def _permute_patch_embedding(draft: Draft) -> None:
    """Each filter's pixels in another order, all filters alike."""
    (name,) = draft.names("visual.patch_embed.proj.weight")
    entry = draft.tensors[name]
    row = len(entry.data) // entry.shape[0]
    order = sorted(range(0, row, entry.width), key=lambda offset: offset * 7919 % row)
    data = b"".join(
        entry.data[start + offset : start + offset + entry.width]
        for start in range(0, len(entry.data), row)
        for offset in order
    )
    draft.put(name, data=data)


def _wrong_image_token(draft: Draft) -> None:
    for section in draft.sections():
        if "image_token_id" in section:
            section["image_token_id"] = section.get("video_token_id", section["image_token_id"] + 1)


def _scale(ending: str, factor: float, *, part: str | None = None) -> Callable[[Draft], None]:
    def change(draft: Draft) -> None:
        for name in draft.names(ending, part=part):
            draft.set_scalar(name, draft.scalar(name) * factor)

    return change


def _scale_kv(factor: float) -> Callable[[Draft], None]:
    def change(draft: Draft) -> None:
        for ending in (".k_proj.k_scale", ".v_proj.v_scale"):
            _scale(ending, factor, part="language_model")(draft)

    return change


def _swap_gate_and_up(draft: Draft) -> None:
    for gate in draft.names("mlp.gate_proj.weight", part="vision"):
        module = gate.removesuffix("weight")
        for name in [name for name in draft.tensors if name.startswith(module)]:
            draft.swap(name, name.replace("gate_proj", "up_proj"))


def _nan_scale(draft: Draft) -> None:
    draft.set_scalar(draft.names("layers.1.mlp.down_proj.weight_scale")[0], math.nan)


TEMPLATE = """\
{%- for message in messages %}
{{- message['role'] | upper + ': ' }}
{%- if message['content'] is string %}
{{- message['content'] }}
{%- else %}
{%- for part in message['content'] %}
{%- if part['type'] in ['image', 'image_url'] %}
{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- else %}
{{- part['text'] }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- 'ASSISTANT:' }}
{%- endif %}
"""
"""A chat format of other models (Vicuna's)."""


def _wrong_template(draft: Draft) -> None:
    def put(content: dict[str, Any]) -> None:
        content["chat_template"] = TEMPLATE

    if (draft.folder / "chat_template.jinja").exists():
        (draft.folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    draft.edit_json("chat_template.json", put)
    draft.edit_json("tokenizer_config.json", put)


def _wrong_normalization(draft: Draft) -> None:
    def put(content: dict[str, Any]) -> None:
        for section in (content, content.get("image_processor", {})):
            if "image_mean" in section:
                section |= {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}

    for file in ("preprocessor_config.json", "processor_config.json"):
        draft.edit_json(file, put)


def _cast_without_scale(*, kept: bool) -> Callable[[Draft], None]:
    """The weights as a plain ``.to(float8_e4m3fn)`` gives them; their scales are kept, or become 1.0."""

    def cast(draft: Draft) -> None:
        for scale in draft.names(".weight_scale"):
            weight = scale.removesuffix("_scale")
            draft.put(weight, data=rescale_e4m3(draft.tensors[weight].data, draft.scalar(scale)))
            if not kept:
                draft.set_scalar(scale, 1.0)

    return cast


def faults_for(config: Mapping[str, Any]) -> tuple[Fault, ...]:
    """All faults for a model of this config.json: :data:`FAULTS`, and each of its vision blocks skipped."""
    skipped = (
        Fault(
            id=f"block-{number}-skipped",
            description=f"vision block {number} skipped (its proj and down_proj are zero)",
            change=_skip_block(number),
        )
        for number in range(config["vision_config"]["depth"])
    )
    return (*FAULTS, *skipped)


FAULTS: tuple[Fault, ...] = (
    Fault(
        id="exclusion-ignored",
        description="tower blind: no exclusion names it, so that vLLM builds it in FP8 and casts its weights",
        base="lm-fp8",
        change=_ignore_exclusion,
    ),
    Fault(
        id="scales-unset",
        description="tower blind: its scales are the -3.4e38 that they hold before they are loaded",
        change=_leave_scales_unset,
    ),
    Fault(id="tower-shuffled", description="tower weights shuffled", change=_shuffle_tower),
    Fault(
        id="all-windowed",
        description="all vision blocks windowed, none with full attention",
        change=_all_windowed,
    ),
    Fault(
        id="window-order",
        description="window order not undone at the tower's end",
        in_vllm="window-order",
    ),
    Fault(id="plain-positions", description="plain positions instead of mrope", change=_plain_positions),
    Fault(
        id="patch-embed-permuted",
        description="pixels permuted in the patch embedding's filters",
        change=_permute_patch_embedding,
    ),
    Fault(id="image-token-wrong", description="image token wrong in config.json", change=_wrong_image_token),
    Fault(id="kv-scales-x8", description="KV cache scales x 8", change=_scale_kv(8.0)),
    Fault(id="kv-scales-by-8", description="KV cache scales / 8", change=_scale_kv(1 / 8)),
    Fault(
        id="one-weight-scale-x4",
        description="weight_scale x 4 of one language layer's o_proj",
        change=_scale("layers.1.self_attn.o_proj.weight_scale", 4.0),
    ),
    Fault(
        id="vision-scales-x1.25",
        description="all vision weight scales x 1.25",
        change=_scale(".weight_scale", 1.25, part="vision"),
    ),
    Fault(
        id="input-scales-x0.1",
        description="input_scale of all layers x 0.1: activations saturate",
        change=_scale(".input_scale", 0.1),
    ),
    Fault(
        id="gate-up-swapped",
        description="gate_proj and up_proj swapped in all vision blocks",
        change=_swap_gate_and_up,
    ),
    Fault(id="nan-scale", description="NaN in one weight_scale", change=_nan_scale),
    Fault(id="chat-template", description="another model's chat template", change=_wrong_template),
    Fault(
        id="image-normalization",
        description="wrong image mean and deviation (0 and 1)",
        change=_wrong_normalization,
    ),
    Fault(
        id="cast-without-scale",
        description="BF16 weights cast to FP8 without dividing by the scale, which is applied all the same",
        change=_cast_without_scale(kept=True),
    ),
    Fault(
        id="cast-to-scale-one",
        description="BF16 weights cast to FP8 as they are, with scales of 1.0",
        change=_cast_without_scale(kept=False),
    ),
)
"""In the order in which they are planted, but for skipped blocks: :func:`faults_for`."""
