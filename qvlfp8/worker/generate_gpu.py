"""NVIDIA GPUs, asked through the driver's own program: CUDA is never initialised in the parent of jobs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FIELDS = ("name", "driver_version", "compute_cap", "memory.total", "memory.free")

_OVERHEAD_MB = 6000
"""CUDA context, activations, and a KV cache far larger than an exam needs."""


def describe() -> dict[str, Any]:
    """The first GPU's facts, memory in MB.

    Raises:
        OSError: there is no nvidia-smi, or it finds no GPU.
    """
    values = _query(_FIELDS)
    return {
        "gpu": values[0],
        "driver": values[1],
        "compute_capability": values[2],
        "gpu_memory_mb": int(values[3]),
        "gpu_memory_free_mb": int(values[4]),
        "cuda": _cuda_of_torch(),
    }


def spare_queries(capability: str) -> None:
    """Tell libraries that would ask CUDA at their import which GPU it is; asking would initialise it."""
    architecture = capability + ("a" if int(capability.partition(".")[0]) >= 9 else "")
    os.environ.setdefault("FLASHINFER_CUDA_ARCH_LIST", architecture)


def lost_by_fork() -> bool:
    """Whether CUDA was initialised before this process was forked, so that it cannot use it."""
    import torch

    return bool(torch.cuda._is_in_bad_fork())


def share(nbytes: int) -> float:
    """The share of the GPU's memory that vLLM gets: little, so that it starts fast and others can run."""
    total = int(_query(("memory.total",))[0])
    wanted = (1.2 * nbytes / 1e6 + _OVERHEAD_MB) / total
    return round(min(max(wanted, 0.05), 0.9), 3)


def peak_memory_mb(device: str) -> int | None:
    """Most memory that torch held on the GPU in this process, in MB; None on a CPU."""
    if device != "cuda":
        return None
    import torch

    return int(torch.cuda.max_memory_allocated()) // 1_000_000


@contextlib.contextmanager
def one_at_a_time(device: str) -> Iterator[None]:
    """Hold the lock of this process's GPU: two vLLMs on one starve each other of memory.

    Other GPUs of the machine have locks of their own: ``CUDA_VISIBLE_DEVICES`` says which it is.
    """
    if device != "cuda":
        yield
        return
    name = re.sub(r"[^\w-]+", "-", os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
    with (Path(tempfile.gettempdir()) / f"qvlfp8-gpu-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _query(fields: tuple[str, ...]) -> list[str]:
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    lines = asked.stdout.splitlines()
    if asked.returncode != 0 or not lines:
        raise OSError(f"nvidia-smi: {(asked.stderr or asked.stdout).strip()[:300]}")
    return [value.strip() for value in lines[0].split(",")]


def _cuda_of_torch() -> str | None:
    import torch.version

    found: str | None = torch.version.cuda
    return found
