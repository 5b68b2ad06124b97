"""The worker's side of a batch: one slow import, then one forked process a job.

A batch is a JSON spec in and, for every job, one ``result.json`` and one ``log.txt`` in the job's
output folder out. A crash, a signal and a timeout of a job are results like any other: the parent
writes them. On standard output the parent prints one JSON event a line (``ready``, ``start``,
``end``), which is all that an engine has to read; a job prints its ``progress`` there.

Forking after the import gives each job a clean process (no state of the job before) at the price of
one import for all. A batch of one job runs without a fork, since CUDA does not survive one: it logs
to the process's own standard error, and its time limit is the engine's.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Literal

RESULT = "result.json"
LOG = "log.txt"

PROGRESS_EVERY_S = 0.5

_PR_SET_PDEATHSIG = 1

Outcome = Literal["done", "refused", "raised", "signal", "timeout"]


class Refused(Exception):
    """The job asks for something that cannot be done; ``kind`` is a stable id, the message says the mend."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a job has no measured values: a stable ``kind``, a sentence, and where it happened."""

    kind: str
    message: str
    where: str | None = None


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """One job's ``result.json``: wall seconds, and its own peak of memory in MB (10^6 bytes)."""

    outcome: Outcome
    measured: dict[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    peak_rss_mb: int = 0


def write_json(path: Path, value: object) -> None:
    """Write JSON so that it is either whole or not there, should the process end.

    Not synced, which would wait for every gigabyte that a job has written before: what outlives the machine
    is the store's, which syncs its records.
    """
    partial = path.with_name(path.name + ".part")
    with partial.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1, sort_keys=True)
    partial.replace(path)


_ROOT = Path(__file__).resolve().parents[2]


def innermost(error: BaseException) -> str | None:
    """``file:line function`` of the frame that raised, its path within site-packages or this package."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return None
    last = frames[-1]
    place = last.filename.rsplit("site-packages/", 1)[-1].removeprefix(f"{_ROOT}/")
    return f"{place}:{last.lineno} {last.name}"


def _event(stream: Any, **fields: object) -> None:
    stream.write(json.dumps(fields) + "\n")
    stream.flush()


@dataclass
class _Channel:
    """Where the running job's progress goes, and when it last went there."""

    stream: Any = None
    job: str = ""
    told: float = 0.0


_channel = _Channel()


def progress(task: str, done: int, total: int) -> None:
    """Tell the watcher how far a job is: ``done`` of ``total``; seldom enough to cost nothing."""
    now = time.monotonic()
    if _channel.stream is not None and (done == total or now - _channel.told >= PROGRESS_EVERY_S):
        _channel.told = now
        _event(_channel.stream, event="progress", job=_channel.job, task=task, done=done, total=total)


def _attempt(worker: ModuleType, params: dict[str, Any], out: Path, facts: dict[str, Any]) -> JobResult:
    started = time.monotonic()
    outcome: Outcome = "done"
    measured: dict[str, Any] = {}
    failure = None
    try:
        measured = worker.run(params, out)
    except Refused as refused:
        outcome, failure = "refused", Failure(kind=refused.kind, message=str(refused))
    except Exception as error:
        traceback.print_exc()
        outcome = "raised"
        failure = Failure(kind=type(error).__name__, message=str(error)[:2000], where=innermost(error))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 1_000_000
    return JobResult(
        outcome=outcome, measured=measured, failure=failure, environment=facts,
        seconds=round(time.monotonic() - started, 3), peak_rss_mb=peak,
    )  # fmt: skip


class _Timeout(Exception):
    pass


def _on_alarm(_signal: int, _frame: FrameType | None) -> None:
    raise _Timeout


def _redirect(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _fork_job(
    worker: ModuleType, job: dict[str, Any], facts: dict[str, Any], limit: float
) -> JobResult | None:
    """Run one job in a child; returns what the *parent* has to write, None if the child wrote its own."""
    out = Path(job["out"])
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        # The child must never return into the parent's loop, whatever happens.
        code = 1
        try:
            os.setpgid(0, 0)
            _die_with_parent()
            _redirect(out / LOG)
            result = _attempt(worker, job["params"], out, facts)
            write_json(out / RESULT, asdict(result))
            code = 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    with contextlib.suppress(PermissionError, ProcessLookupError):
        os.setpgid(pid, pid)  # whichever of the two comes first
    started = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        _, status = os.waitpid(pid, 0)
    except _Timeout:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return JobResult(
            outcome="timeout", environment=facts, seconds=round(time.monotonic() - started, 3),
            failure=Failure(kind="timeout", message=f"no result within {limit:g} s; it was ended"),
        )  # fmt: skip
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if (out / RESULT).exists():
        return None
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        failure = Failure(kind=name, message=f"the worker was ended by {name}")
        outcome: Outcome = "signal"
    else:
        code = os.waitstatus_to_exitcode(status)
        failure = Failure(kind="exit", message=f"the worker left with exit code {code} and no result")
        outcome = "raised"
    return JobResult(
        outcome=outcome,
        failure=failure,
        environment=facts,
        seconds=round(time.monotonic() - started, 3),
    )


def _die_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends, however that ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main(argv: list[str]) -> int:
    """Run the batch described by the JSON file ``argv[0]``; 0 if every job has a result, whatever it says."""
    _die_with_parent()
    spec = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    jobs = spec["jobs"]
    limit = float(spec["time_limit_s"])
    # Events go to a private copy of stdout: what libraries print must not mix with them.
    events = _channel.stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGALRM, _on_alarm)
    started = time.monotonic()
    worker = importlib.import_module(f"qvlfp8.worker.{spec['worker']}")
    facts = worker.prepare([job["params"] for job in jobs])
    _event(events, event="ready", seconds=round(time.monotonic() - started, 1))
    for job in jobs:
        out = Path(job["out"])
        (out / RESULT).unlink(missing_ok=True)
        _event(events, event="start", job=job["id"])
        _channel.job = job["id"]
        if len(jobs) == 1:
            result: JobResult | None = _attempt(worker, job["params"], out, facts)
        else:
            result = _fork_job(worker, job, facts, limit)
        if result is not None:
            write_json(out / RESULT, asdict(result))
        _event(events, event="end", job=job["id"])
    return 0
