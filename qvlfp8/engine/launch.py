"""What every engine does with a batch: the worker's spec, command and variables, its events, its limit."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qvlfp8.engine import Batch, Exit
from qvlfp8.engine.process import OomKiller, Processes
from qvlfp8.redaction import scrub
from qvlfp8.source import PACKAGE
from qvlfp8.store import writing

OnEvent = Callable[[dict[str, Any]], None]

_START_LIMIT_S = 300.0
"""For a worker's imports, which take 25 to 50 s cold on two cores (vLLM)."""

_KEPT = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "TZ",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
    "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE",
    "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH",
)  # fmt: skip
"""What a worker on this machine gets of the caller's environment; all else (PYTHONPATH above all) stays
outside."""

_FOR_THE_HUB = (
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "HF_ENDPOINT", "HF_TOKEN",
)  # fmt: skip
"""What it gets besides if it may use the hub; credentials are among them."""


def write_spec(batch: Batch, log: Path) -> Path:
    """Write what the worker reads, beside the batch's log.

    Raises:
        StoreWriteError: the disk refuses.
    """
    spec = log.with_suffix(".spec.json")
    jobs = [{"id": job.id, "out": str(job.out), "params": job.params} for job in batch.jobs]
    content = {"worker": batch.worker, "time_limit_s": batch.time_limit_s, "jobs": jobs}
    with writing(spec):
        spec.write_text(json.dumps(content), encoding="utf-8")
    return spec


def command(python: str, spec: Path, package: Path = PACKAGE) -> list[str]:
    """The command that starts the worker; ``-P`` keeps the package's neighbours out of ``sys.path``."""
    return [python, "-P", str(package / "worker" / "__main__.py"), str(spec)]


def time_limit_s(batch: Batch) -> float:
    """For the whole process: its start, and every job's own limit."""
    return _START_LIMIT_S + batch.time_limit_s * len(batch.jobs)


def variables(batch: Batch, *, offline: bool) -> dict[str, str]:
    """The environment variables that every worker gets, wherever it runs."""
    own = {
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if batch.threads is not None:
        # The order of floating-point sums depends on the number of threads.
        own["OMP_NUM_THREADS"] = own["MKL_NUM_THREADS"] = str(batch.threads)
    if offline:
        own["HF_HUB_OFFLINE"] = "1"
    return own


def kept_variables(*, offline: bool = True) -> dict[str, str]:
    """What a worker on this machine keeps of the caller's environment."""
    names = _KEPT if offline else (*_KEPT, *_FOR_THE_HUB)
    return {key: os.environ[key] for key in names if key in os.environ}


@contextlib.contextmanager
def scrubbed(batch: Batch, log: Path) -> Iterator[None]:
    """While a batch runs: whatever comes of it, its logs keep no secret of the caller.

    Raises:
        StoreWriteError: the disk refuses.
    """
    try:
        yield
    finally:
        for place in (log, *(job.out for job in batch.jobs)):
            # What is finished was scrubbed then, and has been moved away.
            if place.exists():
                with writing(place):
                    scrub(place)


def reader(batch: Batch, on_event: OnEvent) -> Callable[[str], None]:
    """Takes the lines that a worker prints, and passes its events on, once a job's logs are scrubbed.

    An ``end`` says ``out_of_memory`` if the kernel ended a process for want of it before.
    """
    killed = OomKiller()
    outs = {job.id: job.out for job in batch.jobs}

    def on_line(line: str) -> None:
        nonlocal killed
        if line.startswith("{"):
            event = json.loads(line)
            if event["event"] == "end":
                with writing(outs[event["job"]]):
                    scrub(outs[event["job"]])
                if killed.struck():
                    event["out_of_memory"] = True
                    killed = OomKiller()
            on_event(event)

    return on_line


def run_here(
    processes: Processes,
    batch: Batch,
    log: Path,
    on_event: OnEvent,
    *,
    environment: Mapping[str, str],
    python: str = sys.executable,
) -> Exit:
    """Run a batch as a process of this machine.

    Raises:
        Stopped: the engine was told to stop.
        StoreWriteError: the disk refuses.
    """
    with scrubbed(batch, log):
        return processes.run(
            command(python, write_spec(batch, log)),
            environment=environment,
            log=log,
            on_line=reader(batch, on_event),
            time_limit_s=time_limit_s(batch),
        )
