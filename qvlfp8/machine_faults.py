"""Faults of the machine: the words by which a library reports them, what each means, and the mend. Pure.

A signature stands where the library begins its sentence: at the start of a message, or after the name of an
exception or what the system's own error number is written with. Words that merely occur in a message, such as
a tensor's name or a size, excuse nothing; and exceptions that only speak of what was given
(:data:`_OF_CONTENT`) are never the machine's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from qvlfp8.rootcause import clean, is_passed_on, root, without_prefix

__all__ = [
    "FAULTS",
    "Kind",
    "MachineFault",
    "blames_checkpoint",
    "kind_of",
    "of_exception",
    "of_log",
    "of_said",
]

Kind = Literal[
    "out-of-memory",
    "gpu-out-of-memory",
    "driver-mismatch",
    "no-gpu",
    "gpu-lost",
    "daemon-gone",
    "disk-refused",
]
"""Stable: records name faults by it."""


@dataclass(frozen=True, kw_only=True)
class MachineFault:
    """One kind of fault: what has happened, and what to do."""

    cause: str
    mend: str


_AGAIN = "and run again; finished work is kept"

FAULTS: Mapping[Kind, MachineFault] = MappingProxyType(
    {
        "out-of-memory": MachineFault(
            cause="this machine, or what a step may use of it, has no memory left",
            mend=f"run fewer steps at once (--jobs 1), give it more memory, {_AGAIN}",
        ),
        "gpu-out-of-memory": MachineFault(
            cause="the GPU has no memory left",
            mend=f"end what else uses the GPU (`nvidia-smi`), or use one with more memory, {_AGAIN}",
        ),
        "driver-mismatch": MachineFault(
            cause="the NVIDIA driver or GPU does not fit the CUDA of this environment",
            mend=f"update the driver (`nvidia-smi` says which it is), or use another environment, {_AGAIN}",
        ),
        "no-gpu": MachineFault(
            cause="there is no GPU that can be used",
            mend=f"see whether `nvidia-smi` lists one and CUDA_VISIBLE_DEVICES names it, {_AGAIN}",
        ),
        "gpu-lost": MachineFault(
            cause="the GPU failed while it was used",
            mend=f"see `nvidia-smi` and the kernel's log, reset the GPU or restart the machine, {_AGAIN}",
        ),
        "daemon-gone": MachineFault(
            cause="the container daemon does not answer",
            mend=f"see whether it runs (`docker info`), {_AGAIN}",
        ),
        "disk-refused": MachineFault(
            cause="the disk is full, or cannot be written",
            mend=f"free some space, or make the folder writable, {_AGAIN}",
        ),
    }
)

_OF_CONTENT = ("KeyError", "IndexError", "TypeError", "AttributeError", "UnicodeDecodeError")
"""Exceptions whose message is what was given, or about it."""

_BY_TYPE: Mapping[str, Kind] = MappingProxyType(
    {
        "MemoryError": "out-of-memory",
        "OutOfMemoryError": "gpu-out-of-memory",
        "NVMLError_GpuIsLost": "gpu-lost",
        "NVMLError_LibRmVersionMismatch": "driver-mismatch",
        "NVMLError_DriverNotLoaded": "no-gpu",
    }
)

_LEAD = r"^(?:the server [^:\n]{1,60}: )?(?:[\w.]{1,80}: ){0,3}"
"""What may stand before a library's sentence: names of exceptions, and the words of our own worker."""

_ON_ASKING = r"Unexpected error from cudaGetDeviceCount\(\)[^\n]{0,200}Error \d{1,4}: "
_CUDA = rf"(?:CUDA(?: driver| runtime)? error: |{_ON_ASKING})"

_NUMBERED = r"(?:\[Errno (?:{0})\] |\(os error (?:{0})\)|{1})"
"""An error of the system as Python (``[Errno 28]``) and as Rust (``(os error 28)``) write it."""

_HARDWARE_XIDS = "48|62|63|64|74|79|92|94|95|119|120|140"
"""Of NVIDIA's list, those of memory, links and the GPU itself; 13, 31 and others are a program's doing."""

