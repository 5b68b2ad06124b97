import json
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qvlfp8 import tensorfile
from qvlfp8.conformance import values
from qvlfp8.structure import spellings
from qvlfp8.worker import inspect
from qvlfp8.worker.protocol import Refused
from tests.unit import checkpoints
from tests.unit.checkpoints import SCALE, Entry, filled

Tensors = dict[str, Entry]

LAYER = "model.layers.0"
QKV = "visual.blocks.0.attn.qkv"


def inspected(folder: Path, recipe: dict[str, Any] | None = None) -> dict[str, Any]:
    return inspect.run({"checkpoint": str(folder), "recipe": recipe}, folder)


def scale(value: float) -> Entry:
    return "F32", (), struct.pack("<f", value)


def export(
    folder: Path,
    *,
    vision: bool = False,
    exclusions: tuple[str, ...] | None = None,
    kv: bool = True,
    change: Callable[[Tensors], object] = lambda _: None,
    spell: Callable[[str], str] = str,
) -> Path:
    config = checkpoints.small_config()
    if exclusions is None:
        exclusions = checkpoints.VLM_EXCLUSIONS if vision else checkpoints.LM_EXCLUSIONS
    tensors = checkpoints.fp8_tensors(config, vision=vision)
    change(tensors)
    inline = checkpoints.inline_quantization(exclusions, kv=kv)
    return checkpoints.write(folder, tensors, config | {"quantization_config": inline}, spell=spell)


def found(measured: dict[str, Any]) -> set[tuple[str, str]]:
    return {(problem["finding"], problem["subject"]) for problem in measured["problems"]}


def test_a_sound_language_model_export(tmp_path: Path) -> None:
    measured = inspected(export(tmp_path), checkpoints.RECIPE)

    assert measured["problems"] == []
    assert measured["counts"] == {}
    assert measured["scope_quantized"] == {"vision": [0, 12], "language_model": [14, 14]}
    assert measured["kv_scales"] == {
        "config": "fp8", "expected": 4, "vision": 0, "language_model": 4,
    }  # fmt: skip
    assert measured["producer"]["name"] == "modelopt"
    assert measured["config_source"] == "config.json"
    assert len(measured["digest"]) == 64


def test_a_sound_vision_export(tmp_path: Path) -> None:
    measured = inspected(export(tmp_path, vision=True), checkpoints.VLM_RECIPE)
    assert measured["problems"] == []
    assert measured["scope_quantized"]["vision"] == [12, 12]


@pytest.mark.parametrize("which", [0, 1, -1])
@pytest.mark.parametrize(
    "exclusions",
    [
        ("lm_head", "visual*"),
        ("lm_head", "model.visual*"),
        ("lm_head", "visual"),
        ("lm_head", "model.visual.*"),
        ("lm_head", "model.language_model.embed_tokens", "*visual*"),
    ],
)
def test_no_spelling_is_a_problem(tmp_path: Path, which: int, exclusions: tuple[str, ...]) -> None:
    folder = export(tmp_path, exclusions=exclusions, spell=lambda name: spellings(name)[which])
    measured = inspected(folder, checkpoints.RECIPE)
    assert measured["problems"] == []
    assert measured["exclusions_without_effect"] == []


def test_the_separate_configuration_alone(tmp_path: Path) -> None:
    config = checkpoints.small_config()
    checkpoints.write(tmp_path, checkpoints.fp8_tensors(config), config)
    declared = {
        "producer": {"name": "modelopt", "version": "0.33.1"},
        "quantization": {
            "quant_algo": "FP8",
            "kv_cache_quant_algo": "FP8",
            "exclude_modules": ["lm_head", "model.visual*"],
        },
    }
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(declared))

    measured = inspected(tmp_path, checkpoints.RECIPE)

    assert measured["problems"] == []
    assert measured["config_source"] == "hf_quant_config.json"
    assert measured["producer"]["version"] == "0.33.1"


def test_a_tied_head_may_be_there_or_not(tmp_path: Path) -> None:
    config = checkpoints.small_config(tied=True)
    config["quantization_config"] = checkpoints.inline_quantization(checkpoints.LM_EXCLUSIONS)
    tensors = checkpoints.fp8_tensors(config)
    assert "lm_head.weight" not in tensors
    assert inspected(checkpoints.write(tmp_path, tensors, config))["problems"] == []
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    assert inspected(checkpoints.write(tmp_path, tensors, config))["problems"] == []


def test_an_unquantized_model(tmp_path: Path) -> None:
    config = checkpoints.small_config()
    tensors = {
        name: filled("BF16", shape)
        for name, (_, shape, _) in checkpoints.fp8_tensors(config).items()
        if not name.endswith("_scale")
    }
    checkpoints.write(tmp_path, tensors, config)
    assert inspected(tmp_path)["problems"] == []
    assert found(inspected(tmp_path, checkpoints.RECIPE)) == {
        ("scope-not-quantized", "language_model"),
        ("scope-not-quantized", "kv_cache"),
    }


