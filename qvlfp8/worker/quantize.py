"""The quantize worker: a real producer turns a model and a recipe into a checkpoint.

Load, have it quantized, check on the live model that the recipe was honoured, export. What differs between
producers is in one module each (:mod:`qvlfp8.worker.producer` says what they share). The checkpoint gets its
name only when it is complete. On one machine the same inputs and seed give the same bytes.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from qvlfp8 import checkpoint, families, quantization, structure
from qvlfp8.quant_cfg import NotExpressibleError, Recipe
from qvlfp8.worker import (
    audit,
    calibration,
    export_llmcompressor,
    export_modelopt,
    generate_gpu,
    hf_ptq,
)
from qvlfp8.worker.producer import Producer
from qvlfp8.worker.protocol import Refused

CHECKPOINT = "checkpoint"
"""Name of the folder, below a job's output folder, that holds the result."""

_PRODUCERS: dict[str, Producer] = {"modelopt-hf": export_modelopt, "llmcompressor": export_llmcompressor}
"""By a recipe's ``exporter``."""

# What a server needs beside tensors and config.json, and what producers do not write.
_COMPANIONS = (
    "generation_config.json",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.*",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)
_NOTHING_SHOWN = {"modality": "none", "samples": 0, "images": 0, "tokens": 0}
_FROM_HUB = ["*.json", "*.safetensors", "*.txt", "*.jinja"]


def prepare(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """Import what every job needs and say the versions; starts no CUDA, which survives no fork."""
    # is_available() then asks the driver's library instead of starting CUDA.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    # A small model on a busy machine spends most of its time in threads that spin at barriers.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    versions: dict[str, Any] = {}
    for exporter in sorted({params["recipe"]["exporter"] for params in jobs}):
        versions |= _PRODUCERS[exporter].versions()
    import torch
    import transformers

    # Lazy modules: naming a class is what imports it.
    _ = transformers.AutoTokenizer, transformers.AutoModelForImageTextToText
    _ = transformers.Qwen2_5_VLForConditionalGeneration
    calibration.image_processor_class()
    return versions | {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": _device(),
    }


def run(params: dict[str, Any], out: Path) -> dict[str, Any]:
    """Quantize ``params["model"]`` by ``params["recipe"]`` into ``out/checkpoint``.

    Args:
        params: ``model`` (a folder's absolute path, or a Hugging Face id), ``recipe`` (a
            :class:`~qvlfp8.quant_cfg.Recipe`) and ``seed``; perhaps ``dataset`` (an
            :class:`~qvlfp8.worker.calibration_tables.Asked`) instead of the recipe's own samples, and
            ``hf_ptq``, the script that is to do it (:mod:`qvlfp8.worker.hf_ptq`).
        out: an existing folder.

    Returns:
        What was done: modules and attentions by part, calibration in conversations, images and
        tokens, wall seconds, the most GPU memory held, tensors written, and the configuration that the
        producer was given.

    Raises:
        Refused: ``model-unavailable``, ``not-a-checkpoint``, ``unknown-model``,
            ``already-quantized``, ``dataset-unusable``, ``recipe-not-expressible``,
            ``recipe-matches-no-module`` or ``recipe-not-honoured``.
    """
    import torch

    recipe: Recipe = params["recipe"]
    producer = _PRODUCERS[recipe["exporter"]]
    source = _source(params["model"])
    torch.manual_seed(params["seed"])
    seconds: dict[str, float] = {}
    with _clock(seconds, "load"):
        shown = _to_show(source, recipe, params, out)
        if shown and "hf_ptq" in params:
            return _run_hf_ptq(Path(params["hf_ptq"]), recipe, source, shown, out)
        model = _load(source)
        batches = shown.batches(model) if shown else None
    places = audit.places(model)
    try:
        config = producer.configuration(recipe, places)
    except NotExpressibleError as error:
        raise Refused("recipe-not-expressible", f"recipe {recipe['id']}: {error}") from error
    with _clock(seconds, "quantize"):
        producer.quantize(model, config, batches or ())
    with _clock(seconds, "audit"):
        found = producer.check(model, recipe, places)
    with _clock(seconds, "export"):
        names = _export(partial(producer.save, model), source, out / CHECKPOINT, recipe)
    return {
        "modules": found.modules,
        "kv_attention": found.kv_attention,
        "calibration": shown.measured(batches) if shown and batches else _NOTHING_SHOWN,
        "seconds": seconds,
        "device": torch.cuda.get_device_name() if _device() == "cuda" else "cpu",
        "peak_gpu_mb": generate_gpu.peak_memory_mb(_device()),
        "tensors": len(names),
        "stray_scales": [name for name in names if _is_stray(name)],
        "configuration": _with_text_keys(config),
    }


def _run_hf_ptq(
    script: Path, recipe: Recipe, source: Path, shown: calibration.Prepared, out: Path
) -> dict[str, Any]:
    """Have upstream's script do it: its live model cannot be asked, its export is inspected like any."""
    import torch

    seconds: dict[str, float] = {}
    export = partial(hf_ptq.export, script, recipe, source, shown.texts())
    with _clock(seconds, "export"):
        names = _export(export, source, out / CHECKPOINT, recipe)
    return {
        "calibration": shown.measured(shown.batches(None)),
        "seconds": seconds,
        "device": torch.cuda.get_device_name(),
        "tensors": len(names),
        "stray_scales": [name for name in names if _is_stray(name)],
        "hf_ptq": hf_ptq.described(script),
    }


def _to_show(source: Path, recipe: Recipe, params: dict[str, Any], out: Path) -> calibration.Prepared | None:
    if recipe["calibration"]["modality"] == "none":
        return None
    return calibration.prepare(source, recipe["calibration"], params.get("dataset"), out / "dataset")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def _clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - started, 3)


def _source(model: str) -> Path:
    """The model's folder, downloaded if need be, once it is known to hold a plain model of a known family."""
    folder = Path(model) if Path(model).is_absolute() else _download(model)
    try:
        found = checkpoint.read(folder)
        families.from_config(found.config, known=families.EVERY)
    except checkpoint.NotACheckpoint as error:
        raise Refused("not-a-checkpoint", str(error)) from error
    except structure.UnknownModel as error:
        raise Refused("unknown-model", f"{folder}: {error}") from error
    # modelopt_state.pth is a pickle: ModelOpt would restore, and so execute, it.
    if found.quantization is not None or (folder / "modelopt_state.pth").exists():
        raise Refused("already-quantized", f"{folder} is quantized already; give the original")
    return folder


def _download(model: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=_FROM_HUB))
    except (OSError, ValueError) as error:
        raise Refused(
            "model-unavailable", f"{model} is no absolute path, and no model to be had: {error}"
        ) from error


