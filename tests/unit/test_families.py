"""Families as plain functions of config.json; tests/integration asks transformers' own classes."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlfp8 import families, structure
from qvlfp8.families import EVERY, from_config
from qvlfp8.reference.architecture import model_config
from qvlfp8.structure import UnknownModel, canonical, part_of, spellings
from tests.unit.checkpoints import other_config


def test_a_caller_knows_qwen2_5_vl_unless_it_says_more() -> None:
    family, model = from_config(model_config(tied=False))
    assert family.title == "Qwen2.5-VL"
    assert model == structure.from_config(model_config(tied=False))
    with pytest.raises(UnknownModel, match=r"'qwen2_vl' .*not Qwen2\.5-VL"):
        from_config(other_config("qwen2_vl"))


def test_what_workers_ask_knows_no_other_family() -> None:
    with pytest.raises(UnknownModel):
        structure.from_config(other_config("qwen3_vl"))


def test_published_qwen2_vl_2b() -> None:
    config = {
        "model_type": "qwen2_vl", "architectures": ["Qwen2VLForConditionalGeneration"], "hidden_size": 1536,
        "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
        "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "in_chans": 3},
    }  # fmt: skip
    _, model = from_config(config, known=EVERY)
    assert model.shapes["visual.blocks.31.mlp.fc1.weight"] == (5120, 1280)
    assert model.shapes["visual.merger.mlp.2.weight"] == (1536, 5120)
    assert model.shapes["model.layers.27.self_attn.k_proj.bias"] == (256,)
    assert model.optional == {"lm_head.weight"}
    nested = {key: config[key] for key in ("model_type", "vision_config", "tie_word_embeddings")}
    assert from_config(nested | {"text_config": config}, known=EVERY)[1] == model


def test_published_qwen3_vl_8b() -> None:
    config = {
        "model_type": "qwen3_vl", "architectures": ["Qwen3VLForConditionalGeneration"],
        "text_config": {
            "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        },
        "vision_config": {"out_hidden_size": 4096},
    }  # fmt: skip
    _, model = from_config(config, known=EVERY)
    assert model.shapes["model.layers.35.self_attn.k_proj.weight"] == (1024, 4096)
    assert "model.layers.0.self_attn.k_proj.bias" not in model.shapes
    assert model.shapes["model.layers.0.self_attn.q_norm.weight"] == (128,)
    assert model.shapes["visual.deepstack_merger_list.2.norm.weight"] == (4608,)
    assert model.shapes["visual.merger.norm.bias"] == (1152,)
    assert not model.optional


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_parts_names_and_spellings(family: Any) -> None:
    _, model = from_config(other_config(family), known=EVERY)
    assert {linear.part for linear in model.linears.values()} == {"vision", "language_model", "head"}
    assert all(linear.part == part_of(linear.name) for linear in model.linears.values())
    for name in model.shapes:
        assert {canonical(spelling) for spelling in spellings(name)} == {name}


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        ("qwen2_vl", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ("qwen3_vl", {"model_type": "qwen3_vl_moe"}, "'qwen3_vl_moe'"),
        ("qwen3_vl", {"architectures": ["Qwen3VLMoeForConditionalGeneration"]}, "Qwen3VLMoe"),
        ("qwen2_vl", {"model_type": ["qwen2_vl"]}, "qwen2_vl"),
        ("qwen2_vl", {"num_attention_heads": 3}, "not a multiple"),
        ("qwen2_vl", {"vision_config": {"mlp_ratio": 2.5}}, "mlp_ratio"),
        ("qwen3_vl", {"text_config": None}, "text"),
        ("qwen3_vl", {"vision_config": {"deepstack_visual_indexes": 3}}, "deepstack"),
        ("qwen3_vl", {"text_config": {"attention_bias": "yes"}}, "attention_bias"),
    ],
)
def test_what_is_no_such_model_is_refused(family: Any, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UnknownModel, match=said):
        from_config(other_config(family) | change, known=EVERY)


json_values = st.recursive(
    st.sampled_from([None, True, -1, 2, 0.5, "qwen2_vl"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.just("hidden_size"), inner),
    max_leaves=3,
)


@given(
    st.sampled_from(["qwen2_vl", "qwen3_vl"]),
    st.sampled_from(["architectures", "model_type", "text_config", "vision_config", "num_key_value_heads"]),
    json_values,
)
def test_no_value_of_a_field_breaks_the_reading(family: Any, field: str, value: object) -> None:
    with suppress(UnknownModel):  # either outcome is right, another exception is not
        from_config(other_config(family) | {field: value}, known=families.EVERY)