CHANGES: dict[str, tuple[Callable[[Tensors], object], set[tuple[str, str]]]] = {
    "dropped": (
        lambda t: t.pop(f"{LAYER}.input_layernorm.weight"),
        {("missing-tensor", f"{LAYER}.input_layernorm.weight")},
    ),
    "untied head dropped": (
        lambda t: t.pop("lm_head.weight"),
        {("missing-tensor", "lm_head.weight")},
    ),
    "added": (
        lambda t: t.update({f"{LAYER}.mlp.extra.weight": filled("BF16", (2,))}),
        {("unexpected-tensor", f"{LAYER}.mlp.extra.weight")},
    ),
    "renamed": (
        lambda t: t.update({"visual.merger.norm.weight": t.pop("visual.merger.ln_q.weight")}),
        {
            ("missing-tensor", "visual.merger.ln_q.weight"),
            ("unexpected-tensor", "visual.merger.norm.weight"),
        },
    ),
    "twice, in two spellings": (
        lambda t: t.update({f"model.{QKV}.bias": t[f"{QKV}.bias"]}),
        {("unexpected-tensor", f"{QKV}.bias")},
    ),
    "norm in another type": (
        lambda t: t.update({"model.norm.weight": filled("F32", (32,))}),
        {("dtype-mismatch", "model.norm.weight")},
    ),
    "norm in FP8": (
        lambda t: t.update({"model.norm.weight": filled("F8_E4M3", (32,))}),
        {("dtype-mismatch", "model.norm.weight")},
    ),
    "other shape": (
        lambda t: t.update({f"{LAYER}.mlp.up_proj.weight": filled("F8_E4M3", (48, 31))}),
        {("shape-mismatch", f"{LAYER}.mlp.up_proj.weight")},
    ),
    "weight not FP8": (
        lambda t: t.update({f"{LAYER}.mlp.up_proj.weight": filled("BF16", (48, 32))}),
        {
            ("config-contradicts-tensors", f"{LAYER}.mlp.up_proj.weight"),
            ("unexpected-tensor", f"{LAYER}.mlp.up_proj.weight_scale"),
            ("unexpected-tensor", f"{LAYER}.mlp.up_proj.input_scale"),
        },
    ),
    "excluded weight in FP8": (
        lambda t: t.update({f"{QKV}.weight": filled("F8_E4M3", (48, 16))}),
        {
            ("config-contradicts-tensors", f"{QKV}.weight"),
            ("scale-missing", f"{QKV}.weight_scale"),
            ("scale-missing", f"{QKV}.input_scale"),
        },
    ),
    "no weight scale": (
        lambda t: t.pop(f"{LAYER}.mlp.up_proj.weight_scale"),
        {("scale-missing", f"{LAYER}.mlp.up_proj.weight_scale")},
    ),
    "scale in BF16": (
        lambda t: t.update({f"{LAYER}.mlp.up_proj.input_scale": ("BF16", (), b"\x80\x3f")}),
        {("dtype-mismatch", f"{LAYER}.mlp.up_proj.input_scale")},
    ),
    "scale a channel": (
        lambda t: t.update({f"{LAYER}.mlp.up_proj.weight_scale": filled("F32", (48,))}),
        {("shape-mismatch", f"{LAYER}.mlp.up_proj.weight_scale")},
    ),
    "one KV scale missing": (
        lambda t: t.pop(f"{LAYER}.self_attn.v_proj.v_scale"),
        {("scale-missing", f"{LAYER}.self_attn.v_proj.v_scale")},
    ),
    "stray vision scale": (
        lambda t: t.update({"visual.blocks.0.attn.k_proj.k_scale": SCALE}),
        {("stray-vision-kv-scale", "visual.blocks.0.attn.k_proj.k_scale")},
    ),
    "vision scale of another kind": (
        lambda t: t.update({"visual.blocks.0.attn.q_proj.q_scale": SCALE}),
        {("unexpected-tensor", "visual.blocks.0.attn.q_proj.q_scale")},
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_corruption_is_found_and_named(tmp_path: Path, name: str) -> None:
    change, expected = CHANGES[name]
    assert found(inspected(export(tmp_path, change=change))) == expected


@pytest.mark.parametrize("suffix", ["mlp.up_proj.weight_scale", "self_attn.k_proj.k_scale"])
@pytest.mark.parametrize(
    ("value", "finding"),
    [
        (float("nan"), "scale-not-finite"),
        (float("inf"), "scale-not-finite"),
        (0.0, "scale-not-positive"),
        (-3.4e38, "scale-not-positive"),
    ],
)
def test_scales_that_cannot_be(tmp_path: Path, suffix: str, value: float, finding: str) -> None:
    name = f"{LAYER}.{suffix}"
    folder = export(tmp_path, change=lambda t: t.update({name: scale(value)}))
    assert found(inspected(folder)) == {(finding, name)}


def test_a_scale_of_shape_one_is_a_scalar(tmp_path: Path) -> None:
    one = ("F32", (1,), SCALE[2])
    folder = export(tmp_path, change=lambda t: t.update({f"{LAYER}.mlp.up_proj.input_scale": one}))
    assert inspected(folder)["problems"] == []


def test_an_exclusion_that_names_no_module(tmp_path: Path) -> None:
    # What ModelOpt 0.37.0 writes for this model: its layer names get a prefix that no file has.
    measured = inspected(export(tmp_path, exclusions=("model.layers.visual*", "lm_head")))
    assert measured["exclusions_without_effect"] == ["model.layers.visual*"]
    assert measured["counts"] == {"config-contradicts-tensors": 12}


def test_kv_scales_may_be_left_out_unless_a_recipe_measured_them(tmp_path: Path) -> None:
    def drop(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.endswith((".k_scale", ".v_scale"))]:
            del tensors[name]

    folder = export(tmp_path, change=drop)
    assert inspected(folder)["problems"] == []
    assert inspected(folder, checkpoints.RECIPE)["counts"] == {"scale-missing": 4}


def test_kv_scales_without_an_fp8_cache(tmp_path: Path) -> None:
    measured = inspected(export(tmp_path, kv=False), checkpoints.RECIPE)
    assert measured["counts"] == {"config-contradicts-tensors": 4, "scope-not-quantized": 1}


def test_less_than_the_recipe_asked_for(tmp_path: Path) -> None:
    measured = inspected(export(tmp_path), checkpoints.VLM_RECIPE)
    assert found(measured) == {("scope-not-quantized", "vision")}
    assert "12 of 12" in measured["problems"][0]["detail"]


def test_more_than_the_recipe_asked_for(tmp_path: Path) -> None:
    no_cache = checkpoints.RECIPE | {"kv_cache": {"format": "none", "attention": []}}
    measured = inspected(export(tmp_path, vision=True), no_cache)
    assert found(measured) == {
        ("quantized-outside-scope", "vision"),
        ("quantized-outside-scope", "kv_cache"),
    }


@pytest.mark.parametrize(
    "file",
    [
        "tokenizer.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
        "chat_template.jinja",
    ],
)
def test_a_file_that_serving_needs(tmp_path: Path, file: str) -> None:
    folder = export(tmp_path)
    (folder / file).unlink()
    assert found(inspected(folder)) == {("file-missing", file)}


@pytest.mark.parametrize(
    ("absent", "instead"),
    [
        ("tokenizer.json", {"vocab.json": "{}", "merges.txt": ""}),
        ("chat_template.jinja", {"chat_template.json": "{}"}),
        ("chat_template.jinja", {"tokenizer_config.json": '{"chat_template": ""}'}),
    ],
)
def test_files_that_do_as_well(tmp_path: Path, absent: str, instead: dict[str, str]) -> None:
    folder = export(tmp_path)
    (folder / absent).unlink()
    for name, content in instead.items():
        (folder / name).write_text(content)
    assert inspected(folder)["problems"] == []


def test_problems_are_capped_and_counts_are_not(tmp_path: Path) -> None:
    def drop(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.startswith("visual.") or n.endswith("layernorm.weight")]:
            del tensors[name]
        tensors |= {f"foreign.{n}": filled("BF16", (1,)) for n in range(60)}

    measured = inspected(export(tmp_path, change=drop))
    assert len(measured["problems"]) == inspect.MOST_PROBLEMS
    assert measured["counts"]["unexpected-tensor"] == 60


@pytest.mark.parametrize(
    ("file", "content", "kind"),
    [
        ("model.safetensors", "", "not-a-checkpoint"),
        ("config.json", "", "not-a-checkpoint"),
        ("config.json", '{"model_type": "llama"}', "unknown-model"),
    ],
)
def test_what_cannot_be_inspected_is_refused(tmp_path: Path, file: str, content: str, kind: str) -> None:
    folder = export(tmp_path)
    (folder / file).write_text(content)
    with pytest.raises(Refused, match=str(tmp_path)) as refusal:
        inspected(folder)
    assert refusal.value.kind == kind


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "compressed-tensors"},
        {"quant_algo": "NVFP4_AWQ"},
        {"quant_method": "gptq"},
        {"quant_algo": "FP8", "ignore": "lm_head"},
        {"quant_algo": "FP8", "kv_cache_scheme": {"num_bits": 4, "type": "float"}},
        {"quantization": "FP8"},
    ],
)
def test_another_quantization_is_refused(tmp_path: Path, quantization: dict[str, Any]) -> None:
    config = checkpoints.small_config()
    tensors = checkpoints.fp8_tensors(config)
    checkpoints.write(tmp_path, tensors, config | {"quantization_config": quantization})
    with pytest.raises(Refused) as refusal:
        inspected(tmp_path)
    assert refusal.value.kind == "unknown-quantization"


