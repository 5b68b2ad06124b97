"""Engine ``venv``: environments are virtual environments in the store, filled by uv from their locks."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qvlfp8.engine import Announce, Batch, Exit
from qvlfp8.engine.process import Processes
from qvlfp8.engine.uv import Uv
from qvlfp8.environments import Environment
from qvlfp8.locks import Lock
from qvlfp8.source import PACKAGE
from qvlfp8.store import Store, writing

_COMPLETE = "complete.json"
_START_LIMIT_S = 300.0
"""For a worker's imports, which take 25 to 50 s cold on two cores (vLLM)."""

_KEPT = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "TZ",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
    "HF_HOME", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_CACHE",
    "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH",
)  # fmt: skip
"""What a worker gets of the caller's environment; all else (PYTHONPATH above all) stays outside."""


class VenvEngine:
    """Virtual environments in ``STORE/environments``; processes on this machine."""

    name = "venv"

    def __init__(
        self, store: Store, *, python: str, torch: str, announce: Announce, offline: bool = True
    ) -> None:
        self._store = store
        self._python = python
        self._offline = offline
        self._processes = Processes(announce)
        self._uv = Uv(self._processes, torch=torch)

    def _folder(self, environment: Environment, lock: Lock) -> Path:
        return self._store.environments / f"{environment.id}-{lock.digest[:12]}"

    def built(self, environment: Environment, lock: Lock) -> bool:
        """Whether the environment is there, whole."""
        return (self._folder(environment, lock) / _COMPLETE).exists()

    def build(self, environment: Environment, lock: Lock, log: Path) -> dict[str, Any]:
        """Make the environment anew from its lock.

        Raises:
            QvlError: uv's reason, by class.
        """
        folder = self._folder(environment, lock)
        started = time.monotonic()
        with writing(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            self._uv.create(folder, python=self._python, log=log)
            self._uv.sync(folder, lock, log=log)
            facts = {
                "packages": len(lock.versions()),
                "seconds": round(time.monotonic() - started, 1),
            }
            (folder / _COMPLETE).write_text(json.dumps(facts) + "\n", encoding="utf-8")
        return facts

    def run(
        self,
        environment: tuple[Environment, Lock] | None,
        batch: Batch,
        log: Path,
        on_event: Callable[[dict[str, Any]], None],
    ) -> Exit:
        """Run a batch; the limit for the whole process is its start and every job's own limit."""
        folder = self._folder(*environment) if environment else None
        python = str(folder / "bin" / "python") if folder else sys.executable
        spec = log.with_suffix(".spec.json")
        jobs = [{"id": job.id, "out": str(job.out), "params": job.params} for job in batch.jobs]
        with writing(spec):
            spec.write_text(
                json.dumps({"worker": batch.worker, "time_limit_s": batch.time_limit_s, "jobs": jobs}),
                encoding="utf-8",
            )

        def on_line(line: str) -> None:
            if line.startswith("{"):
                on_event(json.loads(line))

        return self._processes.run(
            [python, "-P", str(PACKAGE / "worker" / "__main__.py"), str(spec)],
            environment=self._worker_environment(folder, batch.threads),
            log=log,
            on_line=on_line,
            time_limit_s=_START_LIMIT_S + batch.time_limit_s * len(batch.jobs),
        )

    def stop(self) -> None:
        """End every process that this engine has running."""
        self._processes.stop()

    def _worker_environment(self, folder: Path | None, threads: int | None) -> dict[str, str]:
        kept = {key: os.environ[key] for key in _KEPT if key in os.environ}
        own = {
            "PYTHONHASHSEED": "0",
            "PYTHONUNBUFFERED": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }
        if folder is not None:
            # One cache a version: vLLM versions overwrite each other's in a shared one (FACTS 3).
            own["VLLM_CACHE_ROOT"] = str(folder / "cache" / "vllm")
            own["PATH"] = f"{folder / 'bin'}{os.pathsep}{kept.get('PATH', os.defpath)}"
        if threads is not None:
            # The order of floating-point sums depends on the number of threads.
            own["OMP_NUM_THREADS"] = own["MKL_NUM_THREADS"] = str(threads)
        if self._offline:
            own["HF_HUB_OFFLINE"] = "1"
        return {**kept, **own}
