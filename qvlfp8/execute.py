"""Carrying out one task in one store with one engine; each finished step is kept at once.

Nothing finished is lost: a step is committed the moment its result is there. :mod:`qvlfp8.run` says which
tasks there are and when, on this machine; :mod:`qvlfp8.cluster` does so on many.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import shutil
import threading
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qvlfp8 import __version__, checkpoint, digest, reference
from qvlfp8.engine import Batch, Engine, Exit, Job
from qvlfp8.environments import Environment
from qvlfp8.errors import LockError, QvlError, StoreWriteError
from qvlfp8.fault_errors import fault_of
from qvlfp8.host import this_host
from qvlfp8.judge import Verdict, judge
from qvlfp8.locks import Lock
from qvlfp8.plan import LockKey, Step, repeat_command
from qvlfp8.progress import Progress
from qvlfp8.results import Attempt, Fault, Host, Record
from qvlfp8.store import LOG, Store, end_of, writing
from qvlfp8.tasks import Task
from qvlfp8.untrusted import NotACheckpoint, open_regular
from qvlfp8.worker.generate import IDS, LOGPROBS, TOKENS

TIME_LIMIT_S: Mapping[str, float] = {
    "quantize": 600.0,
    "inspect": 60.0,
    "preflight": 120.0,
    "generate": 900.0,
}
"""For one job. The reference model takes seconds; the limit is for what hangs."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """The machine that a task is carried out on: what records say of it, and the GPUs that steps may use."""

    host: Host = field(default_factory=this_host)
    gpus: tuple[Mapping[str, str], ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


class Executor:
    """Carries out tasks of one plan in one store with one engine."""

    def __init__(
        self,
        steps: Mapping[str, Step],
        *,
        store: Store,
        engine: Engine,
        environments: Mapping[str, Environment],
        locks: Mapping[LockKey, Lock],
        progress: Progress,
        site: Site | None = None,
        attempts: Mapping[str, tuple[Attempt, ...]] | None = None,
        limits: Mapping[str, float] = TIME_LIMIT_S,
    ) -> None:
        """Take what tasks need.

        Args:
            steps: by digest, those of the tasks and all that these need.
            store: where inputs are and results go; the caller sees to it that nobody sweeps it meanwhile.
            engine: runs batches.
            environments: by id.
            locks: of the environments.
            progress: is told of every step.
            site: where this is.
            attempts: of steps that are tried again, the earlier tries.
            limits: seconds for one job, by stage.
        """
        self._steps = steps
        self._store = store
        self._engine = engine
        self._environments = environments
        self._locks = locks
        self._progress = progress
        self._site = site or Site()
        self._attempts = {} if attempts is None else attempts
        self._limits = limits
        self._guard = threading.Lock()
        self.faults: list[QvlError] = []
        """What kept steps from being executed, in the order in which it happened."""

    def carry_out(self, task: Task) -> None:
        """Execute a task's steps; one whose needs have not passed is skipped.

        Raises:
            StoreWriteError: nothing more can be kept.
        """
        match task.steps[0].stage:
            case "build":
                self._build(task.steps[0])
            case "model":
                self._model(task.steps[0])
            case _:
                self._batch(task.steps)

    def give_up(self, step: Step, fault: Fault, *, started: str) -> None:
        """Keep an error for a step that did not get as far as a result of its own."""
        scratch = self._store.scratch(step.stage)
        verdict = Verdict(status="error", fault=fault)
        self._keep(step, scratch, verdict, started=started, seconds=0.0, measured={})

    def built(self, step: Step) -> bool:
        """Whether a build's environment is there."""
        return self._engine.built(*self._where(step))

    def stop(self) -> None:
        """End what is running, and start no more; may be called from another thread."""
        self._engine.stop()

    def _where(self, step: Step) -> tuple[Environment, Lock]:
        name = step.environment or ""
        lock = self._locks.get((name, step.device))
        if lock is None:
            raise LockError(f"{name} has no lock for a GPU", mend=f"nox -s lock -- {name}.{step.device}")
        return self._environments[name], lock

    def _build(self, step: Step) -> None:
        scratch = self._store.scratch("build")
        started = now()
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
        started = now()
        clock = time.monotonic()
        with writing(scratch):
            if "seed" in step.params:
                reference.write_random(scratch / "model", **step.params)
            else:
                reference.write_trained(scratch / "model", **step.params)
        seconds = round(time.monotonic() - clock, 1)
        self._keep(step, scratch, Verdict(status="pass"), started=started, seconds=seconds, measured={})

    def _batch(self, steps: Sequence[Step]) -> None:
        """Run steps in one process."""
        together = {step.digest for step in steps}
        ready = [step for step in steps if self._can_run(step, together)]
        if not ready:
            return
        stage = ready[0].stage
        batch_log, made_here = self._batch_folder()
        jobs = {
            s.digest: Job(
                id=s.digest,
                params=self._params(s, together, made_here),
                out=self._job_folder(s),
                reads=self._reads(s, together, made_here),
            )
            for s in ready
        }
        compared = {need for step in ready for need in step.needs if need in jobs}
        for need in compared:
            _lead(made_here / need, jobs[need].out)
        started = now()
        kept: set[str] = set()
        limit = self._limits[stage]

        def finish(step: Step, ended: Exit) -> None:
            scratch = jobs[step.digest].out
            kept.add(step.digest)
            failed = next((n for n in step.needs if n in together and not self._passed(n)), None)
            if failed is not None:
                # It was compared with a run that does not count.
                self._skip(step, failed)
                return
            result = _read_result(scratch)
            if not (scratch / LOG).exists():
                with writing(scratch):
                    _append(batch_log, scratch / LOG)
            verdict = judge(step.stage, result, ended, limit, log=end_of(scratch / LOG))
            if verdict.status == "pass" and step.digest in compared:
                # While it is moved to its entry, the worker may be reading it for the next job.
                _lead(made_here / step.digest, _copy_of_what_was_generated(scratch, made_here))
            self._keep(
                step, scratch, verdict, started=started,
                seconds=(result or {}).get("seconds", 0.0), measured=(result or {}).get("measured", {}),
                environment=(result or {}).get("environment", {}),
            )  # fmt: skip

        def on_event(event: dict[str, Any]) -> None:
            if event["event"] == "end":
                killed = bool(event.get("out_of_memory"))
                finish(self._steps[event["job"]], Exit(code=0, out_of_memory=killed))

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

    def _batch_folder(self) -> tuple[Path, Path]:
        """A batch's log, and a folder where its jobs find what earlier jobs of it have made.

        Not in the store: a worker goes on while that is being kept, and an entry of an earlier run must not
        be taken for it.
        """
        scratch = self._store.scratch("batch")
        made_here = scratch / "made"
        with writing(made_here):
            made_here.mkdir()
        return scratch / LOG, made_here

    def _fault(self, error: QvlError) -> Verdict:
        """What kept steps from being executed: told at the end, and on record as the machine's fault."""
        with self._guard:
            self.faults.append(error)
        return Verdict(status="error", fault=fault_of(error))

    def _can_run(self, step: Step, together: Set[str]) -> bool:
        for need in step.needs:
            needed = self._steps[need]
            if need in together:
                continue
            if not (self.built(needed) if needed.stage == "build" else self._passed(need)):
                self._skip(step, need)
                return False
        return True

    def _passed(self, digest: str) -> bool:
        record = self._store.record(self._steps[digest].stage, digest)
        return record is not None and record.status == "pass"

    def _skip(self, step: Step, need: str) -> None:
        needed = self._steps[need]
        self._progress.skip(step, f"{needed.stage} of {needed.subject} has not passed")

    def _facts(self, step: Step) -> dict[str, str]:
        return self._engine.facts(self._where(step) if step.environment else None)

    def _read(self, step: Step) -> dict[str, str]:
        sources = ((need, self._store.record(self._steps[need].stage, need)) for need in step.needs)
        return {need: record.made for need, record in sources if record and record.made}

    def _params(self, step: Step, together: Set[str], made_here: Path) -> dict[str, Any]:
        params = dict(step.params)
        for need in step.needs:
            needed = self._steps[need]
            if needed.stage == "model":
                # The unquantized model is the checkpoint of a baseline.
                name = "checkpoint" if step.stage == "generate" else "model"
                params[name] = str(self._store.entry("model", need) / "model")
            elif needed.stage == "quantize":
                params["checkpoint"] = str(self._store.entry("quantize", need) / "checkpoint")
            elif needed.stage == "generate":
                entry = made_here / need if need in together else self._store.entry("generate", need)
                params["baseline"] = str(entry)
        return params

    def _reads(self, step: Step, together: Set[str], made_here: Path) -> tuple[Path, ...]:
        """The folders that :meth:`_params` names."""
        found = []
        for need in step.needs:
            stage = self._steps[need].stage
            entry = self._store.entry(stage, need)
            if need in together:
                found.append(made_here)
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
        try:
            made = digest_of_what_was_made(scratch)
        except NotACheckpoint as error:
            # A link out of the folder, a pipe: nothing that could be handed on.
            made = None
            fault = Fault(kind="unreadable-result", message=str(error))
            verdict = Verdict(status="error", fault=fault)
        if step.stage == "quantize" and verdict.status == "pass" and made is None:
            fault = Fault(kind="no-checkpoint", message="the worker said done and left no checkpoint")
            verdict = Verdict(status="error", fault=fault)
        lock = self._where(step)[1].digest if step.environment else None
        host, gpus = self._site.host, self._site.gpus
        on: dict[str, Any] = dict(self._site.facts)
        if step.device == "cuda" and step.stage != "build" and gpus:
            host = host.model_copy(update={"accelerator": gpus[0]["name"]})
            on["gpus"] = [dict(gpu) for gpu in gpus]
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
            attempts=self._attempts.get(step.digest) or None,
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


def _lead(link: Path, folder: Path) -> None:
    """Make a link lead to a folder; where it led elsewhere, it leads somewhere at every moment."""
    with writing(link):
        new = link.with_suffix(".new")
        new.symlink_to(folder)
        new.replace(link)


def _copy_of_what_was_generated(scratch: Path, into: Path) -> Path:
    """Of a run, the files that others are compared with; regular ones alone, whatever is there."""
    copy = into / f"{scratch.name}.copy"
    with writing(copy):
        for name in (LOGPROBS, TOKENS, IDS):
            with contextlib.suppress(NotACheckpoint), open_regular(scratch / name, scratch) as source:
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                with (copy / name).open("wb") as target:
                    shutil.copyfileobj(source, target)
    return copy


def _append(source: Path, target: Path) -> None:
    if source.exists():
        with source.open("rb") as read, target.open("ab") as write:
            shutil.copyfileobj(read, write)


def now() -> str:
    """The time as records say it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