def test_the_only_fact_is_the_interpreter() -> None:
    assert inspect.prepare([]).keys() == {"python"}


NAN_FP8 = ("F8_E4M3", (48, 32), b"\x38" * (48 * 32 - 1) + b"\x7f")


@pytest.mark.parametrize(
    ("name", "entry", "finding"),
    [
        (f"{LAYER}.mlp.up_proj.weight", NAN_FP8, "weight-not-finite"),
        (f"{LAYER}.mlp.up_proj.weight", ("F8_E4M3", (48, 32), bytes(48 * 32)), "weight-all-zero"),
        ("model.norm.weight", ("BF16", (32,), b"\x80\x3f" * 31 + b"\xc0\x7f"), "weight-not-finite"),
        ("model.norm.weight", ("BF16", (32,), b"\x80\x3f" * 31 + b"\x80\xff"), "weight-not-finite"),
    ],
)
@pytest.mark.parametrize("size", [8 << 20, 6])
def test_weights_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, entry: Entry, finding: str, size: int
) -> None:
    monkeypatch.setattr(values, "blocks", partial(tensorfile.blocks, size=size))
    measured = inspected(export(tmp_path, change=lambda tensors: tensors.update({name: entry})))
    assert found(measured) == {(finding, name)}


@pytest.mark.parametrize("data", [bytes(48 * 32 - 1) + b"\x38", b"\x38" + bytes(48 * 32 - 1)])
def test_a_weight_that_is_zero_in_part_is_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr(values, "blocks", partial(tensorfile.blocks, size=6))
    entry: Entry = ("F8_E4M3", (48, 32), data)
    folder = export(tmp_path, change=lambda tensors: tensors.update({f"{LAYER}.mlp.up_proj.weight": entry}))
    assert found(inspected(folder)) == set()


