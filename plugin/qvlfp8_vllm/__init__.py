"""A general plugin of vLLM for FP8 checkpoints of Qwen's vision-language models.

It wraps ``load_weights`` of three model classes. On the way in, KV cache scales of the vision attention
are left out: vLLM has no parameter for them and would end. On the way out, a vision tower that was
built in FP8 and got no scales is told, or refused: vLLM would serve it, and it would not see.

vLLM loads plugins several times, in every process, and long before most need a model. So this module
imports nothing of vLLM: a model's module is changed when vLLM has imported it.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import inspect
import logging
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any

from qvlfp8_vllm.names import is_stray, is_vision, unfilled_scales, without_model

__all__ = ["SETTING", "BlindTower", "register"]

SETTING = "QVLFP8_VLLM_BLIND"
"""Environment variable: ``warn`` (default), ``refuse`` or ``off``."""

_MODELS = {
    "vllm.model_executor.models.qwen2_vl": "Qwen2VLForConditionalGeneration",
    "vllm.model_executor.models.qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "vllm.model_executor.models.qwen3_vl": "Qwen3VLForConditionalGeneration",
}
_MENDABLE = "Qwen2_5_VLForConditionalGeneration"
"""The one whose checkpoints `qvlfp8 repair` knows."""

_REPAIR = "`qvlfp8 repair IN OUT` mends the checkpoint"

_MARK = "_qvlfp8_wrapped"
_EVER = "_qvlfp8_loaded"

# Below vLLM's own logger, whose handlers and level apply.
_log = logging.getLogger("vllm.qvlfp8")


class BlindTower(ValueError):
    """The vision tower was built in FP8 and its scales never came; only with ``refuse``."""


def register() -> None:
    """What vLLM calls, any number of times.

    Raises:
        ValueError: ``QVLFP8_VLLM_BLIND`` has a value that means nothing.
    """
    _setting()
    for name in _MODELS:
        if name in sys.modules:
            _adapt(sys.modules[name])
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def _setting() -> str:
    value = os.environ.get(SETTING, "").strip().lower() or "warn"
    if value not in {"warn", "refuse", "off"}:
        raise ValueError(f"{SETTING} is {value!r}; it can be warn, refuse or off")
    return value


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds the models' modules where they are, and adapts each once its code has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _MODELS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_adapt(module: ModuleType) -> None:
            execute(module)
            _adapt(module)

        # The loader is this spec's own. Another in its place would have to be able to do all that it can.
        spec.loader.exec_module = execute_and_adapt  # type: ignore[method-assign]
        return spec


def _adapt(module: ModuleType) -> None:
    """Wrap the model class's ``load_weights``, once."""
    name = _MODELS[module.__name__]
    original = vars(getattr(module, name, object)).get("load_weights")
    if getattr(original, _MARK, False):
        return
    parameters = list(inspect.signature(original).parameters) if inspect.isfunction(original) else []
    if original is None or parameters[:2] != ["self", "weights"]:
        _stand_aside(f"{module.__name__}.{name} has no load_weights(self, weights)")
        return

    @functools.wraps(original)
    def load_weights(self: Any, weights: Iterable[tuple[str, Any]], *arguments: Any, **options: Any) -> Any:
        load = _Load(self, mendable=name == _MENDABLE)
        try:
            loaded = original(self, load.pass_on(weights), *arguments, **options)
        finally:
            load.tell_dropped()
        if _setting() != "off":
            load.check(loaded)
        return loaded

    setattr(load_weights, _MARK, True)
    setattr(getattr(module, name), "load_weights", load_weights)  # noqa: B010  (the class is not known)


class _Load:
    """One call of ``load_weights``: what was left out, and whether the tower got what it needs."""

    def __init__(self, model: Any, *, mendable: bool) -> None:
        self._model = model
        self._mendable = mendable
        self._known = {name for name, _ in model.named_parameters()}
        self._dropped: list[str] = []
        self._vision = 0
        self._vision_fp8 = 0

    def pass_on(self, weights: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        """The tensors, without stray ones for which the model has no parameter."""
        for name, tensor in weights:
            if is_stray(name) and without_model(name) not in self._known:
                self._dropped.append(name)
                continue
            if is_vision(name):
                self._vision += 1
                self._vision_fp8 += _is_fp8(tensor)
            yield name, tensor

    def tell_dropped(self) -> None:
        """One line about what was left out, if anything was."""
        if self._dropped:
            _log.warning(
                "qvlfp8: left out %d KV cache scales of the vision tower (%s), whose attention has no KV"
                " cache and vLLM no parameter for them (stray-vision-kv-scale); %s",
                len(self._dropped),
                _some(self._dropped),
                _REPAIR if self._mendable else "export again with *visual*_bmm_quantizer disabled",
            )

    def check(self, loaded: object) -> None:
        """Compare what came with what the tower has.

        Raises:
            BlindTower: FP8 layers of the tower have no scales, and the setting is ``refuse``.
        """
        try:
            complaint = self._complaint(loaded)
        except Exception as error:  # whatever a vLLM to come does, it shall load
            _stand_aside(f"{type(error).__name__}: {error}")
            return
        if complaint is None:
            return
        if _setting() == "refuse":
            raise BlindTower(f"{complaint} (refused because {SETTING}=refuse)")
        _log.warning("qvlfp8: %s", complaint)

    def _complaint(self, loaded: object) -> str | None:
        parameters = dict(self._model.named_parameters())
        if not self._vision or not any(map(is_vision, parameters)):
            return None
        if not isinstance(loaded, Collection) or not any(is_vision(name) for name in loaded):
            _stand_aside("load_weights does not say which parameters of the vision tower it loaded")
            return None
        ever: set[str] = self._model.__dict__.setdefault(_EVER, set())
        fp8 = [name for name, parameter in parameters.items() if _is_fp8(parameter)]
        unfilled = unfilled_scales(fp8, parameters, loaded, ever)
        ever.update(filter(is_vision, loaded))
        if not unfilled:
            return None
        what = f"vision tower in FP8, and {len(unfilled)} of its scales never came ({_some(unfilled)})"
        if self._vision_fp8:
            return (
                f"{what}: the checkpoint lacks them (scale-never-loaded), and what the tower sees is"
                " meaningless; quantize again, `qvlfp8 repair IN OUT` cannot make them up"
            )
        return (
            f"{what}: the checkpoint's tower is not quantized, but this vLLM did not apply its exclusion"
            " (vision-exclusion-ignored), so the model is blind; "
        ) + (_REPAIR if self._mendable else 'spell the exclusion "visual"')


def _is_fp8(tensor: Any) -> bool:
    return str(tensor.dtype).startswith("torch.float8")


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:3], *(["…"] if len(names) > 3 else [])])


@functools.cache
def _stand_aside(why: str) -> None:
    """Say once a process why nothing is done."""
    _log.warning("qvlfp8: this vLLM is not what the plugin knows, it stands aside: %s", why)
