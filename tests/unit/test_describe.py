"""What checkpoints are: headers of real producers (data/producers.json), and what can be wrong with them."""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvlfp8 import checkpoint, describe
from qvlfp8.checkpoint import write_safetensors
from qvlfp8.describe import Description, as_json
from qvlfp8.errors import UnknownModelError
from qvlfp8.tensorfile import BITS
from tests.unit import checkpoints as make

PRODUCERS: Mapping[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data" / "producers.json").read_text(encoding="utf-8")
)
"""config.json, hf_quant_config.json and headers, as these producers wrote them for a random tiny model."""

BF16_PARTS = {"vision": "BF16", "head": "BF16"}


def produced(folder: Path, name: str) -> Description:
    held = PRODUCERS[name]
    make.write(
        folder, {key: make.filled(dtype, tuple(shape)) for key, (dtype, shape) in held["tensors"].items()},
        held["config"],
    )  # fmt: skip
    if held["hf_quant_config"] is not None:
        (folder / "hf_quant_config.json").write_text(json.dumps(held["hf_quant_config"]))
    return described(folder)


def described(folder: Path) -> Description:
    return describe.describe(checkpoint.read(folder))


def stored(found: Description) -> dict[str, str]:
    return {part.part: ", ".join(str(form) for form, _ in part.formats) for part in found.parts}


@pytest.mark.parametrize(
    ("name", "method", "activations", "language"),
    [
        (
            "modelopt 0.41.0 nvfp4 kv-fp8", "modelopt-nvfp4", "static",
            "NVFP4 (weights per group, static activation scales)",
        ),
        (
            "modelopt 0.47.0 nvfp4 kv-fp8", "modelopt-nvfp4", "static",
            "NVFP4 (weights per group, static activation scales)",
        ),
        (
            "llm-compressor 0.14.0.1 FP8_DYNAMIC qwen2_5_vl", "compressed-tensors-fp8", "dynamic",
            "FP8 (weights per channel, no activation scales)",
        ),
        (
            "llm-compressor 0.14.0.1 FP8_DYNAMIC qwen3_vl", "compressed-tensors-fp8", "dynamic",
            "FP8 (weights per channel, no activation scales)",
        ),
        (
            "llm-compressor 0.14.0.1 FP8_BLOCK", "compressed-tensors-fp8", "dynamic",
            "FP8 (weights per block, no activation scales)",
        ),
        (
            "llm-compressor 0.14.0.1 FP8 kv-fp8", "compressed-tensors-fp8", "static",
            "FP8 (weights per tensor, static activation scales)",
        ),
        (
            "llm-compressor 0.14.0.1 NVFP4A16", "compressed-tensors-nvfp4", "none",
            "NVFP4 (weights per group, no activation scales)",
        ),
        (
            "llm-compressor 0.14.0.1 NVFP4", "compressed-tensors-nvfp4", "static",
            "NVFP4 (weights per group, static activation scales)",
        ),
    ],
)  # fmt: skip
def test_real_producers(tmp_path: Path, name: str, method: str, activations: str, language: str) -> None:
    found = produced(tmp_path, name)
    assert (found.method, found.activations) == (method, activations)
    assert stored(found) == BF16_PARTS | {"language_model": language}
    assert all(claim.agrees for claim in found.claims)
    assert found.claims_differ == ()
    kv = name.endswith("kv-fp8")
    assert found.kv_cache == describe.KvCache(
        declared="fp8" if kv else None, scales=4 if kv else 0, expected=4, stray=()
    )
    assert found.producer_version in {"0.41.0", "0.47.0", "0.19.0"}


def test_llm_compressor_quantizes_the_tower_unless_told_otherwise(tmp_path: Path) -> None:
    found = produced(tmp_path, "llm-compressor 0.14.0.1 FP8_DYNAMIC qwen2_vl")
    assert found.title == "Qwen2-VL"
    assert found.part("vision").quantized == found.part("vision").modules == 10