def test_the_largest_finite_numbers_are_no_problem(tmp_path: Path) -> None:
    largest = {
        f"{LAYER}.mlp.up_proj.weight": ("F8_E4M3", (48, 32), b"\x7e\xfe" * (24 * 32)),
        "model.norm.weight": ("BF16", (32,), b"\x7f\x7f" * 32),
    }
    assert found(inspected(export(tmp_path, change=lambda tensors: tensors.update(largest)))) == set()


def test_a_head_that_a_tie_would_replace_by_something_else(tmp_path: Path) -> None:
    folder = export(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert found(inspected(folder)) == set()
    other = ("BF16", (16, 32), b"\x39" * (16 * 32 * 2))
    folder = export(tmp_path, change=lambda tensors: tensors.update({"lm_head.weight": other}))
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert found(inspected(folder)) == {("tie-contradicts-tensors", "lm_head.weight")}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", ""),
        ("tokenizer_config.json", "[]"),
        ("preprocessor_config.json", "{"),
        ("preprocessor_config.json", '{"patch_size": 16}'),
        ("preprocessor_config.json", '{"merge_size": 4}'),
        ("chat_template.jinja", "\n"),
    ],
)
def test_a_file_that_is_there_and_useless(tmp_path: Path, name: str, content: str) -> None:
    folder = export(tmp_path)
    (folder / name).write_text(content)
    assert found(inspected(folder)) == {("file-invalid", name)}


@pytest.mark.parametrize(
    ("key", "value"),
    [("exclude_modules", ["lm_head"]), ("kv_cache_quant_algo", None), ("quant_algo", "NVFP4")],
)
def test_two_configurations_that_disagree(tmp_path: Path, key: str, value: object) -> None:
    folder = export(tmp_path)
    inner = {
        "quant_algo": "FP8",
        "kv_cache_quant_algo": "FP8",
        "exclude_modules": list(checkpoints.LM_EXCLUSIONS),
    }
    declared = {"producer": {"name": "modelopt", "version": "0"}, "quantization": inner}
    (folder / "hf_quant_config.json").write_text(json.dumps(declared))
    assert found(inspected(folder)) == set()
    declared["quantization"] = inner | {key: value}
    (folder / "hf_quant_config.json").write_text(json.dumps(declared))
    assert {finding for finding, _ in found(inspected(folder))} == {"config-contradicts-config"}
