"""What inspect makes of each recipe's format, scope and family, and of what is wrong with it."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from qvlfp8 import families
from qvlfp8.worker import inspect
from qvlfp8.worker.protocol import Refused
from tests.unit import checkpoints
from tests.unit.checkpoints import SCALE, Entry, filled

Tensors = dict[str, Entry]
Change = Callable[[Tensors], object]

UP = "model.layers.0.mlp.up_proj"
NO_CACHE = {"kv_cache": {"format": "none", "attention": []}}
CAST: dict[str, Any] = checkpoints.RECIPE | {
    "kv_cache": {"format": "fp8-cast", "attention": ["language_model"]}
}
NVFP4: dict[str, Any] = checkpoints.RECIPE | NO_CACHE | {"format": "nvfp4"}
DYNAMIC: dict[str, Any] = checkpoints.RECIPE | NO_CACHE | {"format": "fp8-dynamic"}
VISION: dict[str, Any] = checkpoints.RECIPE | NO_CACHE | {"scope": ["vision"]}
ATTENTION: dict[str, Any] = checkpoints.RECIPE | {"scope": ["language_model", "vision_attention"]}


def unchanged(tensors: Tensors) -> None:
    del tensors


def found(folder: Path, recipe: dict[str, Any] | None) -> set[tuple[str, str]]:
    measured = inspect.run({"checkpoint": str(folder), "recipe": recipe}, folder)
    return {(problem["finding"], problem["subject"]) for problem in measured["problems"]}


def fp8(
    folder: Path, change: Change, exclusions: tuple[str, ...], *, kv: bool = True, vision: bool = False
) -> Path:
    config = checkpoints.small_config()
    tensors = checkpoints.fp8_tensors(config, vision=vision)
    change(tensors)
    inline = checkpoints.inline_quantization(exclusions, kv=kv)
    return checkpoints.write(folder, tensors, config | {"quantization_config": inline})


def stored(
    folder: Path, form: checkpoints.Stored, inline: dict[str, Any], change: Change = unchanged
) -> Path:
    """An export whose language model is stored in a form, without a quantized KV cache."""
    config = checkpoints.small_config()
    tensors = checkpoints.bf16_tensors(config)
    checkpoints.store(tensors, config, form, ["language_model"])
    change(tensors)
    return checkpoints.write(folder, tensors, config | {"quantization_config": inline})


def nvfp4(folder: Path, change: Change = unchanged) -> Path:
    inline = checkpoints.nvfp4_quantization(checkpoints.LM_EXCLUSIONS)
    del inline["kv_cache_scheme"]
    return stored(folder, "nvfp4", inline, change)


IGNORED = ("re:.*lm_head", "re:.*visual.*")


def dynamic(folder: Path, change: Change = unchanged) -> Path:
    return stored(folder, "fp8-channel", checkpoints.compressed_quantization(IGNORED), change)


def without_kv_scales(tensors: Tensors, *, left: int = 0) -> None:
    for name in [n for n in tensors if n.endswith((".k_scale", ".v_scale"))][left:]:
        del tensors[name]


def without_language_scales(tensors: Tensors) -> None:
    """The language model as BF16."""
    for name, (dtype, shape, _) in list(tensors.items()):
        if not name.startswith("visual."):
            if name.endswith("_scale"):
                del tensors[name]
            elif dtype == "F8_E4M3":
                tensors[name] = filled("BF16", shape)


def test_keys_and_values_that_are_cast_have_no_scale(tmp_path: Path) -> None:
    folder = fp8(tmp_path, without_kv_scales, checkpoints.LM_EXCLUSIONS)
    assert found(folder, CAST) == set()
    assert {finding for finding, _ in found(folder, checkpoints.RECIPE)} == {"scale-missing"}


def test_keys_and_values_have_all_scales_or_none(tmp_path: Path) -> None:
    folder = fp8(tmp_path, lambda tensors: without_kv_scales(tensors, left=1), checkpoints.LM_EXCLUSIONS)
    assert {finding for finding, _ in found(folder, CAST)} == {"scale-missing"}


def test_a_cast_that_the_configuration_does_not_tell(tmp_path: Path) -> None:
    folder = fp8(tmp_path, without_kv_scales, checkpoints.LM_EXCLUSIONS, kv=False)
    assert found(folder, CAST) == {("scope-not-quantized", "kv_cache")}


@pytest.mark.parametrize("language", ["model*", "model.*", "model", "model.language_model*", "model.layers*"])
def test_a_language_model_may_be_excluded_whole(tmp_path: Path, language: str) -> None:
    """``model*`` is how ModelOpt 0.47 spells it; 0.41 to 0.45 write ``model.language_model*``."""

    def change(tensors: Tensors) -> None:
        without_kv_scales(tensors)
        without_language_scales(tensors)

    exclusions = ("lm_head", language, "visual.patch_embed*")
    folder = fp8(tmp_path, change, exclusions, kv=False, vision=True)
    assert found(folder, VISION) == set()
    assert {finding for finding, _ in found(folder, VISION | {"scope": ["language_model"]})} == {
        "scope-not-quantized", "quantized-outside-scope",
    }  # fmt: skip


def attention_only(tensors: Tensors) -> None:
    """Of the vision tower, all but the attention as BF16."""
    for name, (dtype, shape, _) in list(tensors.items()):
        if name.startswith("visual.") and ".attn." not in name:
            if name.endswith("_scale"):
                del tensors[name]
            elif dtype == "F8_E4M3":
                tensors[name] = filled("BF16", shape)


def test_attention_of_the_vision_tower_alone(tmp_path: Path) -> None:
    exclusions = ("lm_head", "visual.blocks.0.mlp*", "visual.blocks.1.mlp*", "visual.merger*")
    folder = fp8(tmp_path, attention_only, exclusions, vision=True)
    assert found(folder, ATTENTION) == set()
    assert found(folder, checkpoints.VLM_RECIPE) == {("scope-not-quantized", "vision")}
    assert found(folder, checkpoints.RECIPE) == {("quantized-outside-scope", "vision")}


@pytest.mark.parametrize(
    ("vision", "exclusions", "place"),
    [
        (True, checkpoints.VLM_EXCLUSIONS, ("quantized-outside-scope", "vision")),
        (False, checkpoints.LM_EXCLUSIONS, ("scope-not-quantized", "vision_attention")),
    ],
)
def test_more_or_less_than_the_attention(
    tmp_path: Path, vision: bool, exclusions: tuple[str, ...], place: tuple[str, str]
) -> None:
    assert found(fp8(tmp_path, unchanged, exclusions, vision=vision), ATTENTION) == {place}


def test_sound_exports_of_each_format(tmp_path: Path) -> None:
    assert found(nvfp4(tmp_path / "a"), NVFP4) == set()
    assert found(dynamic(tmp_path / "b"), DYNAMIC) == set()


def test_formats_are_not_taken_for_each_other(tmp_path: Path) -> None:
    other = ("quantized-otherwise", "format")
    assert found(nvfp4(tmp_path / "a"), DYNAMIC) == {other}
    assert found(dynamic(tmp_path / "b"), NVFP4) == {other}
    assert found(dynamic(tmp_path / "c"), DYNAMIC | {"format": "fp8"}) == {other}


def halves(low: int, high: int) -> Change:
    """The first group of each row is ``low``, all else ``high``, in packed values and scales of groups."""

    def change(tensors: Tensors) -> None:
        tensors[f"{UP}.weight"] = ("U8", (48, 16), (bytes([low]) * 8 + bytes([high]) * 8) * 48)
        tensors[f"{UP}.weight_scale"] = ("F8_E4M3", (48, 2), b"\x00\x38" * 48)

    return change


def replaced(suffix: str, entry: Entry) -> Change:
    return lambda tensors: tensors.update({f"{UP}.{suffix}": entry})


def number(value: float) -> Entry:
    return "F32", (), struct.pack("<f", value)


def groups(byte: int) -> Entry:
    return "F8_E4M3", (48, 2), b"\x38" * 95 + bytes([byte])


NVFP4_FAULTS: dict[str, tuple[Change, set[tuple[str, str]]]] = {
    "no scale of groups": (lambda t: t.pop(f"{UP}.weight_scale"), {("scale-missing", f"{UP}.weight_scale")}),
    "no scale of scales": (
        lambda t: t.pop(f"{UP}.weight_scale_2"),
        {("scale-missing", f"{UP}.weight_scale_2")},
    ),
    "no scale of inputs": (lambda t: t.pop(f"{UP}.input_scale"), {("scale-missing", f"{UP}.input_scale")}),
    "not packed": (
        replaced("weight", filled("U8", (48, 32))),
        {("shape-mismatch", f"{UP}.weight")},
    ),
    "FP8 instead": (
        replaced("weight", filled("F8_E4M3", (48, 32))),
        {
            ("config-contradicts-tensors", f"{UP}.weight"),
            ("dtype-mismatch", f"{UP}.weight"),
            ("unexpected-tensor", f"{UP}.weight_scale"),
            ("unexpected-tensor", f"{UP}.weight_scale_2"),
            ("unexpected-tensor", f"{UP}.input_scale"),
            ("scope-not-quantized", "language_model"),
        },
    ),
    "scales of groups of 32": (
        replaced("weight_scale", filled("F8_E4M3", (48, 1))),
        {("shape-mismatch", f"{UP}.weight_scale")},
    ),
    "scales of groups in BF16": (
        replaced("weight_scale", filled("BF16", (48, 2))),
        {("dtype-mismatch", f"{UP}.weight_scale")},
    ),
    "scale of scales a row": (
        replaced("weight_scale_2", filled("F32", (48, 1))),
        {("shape-mismatch", f"{UP}.weight_scale_2")},
    ),
    "NaN": (replaced("weight_scale", groups(0x7F)), {("scale-not-finite", f"{UP}.weight_scale")}),
    "negative": (replaced("weight_scale", groups(0xB8)), {("scale-not-positive", f"{UP}.weight_scale")}),
    "zero, its values are not": (
        replaced("weight_scale", groups(0x00)),
        {("scale-not-positive", f"{UP}.weight_scale")},
    ),
    "zero, as are its values": (halves(0x80, 0x38), set()),
    "zero in the first group of each row": (
        halves(0x38, 0x00),
        {("scale-not-positive", f"{UP}.weight_scale")},
    ),
    "scale of scales zero": (
        replaced("weight_scale_2", number(0.0)),
        {("scale-not-positive", f"{UP}.weight_scale_2")},
    ),
    "scale of inputs infinite": (
        replaced("input_scale", number(float("inf"))),
        {("scale-not-finite", f"{UP}.input_scale")},
    ),
    "all zero": (
        replaced("weight", ("U8", (48, 16), b"\x08\x80" * (48 * 8))),
        {("weight-all-zero", f"{UP}.weight")},
    ),
}


@pytest.mark.parametrize("name", NVFP4_FAULTS)
def test_what_can_be_wrong_with_nvfp4(tmp_path: Path, name: str) -> None:
    change, expected = NVFP4_FAULTS[name]
    assert found(nvfp4(tmp_path, change), NVFP4) == expected


def rows(*last: int) -> Entry:
    return "BF16", (48, 1), b"\x80\x3f" * 47 + bytes(last)


DYNAMIC_FAULTS: dict[str, tuple[Change, set[tuple[str, str]]]] = {
    "scales in F32": (replaced("weight_scale", filled("F32", (48, 1))), set()),
    "no scales": (lambda t: t.pop(f"{UP}.weight_scale"), {("scale-missing", f"{UP}.weight_scale")}),
    "one scale": (replaced("weight_scale", filled("BF16", (1,))), {("shape-mismatch", f"{UP}.weight_scale")}),
    "scales in FP8": (
        replaced("weight_scale", filled("F8_E4M3", (48, 1))),
        {("dtype-mismatch", f"{UP}.weight_scale")},
    ),
    "a stored scale of inputs": (
        lambda t: t.update({f"{UP}.input_scale": SCALE}),
        {("unexpected-tensor", f"{UP}.input_scale")},
    ),
    "one row zero": (replaced("weight_scale", rows(0, 0)), {("scale-not-positive", f"{UP}.weight_scale")}),
    "one row negative": (
        replaced("weight_scale", rows(0x80, 0xBF)),
        {("scale-not-positive", f"{UP}.weight_scale")},
    ),
    "one row NaN": (replaced("weight_scale", rows(0xC0, 0x7F)), {("scale-not-finite", f"{UP}.weight_scale")}),
    "ignored, and FP8": (
        lambda t: t.update({"visual.merger.mlp.0.weight": filled("F8_E4M3", (64, 64))}),
        {
            ("config-contradicts-tensors", "visual.merger.mlp.0.weight"),
            ("scale-missing", "visual.merger.mlp.0.weight_scale"),
            ("quantized-outside-scope", "vision"),
        },
    ),
    "not ignored, and BF16": (
        lambda t: (t.pop(f"{UP}.weight_scale"), t.update({f"{UP}.weight": filled("BF16", (48, 32))})),
        {("config-contradicts-tensors", f"{UP}.weight"), ("scope-not-quantized", "language_model")},
    ),
}


@pytest.mark.parametrize("name", DYNAMIC_FAULTS)
def test_what_can_be_wrong_with_dynamic_fp8(tmp_path: Path, name: str) -> None:
    change, expected = DYNAMIC_FAULTS[name]
    assert found(dynamic(tmp_path, change), DYNAMIC) == expected


def test_ignored_modules_may_be_named_one_by_one(tmp_path: Path) -> None:
    """As llm-compressor writes them, in the names of transformers."""
    _, model = families.from_config(checkpoints.small_config())
    names = tuple(f"model.{name}" for name, linear in model.linears.items() if linear.part == "vision")
    inline = checkpoints.compressed_quantization((*names, "lm_head"))
    assert found(stored(tmp_path, "fp8-channel", inline), DYNAMIC) == set()
    inline = checkpoints.compressed_quantization((*names[1:], "lm_head"))
    assert found(stored(tmp_path, "fp8-channel", inline), DYNAMIC) == {
        ("config-contradicts-tensors", f"{names[0].removeprefix('model.')}.weight")
    }


def test_static_compressed_fp8_is_sound_and_not_dynamic(tmp_path: Path) -> None:
    folder = stored(tmp_path, "fp8-static", checkpoints.compressed_quantization(IGNORED, "fp8-static"))
    assert found(folder, None) == set()
    assert found(folder, DYNAMIC) == {("quantized-otherwise", "format")}


@pytest.mark.parametrize(
    ("form", "kv"), [("fp8-block", False), ("nvfp4-packed", False), ("fp8-channel", True)]
)
def test_what_no_recipe_makes_is_refused(tmp_path: Path, form: checkpoints.Stored, kv: bool) -> None:
    folder = stored(tmp_path, form, checkpoints.compressed_quantization(IGNORED, form, kv=kv))
    with pytest.raises(Refused) as refusal:
        found(folder, DYNAMIC)
    assert refusal.value.kind == "unknown-quantization"


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
@pytest.mark.parametrize("vision", [False, True])
def test_other_families(tmp_path: Path, family: Literal["qwen2_vl", "qwen3_vl"], vision: bool) -> None:
    config = checkpoints.other_config(family)
    tensors = checkpoints.bf16_tensors(config)
    checkpoints.store(tensors, config, "fp8", ["language_model", *(["vision"] if vision else [])])  # type: ignore[list-item]
    exclusions = checkpoints.VLM_EXCLUSIONS if vision else checkpoints.LM_EXCLUSIONS
    inline = checkpoints.inline_quantization(exclusions, kv=False)
    spell = checkpoints.spelling("transformers>=4.52")
    folder = checkpoints.write(tmp_path, tensors, config | {"quantization_config": inline}, spell=spell)
    recipe = (checkpoints.VLM_RECIPE if vision else checkpoints.RECIPE) | NO_CACHE
    assert found(folder, recipe) == set()
    assert found(folder, recipe | {"scope": ["vision"]}) != set()


def test_attention_alone_in_other_families(tmp_path: Path) -> None:
    for family in ("qwen2_vl", "qwen3_vl"):
        config = checkpoints.other_config(family)
        tensors = checkpoints.bf16_tensors(config)
        checkpoints.store(tensors, config, "fp8", ["language_model", "vision"])
        attention_only(tensors)
        inline = checkpoints.inline_quantization(("lm_head", "*mlp.*fc*", "*merger*"), kv=False)
        folder = checkpoints.write(tmp_path / family, tensors, config | {"quantization_config": inline})
        recipe = ATTENTION | NO_CACHE
        problems = found(folder, recipe)
        assert problems == set(), family
