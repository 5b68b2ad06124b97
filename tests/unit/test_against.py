import json
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from qvlfp8 import checkpoint
from qvlfp8.against import Change, Difference, as_json, difference, lines
from qvlfp8.describe import Described, look
from tests.unit import checkpoints as make

CONFIG = make.small_config()
TENSORS = make.fp8_tensors(CONFIG)
INLINE = {"quantization_config": make.inline_quantization(make.LM_EXCLUSIONS)}


def held(
    folder: Path, tensors: dict[str, make.Entry], config: dict[str, Any], style: str = "published"
) -> Described:
    make.write(folder, tensors, config, spell=make.spelling(style))
    return look(checkpoint.read(folder))


def compared(tmp_path: Path, tensors: dict[str, make.Entry], config: dict[str, Any]) -> Difference:
    """What differs from the sound export of ``lm-fp8``."""
    return difference(held(tmp_path / "a", TENSORS, CONFIG | INLINE), held(tmp_path / "b", tensors, config))


def test_nothing(tmp_path: Path) -> None:
    found = compared(tmp_path, TENSORS, CONFIG | INLINE)
    assert not found
    assert len(list(lines(found))) == 1


def test_the_tensors_that_one_has_collapse_over_layers(tmp_path: Path) -> None:
    kept = {name: entry for name, entry in TENSORS.items() if not name.endswith(".k_scale")}
    found = compared(tmp_path, kept, CONFIG | INLINE)
    assert found.only_in_a == ("model.layers.{0-1}.self_attn.k_proj.k_scale",)
    assert found.only_in_b == ()
    assert "model.layers.{0-1}.self_attn.k_proj.k_scale: only in A" in lines(found)
    assert found.about == (Change(what="KV cache scales", a="4 of 4", b="2 of 4"),)


def test_scope_types_and_shapes(tmp_path: Path) -> None:
    tensors = make.fp8_tensors(CONFIG, vision=True)
    tensors["model.norm.weight"] = make.filled("BF16", (64,))
    quantization = {"quantization_config": make.inline_quantization(("lm_head",))}
    found = compared(tmp_path, tensors, CONFIG | quantization)
    assert found.scope == (
        Change(what="vision", a="12 BF16", b="12 FP8 (weights per tensor, static activation scales)"),
    )
    assert Change(what="visual.blocks.{0-1}.attn.qkv.weight", a="BF16", b="F8_E4M3") in found.dtypes
    assert found.shapes == (Change(what="model.norm.weight", a="[32]", b="[64]"),)
    assert found.exclusions == (
        Change(what="config.json", a="visual* (and 1 that both have)", b="none (and 1 that both have)"),
    )
    assert "visual.merger.mlp.0.weight_scale" in found.only_in_b


def test_an_exclusion_in_a_file_that_the_other_lacks(tmp_path: Path) -> None:
    a = held(tmp_path / "a", TENSORS, CONFIG | INLINE)
    make.write(tmp_path / "b", TENSORS, CONFIG | INLINE)
    said = make.separate_quantization(("lm_head", "visual"))
    (tmp_path / "b" / "hf_quant_config.json").write_text(json.dumps(said))
    found = difference(a, look(checkpoint.read(tmp_path / "b")))
    assert found.exclusions == (Change(what="hf_quant_config.json", a="says nothing", b="lm_head, visual"),)


SECTION = CONFIG["rope_scaling"]["mrope_section"]


def test_forms_of_config_are_compared_by_what_they_say(tmp_path: Path) -> None:
    vision = CONFIG["vision_config"]
    text = {key: value for key, value in CONFIG.items() if key != "vision_config"}
    nested = {
        "architectures": CONFIG["architectures"], "model_type": CONFIG["model_type"], "dtype": "bfloat16",
        "vision_config": vision, "transformers_version": "5.0.0", **INLINE,
        "text_config": {key: value for key, value in text.items() if not key.startswith("rope")}
        | {"rope_parameters": {"rope_theta": 1000000.0, "mrope_section": SECTION}},
    }  # fmt: skip
    assert compared(tmp_path, TENSORS, nested).config == ()
    assert compared(tmp_path, TENSORS, nested).about == (
        Change(what="form of config.json", a="flat", b="nested"),
    )
    nested["text_config"] |= {"rms_norm_eps": 1e-5, "rope_parameters": {"rope_theta": 1000000.0}}
    nested["vision_config"] = vision | {"window_size": 1}
    changed = compared(tmp_path, TENSORS, nested).config
    assert [change.what for change in changed] == [
        "mrope_section", "rms_norm_eps", "vision_config.window_size",
    ]  # fmt: skip


def test_methods_and_producers(tmp_path: Path) -> None:
    tensors = make.bf16_tensors(CONFIG)
    make.store(tensors, CONFIG, "fp8-channel", ["language_model"])
    other = {"quantization_config": make.compressed_quantization(("lm_head", r"re:visual.*"))}
    found = compared(tmp_path, tensors, CONFIG | other)
    assert {change.what: (change.a, change.b) for change in found.about} == {
        "producer": ("modelopt 0.0.0", "compressed-tensors 0.0.0"),
        "method": ("modelopt-fp8", "compressed-tensors-fp8"),
        "activation scales": ("static", "dynamic"),
        "KV cache": ("fp8", "not quantized"),
        "KV cache scales": ("4 of 4", "0 of 4"),
    }
    assert json.loads(json.dumps(as_json(found)))["about"][0]["what"] == "producer"


@settings(max_examples=30, deadline=None)
@given(
    one=st.sets(st.sampled_from(sorted(TENSORS)), max_size=3),
    other=st.sets(st.sampled_from(sorted(TENSORS)), max_size=3),
    spelled=st.tuples(st.sampled_from(sorted(make.STYLES)), st.sampled_from(sorted(make.STYLES))),
)
def test_a_difference_read_from_the_other_side(
    tmp_path_factory: Any, one: set[str], other: set[str], spelled: tuple[str, str]
) -> None:
    root = tmp_path_factory.mktemp("pair")
    a, b = (
        held(root / name, {n: e for n, e in TENSORS.items() if n not in gone}, CONFIG | INLINE, form)
        for name, gone, form in (("a", one, spelled[0]), ("b", other, spelled[1]))
    )
    there, back = difference(a, b), difference(b, a)
    assert (there.only_in_a, there.only_in_b) == (back.only_in_b, back.only_in_a)
    assert [(change.what, change.a, change.b) for change in there.about] == [
        (change.what, change.b, change.a) for change in back.about
    ]
    # Spelled otherwise, nothing but the spelling is reported.
    assert bool(there.only_in_a or there.only_in_b) == (one != other)
    assert any(change.what.startswith("spelling") for change in there.about) == (spelled[0] != spelled[1])
