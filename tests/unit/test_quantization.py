from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlfp8 import quantization
from qvlfp8.quantization import Scheme, UnknownQuantization, excludes
from tests.unit import checkpoints

PRODUCER = {"name": "modelopt", "version": "0.47.0"}

json_values = st.recursive(
    st.sampled_from([None, True, 8, "FP8", "modelopt", "float"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["quant_algo", "ignore", "num_bits", "type", "kv_cache_scheme"]), inner
        )
    ),
    max_leaves=5,
)


def test_both_forms_mean_the_same() -> None:
    separate = {
        "producer": PRODUCER,
        "quantization": {
            "quant_algo": "FP8",
            "kv_cache_quant_algo": "FP8",
            "exclude_modules": ["lm_head"],
        },
    }
    inline = checkpoints.inline_quantization(("lm_head",)) | {"producer": PRODUCER}
    expected = Scheme(fp8=True, kv_fp8=True, exclusions=("lm_head",), producer=PRODUCER)
    assert quantization.read(separate) == quantization.read(inline) == expected


def test_no_configuration_is_no_quantization() -> None:
    assert quantization.read(None) == Scheme()


@pytest.mark.parametrize("cache", [{}, {"kv_cache_quant_algo": None}, {"kv_cache_scheme": None}])
def test_no_fp8_cache(cache: dict[str, Any]) -> None:
    assert not quantization.read({"quant_algo": "FP8"} | cache).kv_fp8


@pytest.mark.parametrize(
    ("pattern", "module", "named"),
    [
        ("visual*", "visual.blocks.0.attn.qkv", True),
        ("model.visual*", "visual.blocks.0.attn.qkv", True),
        ("visual", "visual.blocks.0.attn.qkv", True),
        ("visual", "visual", True),
        ("*mlp*", "model.layers.0.mlp.up_proj", True),
        ("model.language_model.layers.0.*", "model.layers.0.mlp.up_proj", True),
        ("language_model*", "model.layers.0.mlp.up_proj", True),
        ("lm_head", "lm_head", True),
        ("model.layers.visual*", "visual.blocks.0.attn.qkv", False),
        ("model*", "model.layers.0.mlp.up_proj", True),
        ("model*", "visual.blocks.0.attn.qkv", False),
        ("model", "visual.blocks.0.attn.qkv", False),
        ("model.*", "visual.blocks.0.attn.qkv", False),
        ("model.v*", "visual.blocks.0.attn.qkv", True),
        ("*blocks*", "visual.blocks.0.attn.qkv", True),
        ("model.layers.1", "model.layers.10.mlp.up_proj", False),
        ("vis", "visual.blocks.0.attn.qkv", False),
        ("LM_HEAD", "lm_head", False),
    ],
)
def test_what_a_pattern_names(pattern: str, module: str, named: bool) -> None:
    assert excludes([pattern], module) is named
    assert excludes(["other", pattern], module) is named


@given(
    st.dictionaries(
        st.sampled_from(["quant_method", "quant_algo", "quantization", "ignore", "producer"]),
        json_values,
    )
)
def test_no_configuration_breaks_the_reading(config: dict[str, Any]) -> None:
    try:
        scheme = quantization.read(config)
    except UnknownQuantization:
        return
    assert all(isinstance(pattern, str) for pattern in scheme.exclusions)


FLAT = {
    "quant_method": "modelopt",
    "quant_algo": "FP8",
    "ignore": ["lm_head", "model.visual*", "model.language_model.embed_tokens"],
    "kv_cache_scheme": {"num_bits": 8, "type": "float", "dynamic": False},
}
NESTED = {"quantization": {"quant_algo": "FP8", "exclude_modules": ["model.layers.visual*", "lm_head"]}}


def test_portable_spells_vision_plainly_under_every_key() -> None:
    flat = quantization.portable(FLAT)
    patterns = ["lm_head", "visual", "model.language_model.embed_tokens"]
    assert flat["ignore"] == flat["exclude_modules"] == patterns
    assert flat["kv_cache_quant_algo"] == "FP8"
    assert quantization.portable(NESTED)["quantization"]["exclude_modules"] == ["visual", "lm_head"]


@pytest.mark.parametrize("document", [FLAT, NESTED])
def test_portable_says_the_same_and_twice_is_once(document: dict[str, Any]) -> None:
    once = quantization.portable(document)
    assert quantization.portable(once) == once
    before, after = quantization.read(document), quantization.read(once)
    assert (after.fp8, after.kv_fp8) == (before.fp8, before.kv_fp8)
    for module in ("lm_head", "visual.blocks.0.attn.qkv", "model.layers.0.mlp.down_proj"):
        # ModelOpt 0.37.0's spelling names nothing; portable says what it meant.
        meant = module.startswith("visual") or quantization.excludes(before.exclusions, module)
        assert quantization.excludes(after.exclusions, module) == meant
