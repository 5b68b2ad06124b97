"""Ask vLLM's own model class, quantization config and ``load_weights`` whether a checkpoint loads.

Everything happens on the meta device over the headers of the safetensors files: no GPU, no weights,
about a second a checkpoint. What vLLM says and what its loader does are returned as observations;
:func:`qvlfp8.findings.diagnose_preflight` says what they mean. Not covered: whatever happens after
loading (``process_weights_after_loading``, kernels, limits of matrix shapes).
"""

from __future__ import annotations

import os
import platform
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvlfp8 import checkpoint as ck
from qvlfp8 import stated
from qvlfp8.worker import preflight_control, vllm_patches
from qvlfp8.worker.preflight_measures import describe_load, describe_model
from qvlfp8.worker.protocol import Refused, innermost
from qvlfp8.worker.write_watch import WriteWatch, watch_class

if TYPE_CHECKING:
    import torch

__all__ = ["ARCHITECTURE", "prepare", "run"]

ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"
"""The one architecture whose loaders were read and measured."""

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_PLUGINS": "",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}

_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16",
    "U32": "uint32", "I32": "int32", "U64": "uint64", "I64": "int64", "F16": "float16",
    "BF16": "bfloat16", "F32": "float32", "F64": "float64", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "C64": "complex64",
}  # fmt: skip

_SIZE_WORDS = ("size of tensor", "exceeds dimension size", "shape", "expanded size", "dimension")
"""In a torch RuntimeError: the tensor does not fit its parameter. Any other is not a verdict."""

_OF_PACKAGES = "RightControlFaulted"
"""What versions that do not go together cause; what else is raised may be the machine's fault."""

_fault: dict[str, Any] | None = None
"""Set by :func:`prepare` when this environment cannot judge: every job then reports it."""


