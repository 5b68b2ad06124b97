"""The vLLM plugin without vLLM: names, the setting, and a model class of its own to wrap."""

from __future__ import annotations

import importlib
import logging
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

PLUGIN = Path(__file__).parents[2] / "plugin"
MODEL = "vllm.model_executor.models.qwen2_5_vl"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The plugin's module, imported anew; what it hooks in is taken out again."""
    monkeypatch.syspath_prepend(str(PLUGIN))
    monkeypatch.delenv("QVLFP8_VLLM_BLIND", raising=False)
    finders = list(sys.meta_path)
    yield importlib.import_module("qvlfp8_vllm")
    sys.meta_path[:] = finders
    for name in [n for n in sys.modules if n.partition(".")[0] in {"qvlfp8_vllm", "vllm"}]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "stray"),
    [
        ("visual.blocks.0.attn.k_proj.k_scale", True),
        ("model.visual.blocks.31.attn.v_proj.v_scale", True),
        ("visual.blocks.0.attn.k_proj.v_scale", False),
        ("visual.blocks.0.attn.qkv.weight_scale", False),
        ("visual.blocks.0.attn.k_proj.k_scale.extra", False),
        ("model.layers.0.self_attn.k_proj.k_scale", False),
        ("model.language_model.layers.0.self_attn.v_proj.v_scale", False),
        ("my.visual.blocks.0.attn.k_proj.k_scale", False),
    ],
)
def test_which_names_are_stray(plugin: Any, name: str, *, stray: bool) -> None:
    assert plugin.is_stray(name) is stray


LAYER = "visual.blocks.0.attn.qkv"
LANGUAGE = "language_model.model.layers.0.mlp.down_proj"
ALL = {f"{layer}.{end}" for layer in (LAYER, LANGUAGE) for end in ("weight", "weight_scale", "input_scale")}
FP8 = {f"{LAYER}.weight", f"{LANGUAGE}.weight"}


@pytest.mark.parametrize(
    ("now", "ever", "unfilled"),
    [
        (ALL, set(), []),
        (FP8, set(), [f"{LAYER}.input_scale", f"{LAYER}.weight_scale"]),
        (ALL - {f"{LAYER}.input_scale"}, set(), [f"{LAYER}.input_scale"]),
        # Weights alone, for a model that has its scales, and scales alone.
        (FP8, ALL, []),
        ({f"{LAYER}.input_scale"}, set(), []),
        (set(), set(), []),
    ],
)
def test_which_scales_are_unfilled(plugin: Any, now: set[str], ever: set[str], unfilled: list[str]) -> None:
    assert plugin.unfilled_scales(FP8, ALL, now, ever) == unfilled


def test_a_layer_that_is_not_fp8_or_has_no_scale_lacks_none(plugin: Any) -> None:
    assert plugin.unfilled_scales([], ALL, FP8, set()) == []
    dynamic = ALL - {f"{LAYER}.input_scale"}
    assert plugin.unfilled_scales(FP8, dynamic, dynamic, set()) == []


