"""Carrying out a plan: builds, models and batches as a graph of tasks, each finished step kept at once.

Nothing is done twice (the store has it), nothing finished is lost (a step is committed the moment its
result is there), and what cannot be done does not stop the rest.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from qvlfp8 import __version__, checkpoint, digest, reference
from qvlfp8.engine import Batch, Engine, Exit, Job
from qvlfp8.environments import Device, Environment
from qvlfp8.errors import LockError, QvlError, StoreWriteError
from qvlfp8.fault_errors import fault_of
from qvlfp8.judge import Verdict, judge
from qvlfp8.locks import Lock
from qvlfp8.plan import LockKey, Plan, Step, repeat_command
from qvlfp8.results import Fault, Host, Record
from qvlfp8.store import LOG, Store, end_of, writing
from qvlfp8.survey import Lookup, survey
from qvlfp8.wanted import wanted
from qvlfp8.worker.run_bundle import gpus_here

TIME_LIMIT_S: Mapping[str, float] = {
    "quantize": 600.0,
    "inspect": 60.0,
    "preflight": 120.0,
    "generate": 900.0,
}
"""For one job. The reference model takes seconds; the limit is for what hangs."""


class Progress:
    """What a run tells its watcher; the base class says nothing."""

    def begin(self, total: int) -> None:
        """The number of steps to come."""

    def task(self, name: str, *, running: bool) -> None:
        """A build or batch has started or ended."""

    def amount(self, name: str, what: str, *, done: int, total: int) -> None:
        """A running build or batch has done so much of what it is at."""

    def step(self, record: Record) -> None:
        """A step has been executed and kept."""

    def skip(self, step: Step, because: str) -> None:
        """A step cannot be executed in this run."""


@dataclass(frozen=True, kw_only=True)
class _Task:
    """One build, one model, or one batch; ``steps`` are what it answers."""

    name: str
    work: Callable[[], None]
    steps: tuple[Step, ...]
    after: tuple[str, ...]


def this_host() -> Host:
    """The machine that this process runs on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return Host(
        machine=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        cpus=os.cpu_count() or 1,
        memory_gb=round(memory, 1),
    )


def devices() -> frozenset[Device]:
    """What steps of this machine can run on."""
    return frozenset({"cpu", "cuda"}) if Path("/dev/nvidiactl").exists() else frozenset({"cpu"})


