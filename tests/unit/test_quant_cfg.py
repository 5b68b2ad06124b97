"""What a recipe switches on, read by imitations of both generations of ModelOpt's matcher."""

from fnmatch import fnmatchcase
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlfp8.quant_cfg import (
    PARTS,
    NotExpressibleError,
    Part,
    Recipe,
    Scope,
    quant_cfg,
    release,
)

PLACES: dict[Scope, str] = {
    "language_model": "model.language_model.",
    "vision": "model.visual.",
    "vision_attention": "model.visual.blocks.*.attn.",
}
OLD_PLACES: dict[Scope, str] = {
    "language_model": "model.",
    "vision": "visual.",
    "vision_attention": "visual.blocks.*.attn.",
}

# (name below its part, kind of module); a quantizer's own name is appended.
LANGUAGE_MODULES = (
    ("embed_tokens", "nn.Embedding"),
    ("layers.0.self_attn", "attention"),
    ("layers.11.self_attn.k_proj", "nn.Linear"),
    ("layers.2.mlp.down_proj", "nn.Linear"),
)
VISION_MODULES = (
    ("patch_embed.proj", "nn.Conv3d"),
    ("blocks.0.attn", "attention"),
    ("blocks.3.attn.qkv", "nn.Linear"),
    ("blocks.31.attn.proj", "nn.Linear"),
    ("blocks.3.mlp.gate_proj", "nn.Linear"),
    ("merger.mlp.2", "nn.Linear"),
)
QUANTIZERS = {"attention": ("q_bmm", "k_bmm", "v_bmm", "softmax")}
LAYER_QUANTIZERS = ("weight", "input", "output")
# Names that hold a part's name without being that part.
STRANGERS = (
    ("lm_head", "nn.Linear"),
    ("model.visual_projection", "nn.Linear"),
    ("model.language_model_adapter.fc", "nn.Linear"),
    ("model.visualizer.attn", "attention"),
    ("extra.model.visual.blocks.0.attn", "attention"),
)


def quantizers(places: dict[Scope, str]) -> list[tuple[str, str, Part | None, str]]:
    """All quantizers of a model: full name, kind of module, part, and its own short name."""
    modules: list[tuple[str, str, Part | None]] = [(*stranger, None) for stranger in STRANGERS]
    modules += [(places["language_model"] + n, k, "language_model") for n, k in LANGUAGE_MODULES]
    modules += [(places["vision"] + n, k, "vision") for n, k in VISION_MODULES]
    return [
        (f"{name}.{short}_quantizer", kind, part, short)
        for name, kind, part in modules
        for short in QUANTIZERS.get(kind, LAYER_QUANTIZERS)
    ]


def read_mapping(cfg: dict[str, Any], name: str, kind: str) -> bool:
    """ModelOpt 0.33 to 0.43, ``set_quantizer_by_cfg``: is this quantizer on?"""
    on = True
    if "default" in cfg:
        on = cfg["default"]["enable"]
    for pattern, attributes in cfg.items():
        if pattern == "default":
            continue
        if pattern.startswith("nn."):
            for inner, inner_attributes in attributes.items():
                if kind == pattern and fnmatchcase(name, inner):
                    on = inner_attributes["enable"]
        elif fnmatchcase(name, pattern):
            on = attributes["enable"]
    return on


def read_entries(cfg: list[dict[str, Any]], name: str, kind: str) -> bool:
    """ModelOpt 0.44 and later, ``set_quantizer_by_cfg``: is this quantizer on?"""
    on = True
    for entry in cfg:
        if entry.get("parent_class", kind) == kind and fnmatchcase(name, entry["quantizer_name"]):
            on = entry.get("enable", True)
    return on


def is_on(cfg: Any, name: str, kind: str) -> bool:
    return read_mapping(cfg, name, kind) if isinstance(cfg, dict) else read_entries(cfg, name, kind)


def meant(recipe: Recipe, name: str, kind: str, part: Part | None, short: str) -> bool:
    """The recipe in words: linear layers of the scope, keys and values of the named attentions."""
    if kind == "nn.Linear":
        attention = part == "vision" and ".attn." in name and "vision_attention" in recipe["scope"]
        return (part in recipe["scope"] or attention) and short in {"weight", "input"}
    if kind == "attention":
        return part in recipe["kv_cache"]["attention"] and short in {"k_bmm", "v_bmm"}
    return False


def make(scope: list[Scope], attention: list[Part], kv: str = "fp8", **changes: Any) -> Recipe:
    recipe: dict[str, Any] = {
        "id": "made",
        "scope": scope,
        "format": "fp8",
        "kv_cache": {"format": kv if attention else "none", "attention": attention},
        "calibration": {"modality": "text", "samples": 8, "seed": 0},
        "exporter": "modelopt-hf",
        "exclusions": "as-exported",
    }
    return recipe | changes  # type: ignore[return-value]


KV_PARTS: list[list[Part]] = [list(c) for size in (1, 2) for c in permutations(PARTS, size)]
CHOICES: list[list[Scope]] = [
    ["language_model"],
    ["vision"],
    ["language_model", "vision"],
    ["vision", "language_model"],
    ["vision_attention"],
    ["vision_attention", "language_model"],
]
recipes = st.builds(
    make,
    st.sampled_from(CHOICES),
    st.sampled_from([[], *KV_PARTS]),
    format=st.sampled_from(["fp8", "nvfp4"]),
)
versions = st.builds("0.{}.{}".format, st.integers(33, 120), st.integers(0, 9))


