"""Exceptions of vLLM as measured results: what, where, and whose fault.

What a machine or an installation can cause is never held against a checkpoint.
"""

from __future__ import annotations

import traceback
from typing import Any, Literal

from qvlfp8.worker.protocol import innermost

Origin = Literal["checkpoint", "environment"]
Stage = Literal["load", "generate"]

_MACHINE = (
    "out of memory", "No available memory", "Free memory on device", "not enough memory",
    "desired GPU memory utilization", "gpu_memory_utilization", "larger than the available KV cache memory",
    "Error in memory profiling", "Failed to find a kernel",
    "CUDA error", "CUDA driver", "cuda runtime", "NVML", "cuBLAS", "CUBLAS", "cuDNN", "CUDNN", "NCCL",
    "No CUDA GPUs", "re-initialize CUDA", "initialization error",
    "Found no NVIDIA driver", "Torch not compiled with CUDA", "no kernel image",
    "Failed to infer device type", "device type", "libcuda", "cannot open shared object",
    "C compiler", "g++", "gcc", "nvcc", "ptxas", "ninja", "Python.h", "Triton", "triton",
    "Inductor", "inductor",
    "No module named", "has no attribute '_C'", "'_OpNamespace'", "expected at most 0 argument",
    "requires x86", "AVX", "AMX", "compute capability", "Address already in use", "No space left",
)  # fmt: skip
"""Words of an exception that speak of memory, driver, compiler, packages or processor."""

_MACHINE_TYPES = (OSError, ImportError, MemoryError, NotImplementedError, SystemError, TimeoutError)

_ANSWERED = ("BadRequestError", "InternalServerError")
"""What the OpenAI client raises when the server is there and refuses, or fails at, a question."""

_LOADING = (
    "load_weights",
    "load_model",
    "process_weights_after_loading",
    "weight_loader",
    "from_engine_args",
)
"""Functions in which a RuntimeError or AttributeError is about the checkpoint's tensors or configuration."""


def describe(error: Exception, *, stage: Stage, origin: Origin | None = None) -> dict[str, Any]:
    """The exception as it is recorded; ``origin`` where it is known better than by its words."""
    return {
        "type": type(error).__name__,
        "message": str(error)[:2000],
        "where": innermost(error),
        "stage": stage,
        "origin": origin or origin_of(error),
    }


def origin_of(error: Exception) -> Origin:
    """Whose fault an exception of vLLM is."""
    if isinstance(error, OSError) and error.errno is None and "config" in str(error):
        # transformers says so, without an error number, of a file that the folder lacks.
        return "checkpoint"
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, _MACHINE_TYPES) or any(word in said for word in _MACHINE):
        return "environment"
    if type(error).__name__ in _ANSWERED:
        return "checkpoint"
    if isinstance(error, KeyError | ValueError | AssertionError | TypeError | IndexError):
        return "checkpoint"
    frames = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    if isinstance(error, RuntimeError):
        # With memory, driver and compiler ruled out: a matrix that a kernel refuses, a size that is wrong.
        return "checkpoint"
    return "checkpoint" if frames & set(_LOADING) else "environment"