@pytest.mark.parametrize("value", ["yes", "Refuse!", "0"])
def test_a_setting_that_means_nothing_is_an_error(
    plugin: Any, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("QVLFP8_VLLM_BLIND", value)
    with pytest.raises(ValueError, match=r"QVLFP8_VLLM_BLIND is .*warn, refuse or off"):
        plugin.register()


class Tensor:
    """What the plugin looks at in a tensor."""

    def __init__(self, dtype: str) -> None:
        self.dtype = f"torch.{dtype}"


SOURCE = """
class Qwen2_5_VLForConditionalGeneration:
    def __init__(self, parameters, answer=None):
        self.parameters, self.got, self.answer = parameters, [], answer

    def named_parameters(self):
        return iter(self.parameters.items())

    def load_weights(self, weights, *, option=None):
        self.got += [name for name, _ in weights]
        return set(self.got) if self.answer is None else self.answer
"""


@pytest.fixture
def model(
    plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Any:
    """Makes a model of a class that was imported after the plugin was registered."""
    folder = tmp_path / "vllm" / "model_executor" / "models"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent, folder.parent.parent):
        (package / "__init__.py").touch()
    (folder / "qwen2_5_vl.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    caplog.set_level(logging.WARNING)
    plugin.register()
    plugin.register()
    assert MODEL not in sys.modules
    return importlib.import_module(MODEL).Qwen2_5_VLForConditionalGeneration


def test_it_registers_once_however_often_it_is_asked(plugin: Any, model: Any) -> None:
    assert sum(type(finder).__module__ == "qvlfp8_vllm" for finder in sys.meta_path) == 1
    plugin.register()
    plugin.register()
    assert not hasattr(model.load_weights.__wrapped__, "__wrapped__")


def load(model: Any, names: Iterable[str], vision: str = "bfloat16") -> Any:
    return model.load_weights(((name, Tensor(vision)) for name in names), option=1)


def built_in_fp8() -> dict[str, Tensor]:
    return {name: Tensor("float8_e4m3fn" if name in FP8 else "float32") for name in ALL}


STRAY = "visual.blocks.0.attn.k_proj.k_scale"


def test_a_stray_scale_is_left_out_and_told(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    one = model(built_in_fp8())
    assert load(one, [*ALL, STRAY], "float8_e4m3fn") == ALL
    assert STRAY not in one.got
    (line,) = caplog.messages
    assert line.startswith("qvlfp8: left out 1 KV cache scales")


def test_a_scale_that_has_a_place_stays(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    one = model(built_in_fp8() | {STRAY: Tensor("float32")})
    load(one, [*ALL, f"model.{STRAY}"], "float8_e4m3fn")
    assert f"model.{STRAY}" in one.got
    assert caplog.messages == []


def test_a_blind_tower_is_told(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    load(model(built_in_fp8()), FP8)
    (line,) = caplog.messages
    assert "2 of its scales never came" in line
    assert "vision-exclusion-ignored" in line
    assert "qvlfp8 repair IN OUT" in line


def test_a_missing_scale_of_a_quantized_tower_is_another_cause(
    model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    load(model(built_in_fp8()), ALL - {f"{LAYER}.weight_scale"}, "float8_e4m3fn")
    (line,) = caplog.messages
    assert f"1 of its scales never came ({LAYER}.weight_scale)" in line
    assert "scale-never-loaded" in line


def test_refuse_and_off(
    plugin: Any, model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("QVLFP8_VLLM_BLIND", "refuse")
    with pytest.raises(plugin.BlindTower, match="vision-exclusion-ignored"):
        load(model(built_in_fp8()), FP8)
    monkeypatch.setenv("QVLFP8_VLLM_BLIND", "off")
    load(model(built_in_fp8()), FP8)
    assert caplog.messages == []


def test_new_weights_alone_are_no_fault(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    one = model(built_in_fp8())
    load(one, ALL, "float8_e4m3fn")
    one.got.clear()
    load(one, FP8, "float8_e4m3fn")
    assert caplog.messages == []


def test_a_bf16_tower_and_a_model_without_tower_are_left_alone(
    model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    load(model({name: Tensor("bfloat16") for name in ALL}), FP8)
    load(model({f"{LANGUAGE}.weight": Tensor("float8_e4m3fn")}), FP8)
    assert caplog.messages == []


@pytest.mark.parametrize("answer", [False, {"something.else"}])
def test_what_it_does_not_understand_is_said_once(
    model: Any, caplog: pytest.LogCaptureFixture, answer: object
) -> None:
    for _ in range(2):
        load(model(built_in_fp8(), answer), FP8)
    (line,) = caplog.messages
    assert "stands aside" in line


@pytest.mark.parametrize("source", ["", SOURCE.replace("weights, *, option", "iterator, *, option")])
def test_another_class_is_left_as_it_is(
    plugin: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, source: str
) -> None:
    module = type(sys)(MODEL)
    exec(source, module.__dict__)  # noqa: S102  (a model's module, as vLLM may have it one day)
    sys.modules[MODEL] = module
    before = dict(vars(getattr(module, "Qwen2_5_VLForConditionalGeneration", object)))
    plugin.register()
    assert dict(vars(getattr(module, "Qwen2_5_VLForConditionalGeneration", object))) == before
    (line,) = caplog.messages
    assert "stands aside" in line


def test_the_distribution_needs_nothing_but_vllm_and_says_where_it_registers() -> None:
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    assert [requirement.partition(">")[0] for requirement in project["dependencies"]] == ["vllm"]
    assert project["entry-points"] == {"vllm.general_plugins": {"qvlfp8": "qvlfp8_vllm:register"}}