def test_sizes_names_bytes_and_dtypes(tmp_path: Path) -> None:
    found = produced(tmp_path, "llm-compressor 0.14.0.1 FP8_DYNAMIC qwen3_vl")
    held = PRODUCERS["llm-compressor 0.14.0.1 FP8_DYNAMIC qwen3_vl"]["tensors"]
    assert (found.family, found.layers, found.vision_blocks, found.hidden_size) == ("qwen3_vl", 2, 2, 128)
    assert (found.spelling, found.nested_config, found.dtype) == ("transformers>=4.52", True, "BF16")
    assert (found.tied, found.head_stored, found.tensors) == (False, True, len(held))
    assert dict(found.bytes_by_dtype) == {
        kind: sum(math.prod(shape) * BITS[dtype] // 8 for dtype, shape in held.values() if dtype == kind)
        for kind in ("BF16", "F8_E4M3")
    }


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
@pytest.mark.parametrize("form", ["fp8", "fp8-channel", "nvfp4", "nvfp4-packed"])
def test_every_form_in_every_family(tmp_path: Path, family: Any, form: make.Stored) -> None:
    config = make.other_config(family)
    tensors = make.bf16_tensors(config)
    make.store(tensors, config, form, ["language_model", "vision"])
    quantization = {
        "fp8": make.inline_quantization(("lm_head",), kv=False),
        "nvfp4": make.nvfp4_quantization(("lm_head",)),
    }.get(form) or make.compressed_quantization(("lm_head",), form)
    make.write(tmp_path, tensors, config | {"quantization_config": quantization})
    found = described(tmp_path)
    assert [(part.partial, part.quantized == part.modules) for part in found.parts] == [
        (False, True), (False, True), (False, False),
    ]  # fmt: skip
    assert found.claims[0].agrees


def test_bf16(tmp_path: Path) -> None:
    config = make.small_config(tied=True)
    make.write(tmp_path, make.bf16_tensors(config), config)
    found = described(tmp_path)
    assert (found.method, found.claims, found.producer) == ("none", (), None)
    assert (found.tied, found.head_stored) == (True, False)
    assert found.part("head").modules == 0


def test_a_part_that_is_partial_names_its_first_exception(tmp_path: Path) -> None:
    config = make.small_config()
    tensors = make.fp8_tensors(config, vision=True)
    for block in (0, 1):
        tensors[f"visual.blocks.{block}.attn.proj.weight"] = make.filled("BF16", (16, 16))
    quantization = make.inline_quantization(("lm_head",))
    make.write(tmp_path, tensors, config | {"quantization_config": quantization})
    found = described(tmp_path)
    vision = found.part("vision")
    assert vision.partial
    assert vision.first_exception == "visual.blocks.0.attn.proj"
    assert vision.exceptions == ("visual.blocks.{0-1}.attn.proj",)
    assert [count for _, count in vision.formats] == [10, 2]
    assert found.claims[0].stored_unquantized == ("visual.blocks.{0-1}.attn.proj",)
    assert not found.part("language_model").partial


def test_a_claim_of_one_format_and_tensors_of_another(tmp_path: Path) -> None:
    config = make.small_config()
    quantization = make.nvfp4_quantization(make.LM_EXCLUSIONS)
    make.write(tmp_path, make.fp8_tensors(config), config | {"quantization_config": quantization})
    (claim,) = described(tmp_path).claims
    assert not claim.agrees
    assert claim.stored_otherwise[0] == "model.layers.{0-1}.self_attn.q_proj"


def test_two_files_that_disagree(tmp_path: Path) -> None:
    folder = make.lm_fp8(tmp_path)
    other = make.separate_quantization(("lm_head",))
    (folder / "hf_quant_config.json").write_text(json.dumps(other))
    found = described(folder)
    inline, separate = found.claims
    assert (inline.taken, inline.agrees, separate.taken, separate.agrees) == (True, True, False, False)
    assert separate.stored_unquantized[0] == "visual.blocks.{0-1}.attn.qkv"
    assert found.claims_differ == (
        "exclusions: config.json says ['lm_head', 'visual*'], hf_quant_config.json ['lm_head']",
    )


def test_hf_quant_config_alone_is_taken(tmp_path: Path) -> None:
    config = make.small_config()
    make.write(tmp_path, make.fp8_tensors(config), config)
    said = make.separate_quantization(("lm_head", "model.visual*"))
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(said))
    (claim,) = described(tmp_path).claims
    assert (claim.file, claim.taken, claim.agrees) == ("hf_quant_config.json", True, True)