_SIGNATURES: tuple[tuple[Kind, str], ...] = (
    (
        "gpu-out-of-memory",
        _LEAD + r"(?:"
        r"CUDA out of memory\b"
        rf"|{_CUDA}out of memory\b"
        r"|(?:CUDA error: )?(?:CUBLAS|CUDNN|CUSPARSE|CUSOLVER)_STATUS_ALLOC_FAILED\b"
        r"|cuDNN error: CUDNN_STATUS_ALLOC_FAILED\b"
        r"|Free memory on device [^\n]{0,80}is less than desired GPU memory utilization"
        r"|No available memory for the cache blocks\b"
        r"|To serve at least one request with the models?'s max seq len [^\n]{0,120}available KV cache memory"
        r"|The model's max seq len \(\d{1,9}\) is larger than the maximum number of tokens"
        r")",
    ),
    (
        "driver-mismatch",
        _LEAD + r"(?:"
        r"The NVIDIA driver on your system is too old\b"
        rf"|(?:{_CUDA})?CUDA driver version is insufficient for CUDA runtime version\b"
        rf"|{_CUDA}(?:no kernel image is available for execution on the device"
        r"|forward compatibility was attempted on non supported HW"
        r"|the provided PTX was compiled with an unsupported toolchain"
        r"|system has unsupported display driver / cuda driver combination)"
        r"|(?:nvidia-smi: )?(?:Failed to initialize NVML: )?Driver/library version mismatch\b"
        r"|RM has detected an NVML/RM version mismatch\b"
        r")",
    ),
    (
        "no-gpu",
        _LEAD + r"(?:"
        r"No CUDA GPUs are available\b"
        r"|Found no NVIDIA driver on your system\b"
        r"|Torch not compiled with CUDA enabled\b"
        rf"|{_CUDA}(?:no CUDA-capable device is detected|invalid device ordinal|system not yet initialized)"
        r"|nvidia-smi: (?:No devices were found|NVIDIA-SMI has failed because it couldn't communicate)"
        r"|Failed to infer device type\b"
        r"|Driver Not Loaded$"
        r"|libcuda\.so\.1: cannot open shared object file\b"
        r")",
    ),
    (
        "gpu-lost",
        _LEAD + r"(?:"
        r"(?:Unable to determine the device handle for [^\n]{0,80}: )?GPU is lost\b"
        rf"|{_CUDA}(?:unspecified launch failure|uncorrectable (?:ECC|NVLink) error|hardware stack error"
        r"|the launch timed out and was terminated|GPU is lost)"
        rf"|(?:\[[^\]\n]{{0,30}}\] )?NVRM: Xid \([^)\n]{{0,60}}\): (?:{_HARDWARE_XIDS})\b"
        r")",
    ),
    (
        "out-of-memory",
        _LEAD + r"(?:"
        r"(?:\[enforce fail at alloc_cpu\.cpp:\d{1,6}\] [^\n]{0,120})?"
        r"DefaultCPUAllocator: (?:can't allocate memory|not enough memory)"
        r"|(?:[Uu]nable to mmap \d{1,20} bytes |[\w./+-]{1,200}: failed to map segment )"
        r"[^\n]{0,300}Cannot allocate memory\b"
        r"|Unable to allocate [\d.]{1,12} [KMGTP]iB for an array\b"
        r"|std::bad_alloc$"
        r"|can't start new thread$"
        r")",
    ),
    ("out-of-memory", _NUMBERED.format("12", _LEAD + r"Cannot allocate memory$")),
    (
        "out-of-memory",
        # Ours, of a checkpoint's file; nothing of the file itself follows the bracket.
        r": cannot be read \((?:Cannot allocate memory|Too many open files)\); [^;:\n]{1,200}$",
    ),
    (
        "disk-refused",
        _NUMBERED.format(
            "5|28|30|122",
            _LEAD + r"(?:No space left on device|Read-only file system|Disk quota exceeded)\b",
        ),
    ),
    ("disk-refused", r": cannot be read \((?:Input/output error|Stale file handle)\); [^;:\n]{1,200}$"),
    (
        "daemon-gone",
        _LEAD + r"(?:Cannot connect to the Docker daemon\b|[Ee]rror during connect: )",
    ),
)

_COMPILED = tuple((kind, re.compile(pattern, re.MULTILINE)) for kind, pattern in _SIGNATURES)

_THEIRS = re.compile(_LEAD + r"(?:CUDA error: )?device-side assert triggered\b", re.MULTILINE)
"""A kernel's own check of what it was given, such as a token id beyond the embeddings."""

_KILLED = re.compile(r"^the server (?:ended with exit code -\d|was not ready within )|\bdied unexpectedly\b")
"""vLLM's processes ended by a signal, or were too slow: of whoever did that nothing is known."""

_LONGEST = 4000
"""What is looked at of a message; workers cut theirs at 2,000 characters."""


def kind_of(text: str) -> Kind | None:
    """The kind that a text begins with, as records print a fault (``kind: message``), if it is one."""
    named = text.partition(":")[0]
    return next((kind for kind in FAULTS if kind == named), None)


def of_said(text: str) -> Kind | None:
    """The fault whose signature is in what a library said, ``Type: message`` or message alone."""
    text = text[:_LONGEST]
    return next((kind for kind, pattern in _COMPILED if pattern.search(text)), None)


def of_exception(name: str, message: str, log: str = "") -> Kind | None:
    """The fault that an exception reports.

    Args:
        name: its class, without modules.
        message: its text.
        log: of the process; where the exception only says that another process failed, the cause is there.
    """
    if name in _OF_CONTENT:
        return None
    found = _BY_TYPE.get(name) or of_said(message)
    if found is None and is_passed_on(f"{name}: {message}"):
        return of_log(log)
    return found


def of_log(text: str) -> Kind | None:
    """The fault that ended a process: that of the exception at the root of its log, if it is one."""
    said = without_prefix(clean(text))
    found = root(said)
    if found is None:
        return None
    name, _, message = said[found].partition(": ")
    name = name.rpartition(".")[2].strip()
    return None if name in _OF_CONTENT else _BY_TYPE.get(name) or of_said(message)


def blames_checkpoint(raised: Mapping[str, Any]) -> bool:
    """Whether an exception that worker ``generate`` recorded is the checkpoint's doing.

    Args:
        raised: ``type``, ``message``, and ``origin`` as the worker took it to be by its words.
    """
    if _THEIRS.search(raised["message"]):
        return True
    if raised["origin"] != "checkpoint" or _KILLED.search(raised["message"]):
        return False
    return of_exception(raised["type"], raised["message"]) is None
