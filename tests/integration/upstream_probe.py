"""Make the changes of docs/upstream.md to a real vLLM, in memory, and ask it about checkpoints.

Asked in :mod:`tests.integration.vllm_host`.

JOB: ``checkpoints`` maps names to folders; ``changes`` lists which of :data:`CHANGES` to ask with, one at
a time. RESULT: what preflight measured and what was logged, by change and name.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from qvlfp8.worker import preflight
from tests.integration.plugin_probe import MODEL, Lines

LOG = logging.getLogger("vllm.upstream")


@contextlib.contextmanager
def none() -> Iterator[None]:
    """As released."""
    yield


@contextlib.contextmanager
def skip() -> Iterator[None]:
    """The tower, which has no KV cache, passes over scales of one."""
    tower = sys.modules[MODEL].Qwen2_5_VisionTransformer
    load = tower.load_weights

    def load_weights(self: Any, weights: Any) -> Any:
        scales = (".k_scale", ".v_scale")
        return load(self, (pair for pair in weights if not pair[0].endswith(scales)))

    with patch.object(tower, "load_weights", load_weights):
        yield


@contextlib.contextmanager
def _after_loading(check: Callable[[Any, set[str]], None]) -> Iterator[None]:
    model = sys.modules[MODEL].Qwen2_5_VLForConditionalGeneration
    load = model.load_weights

    def load_weights(self: Any, weights: Any) -> Any:
        loaded = load(self, weights)
        # A released check adds to the set that it is given.
        check(self, set(loaded))
        return loaded

    with patch.object(model, "load_weights", load_weights):
        yield


def track() -> contextlib.AbstractContextManager[None]:
    """The loader's check that nothing is missing runs for quantized models as well."""
    from vllm.model_executor.layers.quantization.kv_cache import BaseKVCacheMethod

    def check(model: Any, loaded: set[str]) -> None:
        defaulted = {
            f"{module}.{name}"
            for module, layer in model.named_modules()
            if isinstance(getattr(layer, "quant_method", None), BaseKVCacheMethod)
            for name, _ in layer.named_parameters(recurse=False)
        }
        missing = {name for name, _ in model.named_parameters()} - defaulted - loaded
        if missing:
            raise ValueError(f"not initialized from checkpoint: {sorted(missing)}")

    return _after_loading(check)


def released_track() -> contextlib.AbstractContextManager[None]:
    """vLLM's own check, as ``--model-loader-extra-config '{"enable_weights_track": true}'`` turns it on."""
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    def check(model: Any, loaded: set[str]) -> None:
        own = DefaultModelLoader.track_weights_loading
        says_quantized = {"quantized": True} if "quantized" in own.__code__.co_varnames else {}
        own(object.__new__(DefaultModelLoader), model, loaded, **says_quantized)

    return _after_loading(check)


@contextlib.contextmanager
def warn() -> Iterator[None]:
    """Once the model is built, exclusions of the checkpoint that apply to no module of it are told."""
    from vllm.model_executor.layers.quantization.modelopt import ModelOptFp8Config
    from vllm.model_executor.model_loader import utils

    build = utils.initialize_model
    translate = getattr(ModelOptFp8Config, "apply_vllm_mapper", None)
    written: dict[int, list[str]] = {}

    def apply_vllm_mapper(self: Any, mapper: Any) -> None:
        written.setdefault(id(self), list(self.exclude_modules or []))
        if translate is not None:
            translate(self, mapper)

    def initialize_model(*arguments: Any, **options: Any) -> Any:
        model = build(*arguments, **options)
        if options.get("prefix"):
            # A part of the model, which is built the same way, does not have the other parts' modules.
            return model
        config = options["vllm_config"].quant_config
        names = [name for name, _ in model.named_modules(remove_duplicate=False)]
        for pattern in written.pop(id(config), getattr(config, "exclude_modules", None) or []):
            alone = copy.copy(config)
            alone.exclude_modules = [pattern]
            if translate is not None:
                # From 0.13 on one pattern becomes two, of which one need not apply.
                translate(alone, type(model).hf_to_vllm_mapper)
            if not any(map(alone.is_layer_excluded, names)):
                LOG.warning("exclusion %r applies to no module", pattern)
        return model

    with (
        patch.object(utils, "initialize_model", initialize_model),
        patch.object(ModelOptFp8Config, "apply_vllm_mapper", apply_vllm_mapper, create=True),
    ):
        yield


CHANGES = {change.__name__: change for change in (none, skip, track, released_track, warn)}


def main(job: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """Ask in a prepared vLLM."""
    result: dict[str, Any] = {"runs": {}, "logged": {}, "facts": facts}
    if "fault" in facts:
        return result
    lines = Lines()
    LOG.addHandler(lines)
    for change in job["changes"]:
        runs = result["runs"][change] = {}
        logged = result["logged"][change] = {}
        with CHANGES[change]():
            for name, folder in job["checkpoints"].items():
                lines.kept = []
                runs[name] = preflight.run({"checkpoint": folder}, Path(os.devnull))
                logged[name] = lines.kept
    return result