def test_a_file_that_is_not_taken_may_be_of_an_unknown_kind(tmp_path: Path) -> None:
    folder = make.lm_fp8(tmp_path)
    (folder / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "W4A8_AWQ"}}')
    separate = described(folder).claims[1]
    assert not separate.agrees
    assert separate.unknown == "ModelOpt's algorithm 'W4A8_AWQ'"


def test_stray_scales_of_the_tower(tmp_path: Path) -> None:
    config = make.small_config()
    tensors = make.fp8_tensors(config) | {
        f"visual.blocks.{block}.attn.{name}": make.SCALE
        for block in (0, 1)
        for name in ("k_proj.k_scale", "v_proj.v_scale")
    }
    inline = {"quantization_config": make.inline_quantization(make.LM_EXCLUSIONS)}
    kv = described(make.write(tmp_path, tensors, config | inline)).kv_cache
    assert (kv.scales, kv.expected) == (4, 4)
    assert kv.stray == ("visual.blocks.{0-1}.attn.k_proj.k_scale", "visual.blocks.{0-1}.attn.v_proj.v_scale")


def test_an_fp8_weight_without_scale(tmp_path: Path) -> None:
    config = make.small_config()
    tensors = make.fp8_tensors(config)
    del tensors["model.layers.1.mlp.up_proj.weight_scale"]
    make.write(tmp_path, tensors, config | {"quantization_config": make.inline_quantization(("lm_head",))})
    part = described(tmp_path).part("language_model")
    assert str(part.formats[1][0]) == "FP8 (weights per missing, static activation scales)"
    assert part.first_exception == "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("gone", "missing"),
    [
        ([], ()),
        (["tokenizer.json"], ("tokenizer.json",)),
        (["chat_template.jinja", "tokenizer.json"], ("tokenizer.json", "chat_template.jinja")),
    ],
)  # fmt: skip
def test_missing_files(tmp_path: Path, gone: list[str], missing: tuple[str, ...]) -> None:
    folder = make.lm_fp8(tmp_path)
    for name in gone:
        (folder / name).unlink()
    assert described(folder).missing_files == missing


def test_a_template_inside_the_tokenizers_configuration_counts(tmp_path: Path) -> None:
    folder = make.lm_fp8(tmp_path)
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    assert described(folder).missing_files == ()


