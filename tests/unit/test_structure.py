import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlfp8 import structure
from qvlfp8.reference.architecture import model_config
from qvlfp8.structure import UnknownModel, canonical, from_config, part_of, spellings

RECORDED = json.loads(
    (Path(__file__).parent / "data" / "qwen2_5_vl_transformers.json").read_text(encoding="utf-8")
)
"""What the real classes have, recorded from the transformers versions that the file names."""


@pytest.mark.parametrize("which", ["config", "nested_config"])
def test_structure_is_that_of_the_real_classes(which: str) -> None:
    model = from_config(RECORDED[which])

    assert dict(model.shapes) == {
        canonical(name): tuple(shape) for name, shape in RECORDED["state_dict"].items()
    }
    assert {
        linear.name: [linear.out_features, linear.in_features, linear.bias]
        for linear in model.linears.values()
    } == {canonical(name): linear for name, linear in RECORDED["linears"].items()}


def test_the_reference_model_is_the_recorded_one() -> None:
    assert model_config(tied=False) == RECORDED["config"]


def test_parts_and_attentions() -> None:
    model = from_config(RECORDED["config"])
    assert model.attentions == tuple(f"model.layers.{n}.self_attn" for n in range(3))
    assert model.vision_blocks == 3
    assert all(linear.part == part_of(linear.name) for linear in model.linears.values())
    assert part_of("transformer.h.0") is None


def test_published_3b_sizes_with_defaults_left_out() -> None:
    config = {
        "model_type": "qwen2_5_vl", "hidden_size": 2048, "intermediate_size": 11008,
        "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
        "tie_word_embeddings": True, "vocab_size": 151936,
        "vision_config": {"hidden_size": 1280, "out_hidden_size": 2048},
    }  # fmt: skip
    model = from_config(config)
    assert model.shapes["visual.patch_embed.proj.weight"] == (1280, 3, 2, 14, 14)
    assert model.shapes["visual.blocks.31.mlp.down_proj.weight"] == (1280, 3420)
    assert model.shapes["visual.merger.mlp.2.weight"] == (2048, 5120)
    assert model.shapes["model.layers.35.self_attn.v_proj.bias"] == (256,)
    assert model.optional == {"lm_head.weight"}


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        ({"tie_word_embeddings": True}, True),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, False),
        ({"text_config": {"tie_word_embeddings": True}}, True),
        ({"vision_config": {"tie_word_embeddings": True}}, False),
        ({}, False),
    ],
)
def test_where_tying_is_declared(config: dict[str, Any], tied: bool) -> None:
    assert from_config({"model_type": "qwen2_5_vl"} | config).tied is tied


@pytest.mark.parametrize(
    ("written", "ours"),
    [
        ("visual.blocks.0.attn.qkv.weight", "visual.blocks.0.attn.qkv.weight"),
        ("model.visual.merger.ln_q.weight", "visual.merger.ln_q.weight"),
        ("model.layers.1.mlp.up_proj", "model.layers.1.mlp.up_proj"),
        ("model.language_model.layers.1.mlp.up_proj", "model.layers.1.mlp.up_proj"),
        ("language_model.model.norm.weight", "model.norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("lm_head", "lm_head"),
        ("model.visually", "model.visually"),
    ],
)
def test_canonical_names(written: str, ours: str) -> None:
    assert canonical(written) == ours


@given(st.sampled_from(sorted(from_config(RECORDED["config"]).shapes)))
def test_every_spelling_leads_back(name: str) -> None:
    assert len(set(spellings(name))) >= 2
    assert {canonical(spelling) for spelling in spellings(name)} == {name}


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "qwen2_vl"},
        {"architectures": ["LlamaForCausalLM"]},
        {"hidden_size": "256"},
        {"hidden_size": True},
        {"vocab_size": 0},
        {"num_attention_heads": 3},
        {"vision_config": []},
        {"vision_config": {"depth": -1}},
        {"text_config": {"hidden_size": None}},
    ],
)
def test_what_is_no_such_model_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UnknownModel):
        from_config(RECORDED["config"] | change)


json_values = st.recursive(
    st.sampled_from([None, True, -1, 2, 0.5, "qwen2_5_vl"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.just("hidden_size"), inner),
    max_leaves=3,
)


@given(
    st.sampled_from(["architectures", "text_config", "vision_config", "num_key_value_heads"]),
    json_values,
)
def test_no_value_of_a_field_breaks_the_reading(field: str, value: object) -> None:
    with suppress(UnknownModel):  # either outcome is right, another exception is not
        from_config(RECORDED["config"] | {field: value})


def test_the_refusal_says_what_is_expected() -> None:
    with pytest.raises(UnknownModel, match=f"'llama'.*{structure.ARCHITECTURE}"):
        from_config({"model_type": "llama"})
