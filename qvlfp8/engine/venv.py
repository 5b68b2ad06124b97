"""Engine ``venv``: environments are virtual environments in the store, filled by uv from their locks."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qvlfp8.engine import Announce, Batch, Exit, launch
from qvlfp8.engine.process import Processes
from qvlfp8.engine.uv import Uv
from qvlfp8.environments import Environment
from qvlfp8.locks import Lock
from qvlfp8.store import Store, writing

_COMPLETE = "complete.json"


class VenvEngine:
    """Virtual environments in ``STORE/environments``; processes on this machine."""

    name = "venv"

    def __init__(
        self, store: Store, *, python: str, torch: str, announce: Announce, offline: bool = True
    ) -> None:
        self._store = store
        self._python = python
        self._offline = offline
        self._processes = Processes(announce, held=store.held)
        self._uv = Uv(self._processes, torch=torch)

    def _folder(self, environment: Environment, lock: Lock) -> Path:
        return self._store.environments / f"{environment.id}-{lock.digest[:12]}"

    def built(self, environment: Environment, lock: Lock) -> bool:
        """Whether the environment is there, whole."""
        return (self._folder(environment, lock) / _COMPLETE).exists()

    def build(self, environment: Environment, lock: Lock, log: Path) -> dict[str, Any]:
        """Make the environment from its lock; what there is of one that is not whole is removed.

        Raises:
            QvlError: uv's reason, by class.
        """
        folder = self._folder(environment, lock)
        if (facts := _facts_of(folder)) is not None:
            # Made by a run that was killed before it could say so.
            with writing(log):
                log.write_text(f"{folder} is whole: an earlier run made it\n", encoding="utf-8")
            return facts
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
            partial = folder / f"{_COMPLETE}.part"
            partial.write_text(json.dumps(facts) + "\n", encoding="utf-8")
            partial.rename(folder / _COMPLETE)
        return facts

    def facts(self, _environment: tuple[Environment, Lock] | None) -> dict[str, str]:
        """The engine's name."""
        return {"engine": self.name}

    def run(
        self,
        environment: tuple[Environment, Lock] | None,
        batch: Batch,
        log: Path,
        on_event: Callable[[dict[str, Any]], None],
    ) -> Exit:
        """Run a batch; the limit for the whole process is its start and every job's own limit."""
        folder = self._folder(*environment) if environment else None
        kept = launch.kept_variables(offline=self._offline)
        variables = {**kept, **launch.variables(batch, offline=self._offline)}
        if folder is None:
            return launch.run_here(self._processes, batch, log, on_event, environment=variables)
        # One cache a version: vLLM versions overwrite each other's in a shared one (FACTS 3).
        variables["VLLM_CACHE_ROOT"] = str(folder / "cache" / "vllm")
        variables["PATH"] = f"{folder / 'bin'}{os.pathsep}{variables.get('PATH', os.defpath)}"
        python = str(folder / "bin" / "python")
        return launch.run_here(self._processes, batch, log, on_event, environment=variables, python=python)

    def stop(self) -> None:
        """End every process that this engine has running."""
        self._processes.stop()


def _facts_of(folder: Path) -> dict[str, Any] | None:
    """What was said of an environment when it was whole; None if it is not."""
    try:
        facts = json.loads((folder / _COMPLETE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None
