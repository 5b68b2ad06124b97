"""One process a step, in an environment of the host, ended at the deadline."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qvlfp8.worker.run_bundle import ENVIRONMENTS, end_session

ROOT = Path(__file__).parents[2]


class OutOfTime(Exception):
    """The time of this call is over: what was not finished is done by the next."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a process ended: wall seconds from its start to its end, the most memory it held, in MB."""

    code: int
    seconds: float
    peak_host_mb: int
    result: dict[str, Any] | None
    tail: str


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Packages on this host: its Python, and variables for what runs in it."""

    name: str
    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")


def find_environment(home: Path, name: str, specs: Mapping[str, Mapping[str, Any]]) -> Environment:
    """An environment below ``home``: unpacked of a bundle, or (its lock's digest at the end) built here.

    Raises:
        FileNotFoundError: there is none.
    """
    if name in specs:
        return Environment(
            name=name, folder=home / ENVIRONMENTS / name, variables=dict(specs[name]["variables"])
        )
    found = sorted(path for path in (home / ENVIRONMENTS).glob(f"{name}-????????????") if path.is_dir())
    if not found:
        raise FileNotFoundError(f"{home / ENVIRONMENTS}: no {name}: lay the pieces of its bundle there")
    return Environment(name=name, folder=found[-1])


class Processes:
    """Starts processes and ends them all at the deadline."""

    def __init__(self, scratch: Path, deadline: float) -> None:
        self._scratch = scratch
        self._deadline = deadline
        # A signal may come while the thread that it interrupts holds it.
        self._guard = threading.RLock()
        self._running: set[int] = set()
        self._stopped = False

    def left(self) -> float:
        """Seconds until the deadline."""
        return self._deadline - time.monotonic()

    def stop(self) -> None:
        """End what runs, and start no more."""
        with self._guard:
            self._stopped = True
            for leader in self._running:
                end_session(leader)

    def run(self, environment: Environment, command: Sequence[str], out: Path, *, gpu: str | None) -> Ended:
        """Run Python with these arguments: its output goes to ``out/log.txt``, its result to ``result.json``.

        Raises:
            OutOfTime: the deadline came first.
        """
        out.mkdir(parents=True, exist_ok=True)
        (out / "result.json").unlink(missing_ok=True)
        log = out / "log.txt"
        with log.open("wb") as stream, self._guard:
            if self._stopped:
                raise OutOfTime
            started = time.monotonic()
            process = subprocess.Popen(
                [environment.python, *command], cwd=ROOT, env=self._variables(environment, gpu),
                stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            self._running.add(process.pid)
        timer = threading.Timer(max(self.left(), 0.0), self.stop)
        timer.daemon = True
        timer.start()
        try:
            _, status, used = os.wait4(process.pid, 0)
            seconds = time.monotonic() - started
        finally:
            timer.cancel()
            with self._guard:
                self._running.discard(process.pid)
        process.returncode = os.waitstatus_to_exitcode(status)
        end_session(process.pid)
        if self._stopped:
            raise OutOfTime
        result = None
        with contextlib.suppress(OSError, ValueError):
            result = json.loads((out / "result.json").read_text(encoding="utf-8"))
        return Ended(
            code=process.returncode,
            seconds=round(seconds, 2),
            peak_host_mb=used.ru_maxrss * 1024 // 1_000_000,
            result=result,
            tail=log.read_bytes()[-3000:].decode(errors="replace"),
        )

    def _variables(self, environment: Environment, gpu: str | None) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONHOME"}}
        home = self._scratch / environment.name
        home.mkdir(parents=True, exist_ok=True)
        own = {
            "PATH": f"{environment.folder / 'bin'}{os.pathsep}{inherited.get('PATH', os.defpath)}",
            "HOME": str(home),
            "VLLM_CACHE_ROOT": str(home / "vllm"),
        }
        if gpu is not None:
            own["CUDA_VISIBLE_DEVICES"] = gpu
        brought = {
            key: value.replace("{environment}", str(environment.folder))
            .replace("{inherited}", inherited.get(key, ""))
            .strip(":")
            for key, value in environment.variables.items()
        }
        return {**inherited, **own, **brought}