def default_jobs(host: Host) -> int:
    """How many workers run at once: one a CPU, as long as each has 3 GB of memory."""
    return max(1, min(host.cpus, int(host.memory_gb // 3)))


class Runner:
    """Carries out one plan in one store with one engine."""

    def __init__(
        self,
        plan: Plan,
        *,
        store: Store,
        engine: Engine,
        environments: Mapping[str, Environment],
        locks: Mapping[LockKey, Lock],
        progress: Progress,
        lookup: Lookup | None = None,
        devices: frozenset[Device] = frozenset({"cpu"}),
        again: bool = False,
        limits: Mapping[str, float] = TIME_LIMIT_S,
    ) -> None:
        self._plan = plan
        self._store = store
        self._engine = engine
        self._environments = environments
        self._locks = locks
        self._progress = progress
        self._lookup = lookup or (lambda step: store.record(step.stage, step.digest))
        self._devices = devices
        self._again = again
        self._limits = limits
        self._host = this_host()
        self._gpus = gpus_here() if "cuda" in devices else []
        self._guard = threading.Lock()
        self.faults: list[QvlError] = []
        """What kept steps from being executed, in the order in which it happened."""

    def wanted(self) -> tuple[Step, ...]:
        """The steps to execute: those without a final record that nothing failed before; builds for them."""
        return wanted(
            self._plan,
            survey(self._plan, self._lookup),
            devices=self._devices,
            again=self._again,
            intact=self._intact,
            built=self._built,
        )

    def _intact(self, step: Step, record: Record | None) -> bool:
        """Whether what a step made is still in the store, byte for byte."""
        if step.stage == "build" or record is None or record.made is None:
            return True
        return digest_of_what_was_made(self._store.entry(step.stage, step.digest)) == record.made

    def _built(self, step: Step) -> bool:
        return self._engine.built(*self._where(step))

    def _where(self, step: Step) -> tuple[Environment, Lock]:
        name = step.environment or ""
        lock = self._locks.get((name, step.device))
        if lock is None:
            raise LockError(f"{name} has no lock for a GPU", mend=f"nox -s lock -- {name}.{step.device}")
        return self._environments[name], lock

    def run(self, jobs: int | None = None) -> None:
        """Execute what is wanted. Ends early only for a disk that refuses, or KeyboardInterrupt.

        Raises:
            StoreWriteError: nothing more can be kept.
        """
        steps = self.wanted()
        tasks = {task.name: task for task in self._tasks(steps)}
        self._progress.begin(len(steps))
        order = TopologicalSorter({t.name: [a for a in t.after if a in tasks] for t in tasks.values()})
        order.prepare()
        with ThreadPoolExecutor(max_workers=jobs or default_jobs(self._host)) as pool:
            running: dict[Future[None], str] = {}
            try:
                while order.is_active():
                    for name in order.get_ready():
                        running[pool.submit(self._execute, tasks[name])] = name
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        order.done(running.pop(future))
                        future.result()
            except BaseException:
                # A second Ctrl-C must not interrupt the ending of what the first one ends.
                if threading.current_thread() is threading.main_thread():
                    for number in (signal.SIGINT, signal.SIGTERM):
                        signal.signal(number, signal.SIG_IGN)
                self._engine.stop()
                pool.shutdown(cancel_futures=True)
                raise

    def _tasks(self, steps: Sequence[Step]) -> Iterable[_Task]:
        for step in steps:
            if step.stage == "build":
                yield _Task(name=step.digest, work=partial(self._build, step), steps=(step,), after=())
            elif step.stage == "model":
                yield _Task(name=step.digest, work=partial(self._model, step), steps=(step,), after=())
        batches: dict[tuple[str, str], list[Step]] = {}
        for step in steps:
            if step.stage in {"quantize", "preflight", "generate"}:
                batches.setdefault((step.stage, step.environment or ""), []).append(step)
            elif step.stage == "inspect":
                made_in = self._plan.steps[step.needs[0]].environment or ""
                batches.setdefault((step.stage, made_in), []).append(step)
        names = {s.digest: f"{stage} {where}" for (stage, where), group in batches.items() for s in group}
        # Runs of vLLM take longest: they come first, beside the short ones.
        for (stage, where), group in sorted(batches.items(), key=lambda batch: batch[0][0] != "generate"):
            name = f"{stage} {where}"
            # A run of vLLM needs its baseline, which stands before it in the same batch.
            after = {names.get(need, need) for step in group for need in step.needs} - {name}
            yield _Task(
                name=name,
                work=partial(self._batch, tuple(group)),
                steps=tuple(group),
                after=tuple(after),
            )

    def _execute(self, task: _Task) -> None:
        label = f"{task.steps[0].stage} {task.steps[0].environment or task.steps[0].subject}"
        self._progress.task(label, running=True)
        try:
            task.work()
        finally:
            self._progress.task(label, running=False)

    def _build(self, step: Step) -> None:
        scratch = self._store.scratch("build")
        started = _now()
        clock = time.monotonic()
        measured: dict[str, Any] = {}
        verdict = Verdict(status="pass")
        try:
            measured = self._engine.build(*self._where(step), log=scratch / LOG)
        except QvlError as error:
            verdict = self._fault(error)
        seconds = round(time.monotonic() - clock, 1)
        self._keep(step, scratch, verdict, started=started, seconds=seconds, measured=measured)

    def _model(self, step: Step) -> None:
        scratch = self._store.scratch("model")
        started = _now()
        clock = time.monotonic()
        with writing(scratch):
            if "seed" in step.params:
                reference.write_random(scratch / "model", **step.params)
            else:
                reference.write_trained(scratch / "model", **step.params)
        seconds = round(time.monotonic() - clock, 1)
        self._keep(step, scratch, Verdict(status="pass"), started=started, seconds=seconds, measured={})

    def _batch(self, steps: Sequence[Step]) -> None:
        together = {step.digest for step in steps}
        ready = [step for step in steps if self._can_run(step, together)]
        if not ready:
            return
        stage = ready[0].stage
        batch_log = self._store.scratch("batch") / LOG
        jobs = {
            s.digest: Job(
                id=s.digest,
                params=self._params(s),
                out=self._job_folder(s),
                reads=self._reads(s, together),
            )
            for s in ready
        }
        started = _now()
        kept: set[str] = set()
        limit = self._limits[stage]

        def finish(step: Step, ended: Exit) -> None:
            scratch = jobs[step.digest].out
            result = _read_result(scratch)
            if not (scratch / LOG).exists():
                with writing(scratch):
                    _append(batch_log, scratch / LOG)
            verdict = judge(step.stage, result, ended, limit, log=end_of(scratch / LOG))
            kept.add(step.digest)
            self._keep(
                step, scratch, verdict, started=started,
                seconds=(result or {}).get("seconds", 0.0), measured=(result or {}).get("measured", {}),
                environment=(result or {}).get("environment", {}),
            )  # fmt: skip

        def on_event(event: dict[str, Any]) -> None:
            if event["event"] == "end":
                killed = bool(event.get("out_of_memory"))
                finish(self._plan.steps[event["job"]], Exit(code=0, out_of_memory=killed))

        environment = ready[0].environment
        batch = Batch(
            worker=stage,
            jobs=tuple(jobs.values()),
            time_limit_s=limit,
            threads=None if stage == "generate" else 1,
        )
        try:
            ended = self._engine.run(
                self._where(ready[0]) if environment else None, batch, batch_log, on_event
            )
        except StoreWriteError:
            raise
        except QvlError as error:
            verdict = self._fault(error)
            for step in ready:
                if step.digest not in kept:
                    scratch = jobs[step.digest].out
                    self._keep(step, scratch, verdict, started=started, seconds=0.0, measured={})
            return
        for step in ready:
            if step.digest not in kept:
                finish(step, ended)

    def _fault(self, error: QvlError) -> Verdict:
        """What kept steps from being executed: told at the end, and on record as the machine's fault."""
        with self._guard:
            self.faults.append(error)
        return Verdict(status="error", fault=fault_of(error))

    def _can_run(self, step: Step, together: Set[str]) -> bool:
        for need in step.needs:
            needed = self._plan.steps[need]
            if need in together:
                continue
            if needed.stage == "build":
                if self._built(needed):
                    continue
            else:
                record = self._store.record(needed.stage, needed.digest)
                if record is not None and record.status == "pass":
                    continue
            self._progress.skip(step, f"{needed.stage} of {needed.subject} has not passed")
            return False
        return True

    def _facts(self, step: Step) -> dict[str, str]:
        return self._engine.facts(self._where(step) if step.environment else None)

    def _read(self, step: Step) -> dict[str, str]:
        sources = ((need, self._store.record(self._plan.steps[need].stage, need)) for need in step.needs)
        return {need: record.made for need, record in sources if record and record.made}

    def _params(self, step: Step) -> dict[str, Any]:
        params = dict(step.params)
        for need in step.needs:
            needed = self._plan.steps[need]
            if needed.stage == "model":
                # The unquantized model is the checkpoint of a baseline.
                name = "checkpoint" if step.stage == "generate" else "model"
                params[name] = str(self._store.entry("model", need) / "model")
            elif needed.stage == "quantize":
                params["checkpoint"] = str(self._store.entry("quantize", need) / "checkpoint")
            elif needed.stage == "generate":
                params["baseline"] = str(self._store.entry("generate", need))
        return params

    def _reads(self, step: Step, together: Set[str]) -> tuple[Path, ...]:
        """The folders that :meth:`_params` names."""
        found = []
        for need in step.needs:
            stage = self._plan.steps[need].stage
            entry = self._store.entry(stage, need)
            if need in together:
                # An earlier job of the same batch makes it: not there yet, while its parent is.
                with writing(entry.parent):
                    entry.parent.mkdir(parents=True, exist_ok=True)
                found.append(entry.parent)
            elif stage != "build":
                made = {"model": "model", "quantize": "checkpoint"}.get(stage, "")
                found.append(entry / made)
        return tuple(found)

    def _job_folder(self, step: Step) -> Path:
        return self._store.scratch(step.stage)

    def _keep(
        self,
        step: Step,
        scratch: Path,
        verdict: Verdict,
        *,
        started: str,
        seconds: float,
        measured: Mapping[str, Any],
        environment: Mapping[str, Any] | None = None,
    ) -> None:
        log = scratch / LOG
        made = digest_of_what_was_made(scratch)
        if step.stage == "quantize" and verdict.status == "pass" and made is None:
            fault = Fault(kind="no-checkpoint", message="the worker said done and left no checkpoint")
            verdict = Verdict(status="error", fault=fault)
        lock = self._where(step)[1].digest if step.environment else None
        host, on = self._host, {}
        if step.device == "cuda" and step.stage != "build" and self._gpus:
            host = host.model_copy(update={"accelerator": self._gpus[0]["name"]})
            on = {"gpus": self._gpus}
        record = Record(
            stage=step.stage,
            subject=step.subject,
            digest=step.digest,
            status=verdict.status,
            inputs={
                **step.inputs,
                "params": dict(step.params),
                "asked": dict(step.asked),
                "needs": list(step.needs),
                "lock": lock,
            },
            environment={**(environment or {}), **self._facts(step), **on},
            host=host,
            started=started,
            seconds=seconds,
            measured=dict(measured),
            findings=verdict.findings,
            fault=verdict.fault,
            repeat=repeat_command(step, self._engine.name),
            made=made,
            read=self._read(step),
            evidence=next(iter(step.evidence), None),
            log=LOG if log.exists() else None,
            log_digest=digest.of_file(log) if log.exists() else None,
            qvlfp8=__version__,
        )
        self._store.commit(scratch, record)
        self._progress.step(record)


def digest_of_what_was_made(scratch: Path) -> str | None:
    """Digest of the model, checkpoint or generation in an entry's folder; None where there is none."""
    for name in ("model", "checkpoint", "generation"):
        if (scratch / name).is_dir():
            return checkpoint.folder_digest(scratch / name)
    return None


def _read_result(folder: Path) -> dict[str, Any] | None:
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) else None


def _append(source: Path, target: Path) -> None:
    if source.exists():
        with source.open("rb") as read, target.open("ab") as write:
            shutil.copyfileobj(read, write)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
