import json
from pathlib import Path

from qvlfp8 import checkpoint
from qvlfp8.declared import METHODS
from qvlfp8.describe import describe
from qvlfp8.report import description
from tests.unit import checkpoints as make


def test_a_sound_export(tmp_path: Path) -> None:
    size, method, vision, language, head, cache, claim = description.lines(
        describe(checkpoint.read(make.lm_fp8(tmp_path)))
    )
    assert size.startswith("Qwen2.5-VL: 0.0 million parameters, 2 layers, 2 vision blocks; ")
    assert method == "ModelOpt FP8, by modelopt 0.0.0; activation scales: static"
    assert vision == "vision tower: 12 BF16"
    assert language == "language model: 14 FP8 (weights per tensor, static activation scales)"
    assert head == "lm_head: 1 BF16"
    assert cache == "KV cache: FP8, 4 of 4 scales"
    assert claim == "config.json excludes lm_head, visual*"


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    config = make.small_config()
    tensors = make.fp8_tensors(config) | {"visual.blocks.1.attn.k_proj.k_scale": make.SCALE}
    tensors["model.layers.1.mlp.up_proj.weight"] = make.filled("BF16", (48, 32))
    folder = make.write(
        tmp_path, tensors, config | {"quantization_config": make.inline_quantization(("lm_head",))}
    )
    (folder / "hf_quant_config.json").write_text(json.dumps(make.separate_quantization(("*",))))
    (folder / "tokenizer.json").unlink()
    said = list(description.lines(describe(checkpoint.read(folder))))
    for line in (
        "KV cache scales of the vision tower, which has no cache: visual.blocks.1.attn.k_proj.k_scale",
        "hf_quant_config.json (not taken: config.json counts) excludes *",
        "exclusions: config.json says ['lm_head'], hf_quant_config.json ['*']",
        "missing: tokenizer.json",
    ):
        assert line in said
    assert any(line.endswith("; the first otherwise is model.layers.1.mlp.up_proj") for line in said)
    assert any(
        line.startswith("config.json: not excluded, yet not quantized: model.layers.1.mlp.up_proj, visual.")
        for line in said
    )
    assert any(line.startswith("hf_quant_config.json: excluded, yet quantized: model.") for line in said)


def test_a_tied_model_that_is_not_quantized(tmp_path: Path) -> None:
    config = make.small_config(tied=True)
    make.write(tmp_path, make.bf16_tensors(config), config)
    said = list(description.lines(describe(checkpoint.read(tmp_path))))
    assert said[1] == "not quantized; activation scales: none"
    assert said[4:] == ["lm_head: not stored, tied to the embedding"]


def test_every_method_has_a_name() -> None:
    assert set(description.METHODS) == set(METHODS)