FP8_GROUP = {"weights": {"num_bits": 8, "type": "float"}, "targets": ["Linear"]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "the quantization method 'gptq'"),
        ({"quantization_config": {"quant_method": "awq"}}, "'awq'"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "'bitsandbytes'"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "'fp8'"),
        ({"quantization_config": {"quant_algo": "MIXED_PRECISION"}}, "'MIXED_PRECISION'"),
        ({"quantization_config": {}}, "method None"),
        ({"quantization_config": make.compressed_quantization(()) | {"config_groups": {}}}, "0 groups"),
        ({"quantization_config": make.compressed_quantization(()) | {"config_groups": 1}}, "no groups"),
        (
            {"quantization_config": make.compressed_quantization(("re:(a+)+$",))},
            r"the regular expression '\(a\+\)\+\$'",
        ),
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors", "format": "pack-quantized",
                    "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
                }
            },
            "weights of 4 bits, 'int'",
        ),
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors", "format": "naive-quantized",
                    "config_groups": {"group_0": FP8_GROUP},
                }
            },
            "format 'naive-quantized'",
        ),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"model_type": "qwen3_vl_moe"}, "qwen3_vl_moe"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_said_in_one_sentence(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    config = make.small_config()
    make.write(tmp_path, make.bf16_tensors(config), config | change)
    with pytest.raises(UnknownModelError, match=said) as caught:
        described(tmp_path)
    assert caught.value.exit_code == 4
    assert "\n" not in caught.value.problem


def test_weights_of_another_type_are_not_known(tmp_path: Path) -> None:
    config = make.small_config()
    tensors = make.bf16_tensors(config)
    tensors["lm_head.weight"] = make.filled("I8", tensors["lm_head.weight"][1])
    make.write(tmp_path, tensors, config)
    with pytest.raises(UnknownModelError, match="of the type I8"):
        described(tmp_path)


def test_json_has_everything_and_nothing_else(tmp_path: Path) -> None:
    found = produced(tmp_path, "llm-compressor 0.14.0.1 FP8 kv-fp8")
    written = json.loads(json.dumps(as_json(found)))
    assert written["parts"][1]["quantized"] == 14
    assert written["parts"][1]["formats"][0]["kind"] == "fp8"
    assert written["claims"][0]["agrees"] is True
    assert written["bytes_by_dtype"]["F8_E4M3"] == 294912
    assert written["kv_cache"] == {"declared": "fp8", "scales": 4, "expected": 4, "stray": []}


CONFIG = make.small_config()
TENSORS = make.fp8_tensors(CONFIG)
INLINE = make.inline_quantization(make.LM_EXCLUSIONS)


@settings(max_examples=40, deadline=None)
@given(
    dropped=st.sets(st.sampled_from(sorted(TENSORS)), max_size=4),
    retyped=st.sets(st.sampled_from(sorted(name for name in TENSORS if name.endswith("weight"))), max_size=4),
    style=st.sampled_from(sorted(make.STYLES)),
    patterns=st.lists(st.sampled_from(["lm_head", "visual*", "model.visual", "*", "model.layers.0*"])),
)
def test_the_claim_agrees_exactly_where_every_module_does(
    tmp_path_factory: pytest.TempPathFactory,
    dropped: set[str], retyped: set[str], style: str, patterns: list[str],
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("checkpoint")
    tensors = {name: entry for name, entry in TENSORS.items() if name not in dropped}
    tensors |= {n: make.filled("BF16", TENSORS[n][1]) for n in retyped - dropped}
    inline = make.inline_quantization(tuple(patterns))
    make.write(
        folder, tensors, CONFIG | {"quantization_config": inline},
        spell=make.spelling(style),
    )  # fmt: skip
    held = describe.look(checkpoint.read(folder))
    (claim,) = held.description.claims
    says = held.declaration.quantizes()
    assert held.description.spelling == style
    assert claim.agrees == all(
        says(name) == form.quantized for name, form in held.formats.items() if form.kind != "missing"
    )
    assert sum(part.modules for part in held.description.parts) == len(held.formats) - (
        "lm_head.weight" in dropped
    )


json_values = st.recursive(
    st.sampled_from([None, True, -1, 16, "FP8", "modelopt", "compressed-tensors", "Linear", "re:("]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["quant_method", "quant_algo", "ignore", "config_groups", "group_0", "weights", "type",
                 "quantization", "kv_cache_scheme", "num_bits", "producer", "format", "input_activations"]
            ),
            inner,
        )
    ),
    max_leaves=8,
)  # fmt: skip


@settings(deadline=None)
@given(st.sampled_from(sorted(INLINE) + sorted(make.compressed_quantization(()))), json_values, st.booleans())
def test_no_configuration_breaks_the_reading(
    tmp_path_factory: pytest.TempPathFactory, field: str, value: object, compressed: bool
) -> None:
    folder = tmp_path_factory.getbasetemp() / "one"
    base = make.compressed_quantization(("lm_head",)) if compressed else INLINE
    if not folder.exists():
        make.write(folder, TENSORS, CONFIG)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": base | {field: value}}))
    with suppress(UnknownModelError):  # either outcome is right, another exception is not
        described(folder)


def test_shards(tmp_path: Path) -> None:
    folder = make.lm_fp8(tmp_path)
    (folder / "model.safetensors").unlink()
    halves = [dict(list(TENSORS.items())[start::2]) for start in (0, 1)]
    for number, half in enumerate(halves):
        write_safetensors(folder / f"{number}.safetensors", [(n, *entry) for n, entry in half.items()])
    assert (described(folder).weight_files, described(folder).tensors) == (2, len(TENSORS))