@given(recipes, versions, st.sampled_from([PLACES, OLD_PLACES]))
def test_every_version_switches_on_exactly_what_the_recipe_names(
    recipe: Recipe, version: str, places: dict[Scope, str]
) -> None:
    cfg = quant_cfg(recipe, version, places)["quant_cfg"]
    for name, kind, part, short in quantizers(places):
        if places is OLD_PLACES and part is None:
            continue  # "model." held everything but the vision part and the head
        assert is_on(cfg, name, kind) == meant(recipe, name, kind, part, short), name


E4M3 = {"num_bits": (4, 3), "axis": None}
NVFP4 = {
    "num_bits": (2, 1),
    "axis": None,
    "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)},
}


def attributes_by_kind(written: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Of quantizers that are on: those of linear layers, and of keys and values."""
    cfg = written["quant_cfg"]
    if isinstance(cfg, dict):
        linear = list(cfg.get("nn.Linear", {}).values())
        other = [attributes for name, attributes in cfg.items() if name not in {"nn.Linear", "default"}]
    else:
        flat = [(entry, {"enable": entry["enable"]} | entry.get("cfg", {})) for entry in cfg[1:]]
        linear = [attributes for entry, attributes in flat if "parent_class" in entry]
        other = [attributes for entry, attributes in flat if "parent_class" not in entry]
    return {"linear": linear, "kv": other}


@given(recipes, versions)
def test_what_is_on_has_the_format_that_the_recipe_says(recipe: Recipe, version: str) -> None:
    written = quant_cfg(recipe, version, PLACES)
    assert written["algorithm"] == "max"
    found = attributes_by_kind(written)
    wanted = E4M3 if recipe["format"] == "fp8" else NVFP4
    assert found["linear"]
    assert all(a == {"enable": True, **wanted} for a in found["linear"])
    assert bool(found["kv"]) == bool(recipe["kv_cache"]["attention"])
    assert all(a == {"enable": True, **E4M3} for a in found["kv"])


def test_a_cast_of_keys_and_values_is_a_constant_range() -> None:
    recipe = make(["language_model"], ["language_model"], kv="fp8-cast")
    for version in ("0.43.0", "0.44.0", "0.47.0"):
        found = attributes_by_kind(quant_cfg(recipe, version, PLACES))
        assert found["kv"] == [{"enable": True, **E4M3, "use_constant_amax": True}]


def test_a_modelopt_that_knows_no_constant_range_is_refused() -> None:
    with pytest.raises(NotExpressibleError, match=r"fp8-cast needs 0\.43"):
        quant_cfg(make(["language_model"], ["language_model"], kv="fp8-cast"), "0.42.0", PLACES)


@given(recipes, versions)
def test_order_of_parts_in_a_recipe_does_not_matter(recipe: Recipe, version: str) -> None:
    turned: Recipe = {**recipe, "scope": list(recipe["scope"])[::-1]}
    turned["kv_cache"] = {**recipe["kv_cache"], "attention": list(recipe["kv_cache"]["attention"])[::-1]}
    assert quant_cfg(turned, version, PLACES) == quant_cfg(recipe, version, PLACES)


@pytest.mark.parametrize(
    ("version", "form"),
    [("0.33.1", dict), ("0.43.0", dict), ("0.44.0", list), ("0.44.0rc1", list), ("1.0.0", list)],
)
def test_form_by_version(version: str, form: type) -> None:
    assert isinstance(quant_cfg(make(["vision"], []), version, PLACES)["quant_cfg"], form)


def test_the_catch_all_comes_first_in_both_forms() -> None:
    recipe = make(["vision", "language_model"], ["language_model"])
    assert next(iter(quant_cfg(recipe, "0.41.0", PLACES)["quant_cfg"])) == "default"
    first = quant_cfg(recipe, "0.47.0", PLACES)["quant_cfg"][0]
    assert first == {"quantizer_name": "*", "enable": False}


@pytest.mark.parametrize("version", ["", "main", "v0.45.0", "0.32.9"])
def test_unknown_versions_are_refused(version: str) -> None:
    with pytest.raises(NotExpressibleError, match="ModelOpt"):
        release(version)


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (make(["vision"], [], format="fp8-dynamic"), "format 'fp8-dynamic'"),
        (make(["vision"], [], kv_cache={"format": "fp8", "attention": []}), "kv_cache.format"),
        (
            make(["vision"], [], kv_cache={"format": "none", "attention": ["vision"]}),
            "kv_cache.attention",
        ),
    ],
)
def test_recipes_without_a_meaning_are_refused(recipe: Recipe, says: str) -> None:
    with pytest.raises(NotExpressibleError, match=says):
        quant_cfg(recipe, "0.45.0", PLACES)


def test_a_part_that_the_model_lacks_is_refused() -> None:
    only: dict[Scope, str] = {"language_model": "model."}
    assert quant_cfg(make(["language_model"], []), "0.45.0", only)
    for recipe in (make(["vision"], []), make(["language_model"], ["vision"])):
        with pytest.raises(NotExpressibleError, match="no part vision"):
            quant_cfg(recipe, "0.45.0", only)
