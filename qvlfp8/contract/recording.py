"""Record contracts: run the probes in serve environments, and make a contract of each one's answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qvlfp8.contract.condense import condense
from qvlfp8.contract.data import Contract
from qvlfp8.contract.exclusions import Unexplained
from qvlfp8.contract.faithful import unlike
from qvlfp8.contract.probes import probes, write
from qvlfp8.engine import Batch, Engine, Job
from qvlfp8.environments import ServeEnvironment
from qvlfp8.errors import WorkerError
from qvlfp8.locks import Lock
from qvlfp8.store import writing
from qvlfp8.worker.contract import OBSERVED
from qvlfp8.worker.protocol import RESULT

__all__ = ["answers_of", "record"]

TIME_LIMIT_S = 3600.0
"""For all probes of a version: 8,000 at 0.05 s, and five times that on a busy machine."""


def record(
    environment: ServeEnvironment, lock: Lock, engine: Engine, work: Path, advance: Callable[[int, int], None]
) -> Contract:
    """Show the probes to an environment that is built, and condense its answers.

    Args:
        environment: the environment.
        lock: its lock.
        engine: where it runs.
        work: a folder for the worker's files; what is in it is overwritten.
        advance: is told how many probes are answered, of how many.

    Raises:
        WorkerError: the environment cannot judge, no rule explains it, or too little of it was kept.
        QvlError: the engine's, by class.
    """
    asked = probes()
    with writing(work):
        work.mkdir(parents=True, exist_ok=True)
        params = write(work, asked)
    observed, result = answers_of(environment, lock, engine, work, params, lambda d: advance(d, len(asked)))
    try:
        contract = condense(
            asked,
            observed,
            result["measured"]["model_class"],
            environment=environment.id,
            vllm=environment.vllm,
            transformers=result["environment"]["transformers"],
            lock=lock.digest,
        )
    except Unexplained as error:
        raise WorkerError(
            f"{environment.id}: {error}", mend="teach qvlfp8/contract/exclusions.py what it does"
        ) from None
    if wrong := list(unlike(asked, observed, contract)):
        raise WorkerError(
            f"{environment.id}: what was recorded does not say what vLLM did with {len(wrong)} of "
            f"{len(asked)} probes, such as {wrong[0]}",
            mend="teach qvlfp8/contract/answers.py what holds for whom",
        )
    return contract


def answers_of(
    environment: ServeEnvironment,
    lock: Lock,
    engine: Engine,
    work: Path,
    params: Mapping[str, Any],
    told: Callable[[int], None],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Run the contract's worker: what it observed of each case, and its whole result.

    ``told`` is told how many cases are answered.

    Raises:
        WorkerError: the environment cannot judge.
        QvlError: the engine's, by class.
    """
    out = work / "out"
    with writing(work):
        out.mkdir(parents=True, exist_ok=True)
        for file in (out / OBSERVED, out / RESULT):
            file.unlink(missing_ok=True)
    job = Job(id=environment.id, params=dict(params), out=out, reads=(work,))
    with _Watched(out / OBSERVED, told):
        engine.run(
            (environment, lock),
            Batch(worker="contract", jobs=(job,), time_limit_s=TIME_LIMIT_S, threads=1),
            work / "log.txt",
            lambda _event: None,
        )
    result = out / RESULT
    content: dict[str, Any] = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
    fault = content.get("environment", {}).get("fault") or content.get("failure")
    if content.get("outcome") != "done" or fault:
        raise WorkerError(
            f"{environment.id}: the probes were not answered: {fault or 'the worker ended'}",
            mend=f"its log is {work / 'log.txt'}",
        )
    lines = (out / OBSERVED).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], content


class _Watched:
    """Tell how many lines a file has, twice a second, while the block runs."""

    def __init__(self, file: Path, tell: Callable[[int], None]) -> None:
        self._file, self._tell = file, tell

    def __enter__(self) -> None:
        import threading

        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            if self._file.exists():
                with self._file.open("rb") as stream:
                    self._tell(sum(1 for _ in stream))
