"""The machine's faults are errors with their cause in every stage; the checkpoint's own are never excused.

The words are those of torch, vLLM, the driver, Docker and the kernel, as they print them.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from qvlfp8 import machine_faults
from qvlfp8.engine import Exit
from qvlfp8.errors import DaemonError, QvlError, StoreWriteError, WorkerError
from qvlfp8.fault_errors import error_of, fault_of
from qvlfp8.judge import Verdict, judge
from qvlfp8.results import RecordedStage
from qvlfp8.scoring import Bounds, score
from tests.unit.test_judge import STAGES, raised
from tests.unit.test_scoring import good

CORE_FAILED = "Engine core initialization failed. See root cause above. Failed core proc(s): {}"

NO_BLOCKS = "ValueError: No available memory for the cache blocks. Try increasing it"
FORWARD = (
    "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before? Error 804: "
    "forward compatibility was attempted on non supported HW"
)

INJECTED = (
    ("out-of-memory", "MemoryError", ""),
    ("out-of-memory", "OSError", "[Errno 12] Cannot allocate memory"),
    (
        "out-of-memory",
        "RuntimeError",
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried",
    ),
    (
        "out-of-memory",
        "RuntimeError",
        "unable to mmap 8192 bytes from file </m/model.safetensors>: Cannot allocate memory (12)",
    ),
    ("out-of-memory", "SafetensorError", "Error while opening: Cannot allocate memory (os error 12)"),
    (
        "out-of-memory",
        "ImportError",
        "libtorch.so: failed to map segment from shared object: Cannot allocate memory",
    ),
    ("out-of-memory", "RuntimeError", "can't start new thread"),
    (
        "gpu-out-of-memory",
        "OutOfMemoryError",
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79 GiB",
    ),
    (
        "gpu-out-of-memory",
        "RuntimeError",
        "CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0)",
    ),
    (
        "gpu-out-of-memory",
        "AcceleratorError",
        "CUDA error: out of memory\nCUDA kernel errors might be reported",
    ),
    (
        "gpu-out-of-memory",
        "RuntimeError",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ),
    (
        "gpu-out-of-memory",
        "ValueError",
        "Free memory on device (3.1/79.1 GiB) on startup is less than desired GPU memory utilization",
    ),
    (
        "gpu-out-of-memory",
        "ValueError",
        "Free memory on device cuda:0 (3.1/79.1 GiB) on startup is less than desired GPU memory utilization",
    ),
    (
        "gpu-out-of-memory",
        "ValueError",
        "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing",
    ),
    (
        "gpu-out-of-memory",
        "ServerFailed",
        f"the server ended with exit code 1: RuntimeError: {CORE_FAILED}\n{NO_BLOCKS}",
    ),
    (
        "gpu-out-of-memory",
        "FreshProcessFailed",
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
    ),
    (
        "driver-mismatch",
        "RuntimeError",
        "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver",
    ),
    (
        "driver-mismatch",
        "RuntimeError",
        "CUDA error: CUDA driver version is insufficient for CUDA runtime version",
    ),
    (
        "driver-mismatch",
        "RuntimeError",
        "CUDA error: no kernel image is available for execution on the device",
    ),
    ("driver-mismatch", "NVMLError_LibRmVersionMismatch", "RM has detected an NVML/RM version mismatch."),
    ("driver-mismatch", "OSError", "nvidia-smi: Failed to initialize NVML: Driver/library version mismatch"),
    (
        "driver-mismatch",
        "RuntimeError",
        FORWARD,
    ),
    ("no-gpu", "RuntimeError", "No CUDA GPUs are available"),
    (
        "no-gpu",
        "RuntimeError",
        "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU",
    ),
    ("no-gpu", "AssertionError", "Torch not compiled with CUDA enabled"),
    ("no-gpu", "RuntimeError", "Failed to infer device type, please set the environment variable"),
    ("no-gpu", "OSError", "nvidia-smi: No devices were found"),
    ("gpu-lost", "NVMLError_GpuIsLost", "GPU is lost"),
    (
        "gpu-lost",
        "RuntimeError",
        "Unable to determine the device handle for GPU0000:3B:00.0: GPU is lost.  Reboot the system",
    ),
    ("gpu-lost", "AcceleratorError", "CUDA error: unspecified launch failure\nCUDA kernel errors might be"),
    ("gpu-lost", "RuntimeError", "CUDA error: uncorrectable ECC error encountered"),
    (
        "gpu-lost",
        "RuntimeError",
        "NVRM: Xid (PCI:0000:3b:00): 79, pid=1, name=python, GPU has fallen off the bus.",
    ),
    ("disk-refused", "OSError", "[Errno 28] No space left on device: '/store/tmp/x'"),
    ("disk-refused", "OSError", "[Errno 30] Read-only file system: '/store/tmp/x'"),
    ("disk-refused", "OSError", "[Errno 5] Input/output error"),
    (
        "disk-refused",
        "SafetensorError",
        "Error while serializing: I/O error: No space left on device (os error 28)",
    ),
    ("disk-refused", "RuntimeError", "[Errno 122] Disk quota exceeded"),
    ("daemon-gone", "RuntimeError", "Cannot connect to the Docker daemon at unix:///var/run/docker.sock."),
)

OWN = (
    (
        "RuntimeError",
        "size mismatch for CUDA out of memory.weight: copying a param with shape torch.Size([4])",
    ),
    ("RuntimeError", "shape '[2, 3]' is invalid for input of size 5: not enough memory to view it"),
    (
        "RuntimeError",
        "The size of tensor a (4) must match the size of tensor b (3) (memory format is contiguous)",
    ),
    ("KeyError", "'CUDA out of memory'"),
    ("KeyError", "[Errno 28] No space left on device"),
    ("TypeError", "No CUDA GPUs are available"),
    ("ValueError", "tensor visual.No space left on device.weight has no place"),
    (
        "RuntimeError",
        "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported",
    ),
    ("ValueError", "the answer was: GPU is lost"),
)
"""What a checkpoint causes, though words of the machine occur in it."""


def faulted(verdict: Verdict, kind: str, said: str) -> None:
    assert (verdict.status, verdict.findings) == ("error", ())
    assert verdict.fault is not None
    assert verdict.fault.kind == kind
    known = machine_faults.FAULTS[kind]  # type: ignore[index]
    assert verdict.fault.message.startswith(known.cause)
    assert said[:40] in verdict.fault.message


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("kind", "name", "message"), INJECTED)
def test_an_exception_of_the_machine_is_an_error_with_its_cause(
    stage: RecordedStage, kind: str, name: str, message: str
) -> None:
    faulted(judge(stage, raised(name, message), Exit(code=0), 60.0), kind, message)


def generated(name: str, message: str, origin: str, stage: str = "load") -> dict[str, Any]:
    exception = {"type": name, "message": message, "where": "a.py:1 f", "stage": stage, "origin": origin}
    return good() | {"load": {"exception": exception}, "answers": []}


@pytest.mark.parametrize("origin", ["checkpoint", "environment"])
@pytest.mark.parametrize(("kind", "name", "message"), INJECTED)
def test_a_worker_that_takes_it_for_the_checkpoints_is_not_believed(
    origin: str, kind: str, name: str, message: str
) -> None:
    measured = generated(name, message, origin)
    faulted(judge("generate", {"outcome": "done", "measured": measured}, Exit(code=0), 60.0), kind, message)
    assert score(measured, good(), Bounds())["load"].status == "error"
    later = generated(name, message, origin, "generate")
    assert score(later, good(), Bounds())["text"].status == "error"
    shown = {"stage_reached": "load", "exception": measured["load"]["exception"], "refused": []}
    faulted(judge("preflight", {"outcome": "done", "measured": shown}, Exit(code=0), 60.0), kind, message)


@pytest.mark.parametrize(("name", "message"), OWN)
def test_what_is_the_checkpoints_is_not_excused(name: str, message: str) -> None:
    assert judge("quantize", raised(name, message), Exit(code=0), 60.0).status == "fail"
    for origin in ("checkpoint", "environment") if "device-side" in message else ("checkpoint",):
        measured = generated(name, message, origin)
        result = {"outcome": "done", "measured": measured}
        assert judge("generate", result, Exit(code=0), 60.0).status == "pass"
        assert score(measured, good(), Bounds())["load"].status == "fail"


def test_answers_are_never_looked_at() -> None:
    measured = good()
    for answer in measured["answers"]:
        answer["answer"] = "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB"
    result = {"outcome": "done", "measured": measured}
    assert judge("generate", result, Exit(code=0), 60.0, log="RuntimeError: GPU is lost").status == "pass"
    assert score(measured, good(), Bounds())["text"].status == "fail"


def log_of(*root: str) -> str:
    error = "(EngineCore_DP0 pid=7) ERROR 09-10 12:00:00 [core.py:718] "
    return "\n".join(
        (
            "INFO 09-10 11:59:30 [cuda.py:408] CUDA out of memory is what this line only talks about",
            error + "Traceback (most recent call last):",
            *(error + line for line in root),
            "Traceback (most recent call last):",
            f"RuntimeError: {CORE_FAILED}",
        )
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("RuntimeError", CORE_FAILED),
        ("EngineDeadError", "EngineCore encountered an issue. See stack trace (above) for the root cause."),
        ("FreshProcessFailed", "a process of its own ended with exit code 1"),
    ],
)
def test_of_an_engine_that_died_the_log_has_the_cause(name: str, message: str) -> None:
    result = {"outcome": "done", "measured": generated(name, message, "checkpoint")}
    log = log_of("ValueError: No available memory for the cache blocks. Try increasing it")
    faulted(judge("generate", result, Exit(code=0), 60.0, log=log), "gpu-out-of-memory", name)
    log = log_of("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
    faulted(judge("generate", result, Exit(code=0), 60.0, log=log), "gpu-out-of-memory", name)
    own = log_of("KeyError: 'layers.0.CUDA out of memory'")
    assert judge("generate", result, Exit(code=0), 60.0, log=own).status == "pass"


@pytest.mark.parametrize(
    "message",
    [
        "the server ended with exit code -9: INFO loading",
        "the server was not ready within 600 s: INFO loading",
        "the server ended with exit code 1: RuntimeError: Engine core proc EngineCore_DP0 died unexpectedly",
    ],
)
def test_a_server_that_was_killed_says_nothing_of_the_checkpoint(message: str) -> None:
    measured = generated("ServerFailed", message, "checkpoint")
    assert judge("generate", {"outcome": "done", "measured": measured}, Exit(code=0), 60.0).status == "error"
    assert score(measured, good(), Bounds())["load"].status == "error"


@pytest.mark.parametrize("stage", STAGES)
def test_a_process_that_the_kernel_ended_for_want_of_memory(stage: RecordedStage) -> None:
    killed = {"outcome": "signal", "failure": {"kind": "SIGKILL", "message": "ended", "where": None}}
    faulted(judge(stage, killed, Exit(code=0, out_of_memory=True), 60.0), "out-of-memory", "")
    faulted(judge(stage, None, Exit(code=-9, out_of_memory=True), 60.0), "out-of-memory", "")
    other = judge(stage, killed, Exit(code=0), 60.0)
    assert other.fault is not None
    assert (other.status, other.fault.kind) == ("error", "SIGKILL")


@pytest.mark.parametrize("stage", STAGES)
def test_a_process_that_left_no_result_is_explained_by_its_log(stage: RecordedStage) -> None:
    log = (
        "Traceback (most recent call last):\n"
        "ImportError: libtorch.so: failed to map segment from shared object: Cannot allocate memory\n"
    )
    faulted(judge(stage, None, Exit(code=1), 60.0, log=log), "out-of-memory", "")
    left = raised("exit", "the worker left with exit code 1 and no result")
    faulted(judge(stage, left, Exit(code=0), 60.0, log="OSError: [Errno 28] No space left on device"),
            "disk-refused", "")  # fmt: skip
    assert judge(stage, left, Exit(code=0), 60.0, log="ValueError: no").status == "error"


def test_a_checkpoint_that_the_disk_does_not_give_is_not_refused() -> None:
    message = "/store/c/config.json: cannot be read ({}); put the file there"
    refused = {"outcome": "refused", "failure": {"kind": "not-a-checkpoint", "message": "", "where": None}}
    for reason, kind in (("Input/output error", "disk-refused"), ("Cannot allocate memory", "out-of-memory")):
        refused["failure"]["message"] = message.format(reason)  # type: ignore[index]
        faulted(judge("preflight", refused, Exit(code=0), 60.0), kind, "")
    for own in (message.format("No such file or directory"), "x (Input/output error); y: is a link out; z"):
        refused["failure"]["message"] = own  # type: ignore[index]
        assert judge("preflight", refused, Exit(code=0), 60.0).status == "fail"


def test_every_kind_has_an_example_a_cause_and_a_mend() -> None:
    assert {kind for kind, _, _ in INJECTED} == set(machine_faults.FAULTS)
    for kind, fault in machine_faults.FAULTS.items():
        assert fault.cause
        assert "run again" in fault.mend
        error = error_of(f"{kind}: x", "step of x")
        assert error.mend == fault.mend
    assert error_of("timeout: x", "step of x").mend


@pytest.mark.parametrize(
    ("kind", "code"), [("disk-refused", 13), ("daemon-gone", 14), ("no-gpu", 11), ("crash", 11)]
)
def test_a_fault_ends_the_command_with_its_own_code(kind: str, code: int) -> None:
    assert error_of(f"{kind}: text", "text").exit_code == code


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DaemonError("x"), "daemon-gone"),
        (StoreWriteError("x"), "disk-refused"),
        (WorkerError("x"), "WorkerError"),
    ],
)
def test_what_an_engine_raises_is_on_record_by_its_kind(error: QvlError, kind: str) -> None:
    assert (fault_of(error).kind, fault_of(error).message) == (kind, "x")


@pytest.mark.parametrize(
    "unit", ["a: ", "CUDA error: ", "the server a", "[Errno 2", "unable to mmap 1 bytes "]
)
def test_no_signature_is_slow_on_what_nearly_matches(unit: str) -> None:
    started = time.process_time()
    machine_faults.of_said(unit * (400_000 // len(unit)))
    machine_faults.of_log(unit * (200_000 // len(unit)))
    assert time.process_time() - started < 2