def _load(source: Path) -> Any:
    """The model in BF16 on the device, every one of its tensors read from the checkpoint.

    Weights go to a GPU one by one: the host never holds the whole model.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    model, info = AutoModelForImageTextToText.from_pretrained(
        source,
        dtype=torch.bfloat16,
        device_map="cuda" if _device() == "cuda" else None,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported in info, and refused below
    )
    if wrong := {kind: sorted(map(str, names)) for kind, names in info.items() if names}:
        details = "; ".join(f"{len(n)} {kind} (first: {n[0]})" for kind, n in sorted(wrong.items()))
        raise Refused("not-a-checkpoint", f"{source} does not fit its config.json: {details}")
    return model.eval()


def _export(save: Callable[[Path], None], source: Path, target: Path, recipe: Recipe) -> list[str]:
    """Write the checkpoint whole or not at all; the sorted names of its tensors."""
    unfinished = target.with_name(target.name + ".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        save(unfinished)
        _copy_companions(source, unfinished)
        if recipe["exclusions"] == "portable":
            _respell(unfinished)
        names = list(checkpoint.read(unfinished).tensors)
        for file in unfinished.iterdir():
            file.chmod(0o644)  # safetensors writes 0600, which another user could not serve
        unfinished.rename(target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return names


def _copy_companions(source: Path, target: Path) -> None:
    for pattern in _COMPANIONS:
        for file in source.glob(pattern):
            if file.is_file() and not (target / file.name).exists():
                shutil.copyfile(file, target / file.name)


def _respell(folder: Path) -> None:
    """Spell the quantization configuration portably, in both files that hold it."""
    inline, separate = folder / "config.json", folder / "hf_quant_config.json"
    config = json.loads(inline.read_text(encoding="utf-8"))
    config["quantization_config"] = quantization.portable(config["quantization_config"])
    inline.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    spelled = quantization.portable(json.loads(separate.read_text(encoding="utf-8")))
    separate.write_text(json.dumps(spelled, indent=2) + "\n", encoding="utf-8")


def _with_text_keys(config: Any) -> Any:
    """As JSON will hold it, where keys are text: ``block_sizes`` has numbers."""
    if isinstance(config, dict):
        return {str(key): _with_text_keys(value) for key, value in config.items()}
    return [_with_text_keys(item) for item in config] if isinstance(config, list) else config


def _is_stray(name: str) -> bool:
    """Whether a tensor is a key or value scale of the vision part, where there is no cache."""
    vision = structure.part_of(structure.canonical(name)) == "vision"
    return vision and name.endswith((".k_scale", ".v_scale"))