def prepare(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """Import vLLM, patch it, and load the control checkpoints.

    The controls prove that this environment passes a right checkpoint and sees a wrong one, and warm
    everything up that vLLM imports late. What goes wrong here is kept for :func:`run` to report.
    """
    global _fault  # noqa: PLW0603  (set once, before any job is forked)
    del jobs
    os.environ.update(_ENVIRONMENT)
    started = time.monotonic()
    facts: dict[str, Any] = {"python": platform.python_version()}
    try:
        for package in ("vllm", "torch", "transformers"):
            facts[package] = version(package)
        facts["patches"] = vllm_patches.apply_patches(facts["vllm"], vllm_patches.PATCHES)
        facts["import_seconds"] = round(time.monotonic() - started, 1)
        preflight_control.check(_examine)
    except Exception as error:
        _fault = _exception(error, tensor=None, origin="environment")
        facts["fault"] = _fault
    facts["prepare_seconds"] = round(time.monotonic() - started, 1)
    return facts


def run(params: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Observe how vLLM loads the checkpoint folder ``params["checkpoint"]``.

    A checkpoint that does not load is a result: ``exception`` says how, with ``origin`` either
    ``checkpoint`` or ``environment`` (then nothing is known about the checkpoint). With ``on_trial``, an
    environment's packages are asked about, beside another of the same vLLM that works: a right control that
    is faulted here has the origin ``packages``. ``architectures``: what config.json may say there, if it is
    not :data:`ARCHITECTURE` alone.

    Raises:
        Refused: ``not-a-checkpoint``, ``unknown-model`` or ``unknown-dtype``.
    """
    del out
    try:
        checkpoint = ck.read(Path(params["checkpoint"]))
    except ck.NotACheckpoint as error:
        raise Refused("not-a-checkpoint", str(error)) from error
    classes = checkpoint.config.get("architectures")
    if classes not in params.get("architectures", [[ARCHITECTURE]]):
        raise Refused("unknown-model", f"architectures is {classes!r}; only {ARCHITECTURE} is known")
    unknown = sorted({t.dtype for t in checkpoint.tensors.values()} - set(_DTYPES))
    if unknown:
        raise Refused("unknown-dtype", f"tensors of types {unknown} cannot be made in torch")
    if _fault is not None:
        theirs = params.get("on_trial") and _fault["type"] == _OF_PACKAGES
        fault = _fault | {"origin": "packages"} if theirs else _fault
        return {"stage_reached": "config", "exception": fault, "refused": []}
    return _examine(checkpoint)


def _examine(checkpoint: ck.Checkpoint) -> dict[str, Any]:
    """Load, and once more without the KV cache scales that were refused, so that they hide nothing."""
    refused: list[dict[str, Any]] = []
    while True:
        measured = _attempt(checkpoint)
        error = measured["exception"]
        if error is None or error["origin"] != "checkpoint" or not _is_kv_scale(error["tensor"]):
            return measured | {"refused": refused}
        refused.append(error)
        family = _family(error["tensor"])
        kept = {name: tensor for name, tensor in checkpoint.tensors.items() if not family.fullmatch(name)}
        checkpoint = replace(checkpoint, tensors=kept)


def _is_kv_scale(tensor: str | None) -> bool:
    return tensor is not None and tensor.endswith((".k_scale", ".v_scale"))


def _family(tensor: str) -> re.Pattern[str]:
    """Matches the tensors of this name in every layer."""
    return re.compile(r"\d+".join(map(re.escape, re.split(r"\d+", tensor))))


def _attempt(checkpoint: ck.Checkpoint) -> dict[str, Any]:
    measured: dict[str, Any] = {
        "stage_reached": "config",
        "exception": None,
        "exclusions": stated.exclusions(checkpoint.quantization),
        "tie_word_embeddings": stated.is_tied(checkpoint.config),
        "fp8_tensors": sum(tensor.dtype.startswith("F8_") for tensor in checkpoint.tensors.values()),
    }
    watch: list[WriteWatch] = []
    try:
        _load(checkpoint, measured, watch)
        measured["stage_reached"] = "done"
    except Exception as error:
        tensor = _culprit(error, watch[0].feeding, checkpoint) if watch else None
        origin = _origin(error, measured["stage_reached"], checkpoint.root)
        measured["exception"] = _exception(error, tensor=tensor, origin=origin)
    return measured


def _load(checkpoint: ck.Checkpoint, measured: dict[str, Any], watches: list[WriteWatch]) -> None:
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import initialize_model

    config = EngineArgs(
        model=str(checkpoint.root),
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=2,
    ).create_engine_config()
    measured["quantization"] = _text_or_none(config.model_config.quantization)
    measured["kv_cache_dtype"] = str(config.cache_config.cache_dtype)
    measured["runner"] = _text_or_none(config.model_config.runner_type)
    measured["stage_reached"] = "build"
    with set_current_vllm_config(config):
        _ensure_process_group()
        with _default_dtype(config.model_config.dtype), torch.device("meta"):
            model = initialize_model(vllm_config=config)
        measured.update(describe_model(model))
        measured["stage_reached"] = "load"
        watch = WriteWatch(model)
        watches.append(watch)
        with watch_class()(watch):
            model.load_weights(watch.feed(_tensors(checkpoint)))
        watch.feeding = None
        measured.update(describe_load(model, watch, checkpoint))


def _tensors(checkpoint: ck.Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """In vLLM's order: file by file, each by name (``safe_open(...).keys()``)."""
    import torch

    files = {name: position for position, name in enumerate(checkpoint.weight_files)}
    ordered = sorted(checkpoint.tensors.values(), key=lambda t: (files.get(t.file.name, 0), t.name))
    for tensor in ordered:
        dtype = getattr(torch, _DTYPES[tensor.dtype])
        # Loaders read the value of a single element, which a meta tensor does not have.
        device = "cpu" if tensor.elements == 1 else "meta"
        yield tensor.name, torch.ones(tensor.shape, dtype=dtype, device=device)


def _culprit(error: Exception, feeding: str | None, checkpoint: ck.Checkpoint) -> str | None:
    """The tensor that a refusal is about: the one it names, else the one read last.

    Some loaders read ahead (seen in 0.16 and 0.18 under the name prefix ``model.visual``).
    """
    if isinstance(error, KeyError) and error.args:
        named = [name for name in checkpoint.tensors if name.endswith(f".{error.args[0]}")]
        if len(named) == 1:
            return named[0]
    return feeding


def _exception(error: Exception, *, tensor: str | None, origin: str) -> dict[str, Any]:
    return {
        "type": type(error).__name__,
        "message": str(error)[:2000],
        "where": innermost(error),
        "tensor": tensor,
        "origin": origin,
    }


def _origin(error: Exception, stage: str, root: Path) -> str:
    """Whose fault: after the controls passed, a refusal by vLLM is the checkpoint's.

    What an installation or the meta device can cause is never held against the checkpoint.
    """
    if isinstance(error, OSError):
        # transformers says so, without an error number, of a file that the folder lacks.
        lacks_file = error.errno is None and str(root) in str(error)
        return "checkpoint" if lacks_file else "environment"
    if isinstance(error, NotImplementedError | ImportError | MemoryError | SystemError):
        return "environment"
    if isinstance(error, RuntimeError):
        fits_not = stage == "load" and any(word in str(error) for word in _SIZE_WORDS)
        return "checkpoint" if fits_not else "environment"
    return "checkpoint"


def _ensure_process_group() -> None:
    """Layers ask for their rank: a group of this process alone, started once and inherited by jobs."""
    from vllm.distributed import parallel_state

    if parallel_state.model_parallel_is_initialized():
        return
    with tempfile.TemporaryDirectory(prefix="preflight-") as folder:
        parallel_state.init_distributed_environment(
            world_size=1,
            rank=0,
            local_rank=0,
            distributed_init_method=f"file://{folder}/rendezvous",
            backend="gloo",
        )
        parallel_state.ensure_model_parallel_initialized(1, 1)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _text_or_none(value: object) -> str | None:
    return None if value is None else str(value)
