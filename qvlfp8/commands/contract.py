"""``qvlfp8 contract record`` and ``qvlfp8 contract check``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qvlfp8.contract import data, form_data, form_recording, recording
from qvlfp8.contract.data import Contract
from qvlfp8.contract.form_data import FormRecords
from qvlfp8.engine.venv import VenvEngine
from qvlfp8.environments import ServeEnvironment
from qvlfp8.errors import QvlError, UsageError
from qvlfp8.locks import Lock, find_lock
from qvlfp8.project import Project

_LEFT_OUT = ("lock", "transformers")
"""Fields that name the environment, and are no answer of vLLM's."""


class DisagreementError(QvlError):
    """The recorded contract and vLLM disagree."""


class Shown(StrEnum):
    """What a loader is shown: probes of Qwen2.5-VL in ModelOpt FP8, and samples of other kinds."""

    PROBES = "probes"
    SAMPLES = "samples"


Answers = Contract | FormRecords


def run_record(
    matrix: Path, store: Path | None, names: Sequence[str], folder: Path | None, only: Shown | None = None
) -> None:
    """Record the named environments, or all, and write their contracts and what became of the samples.

    Raises:
        QvlError: by class.
    """
    for found in _recorded(matrix, store, names, only):
        if isinstance(found, Contract):
            file = data.save(found, folder or data.FOLDER)
        else:
            file = form_data.save(found, _of_samples(folder))
        print(f"✓ {file}")


def _of_samples(folder: Path | None) -> Path:
    return folder / "forms" if folder else form_data.FOLDER


def run_check(
    matrix: Path, store: Path | None, names: Sequence[str], folder: Path | None, only: Shown | None = None
) -> None:
    """Record the named environments, or all, anew, and compare with what is written.

    Raises:
        DisagreementError: they differ, or one was never recorded.
        QvlError: by class.
    """
    held: list[Answers] = [*data.load_all(folder or data.FOLDER), *form_data.load_all(_of_samples(folder))]
    written = {(type(answers), answers.environment): answers for answers in held}
    wrong = []
    for now in _recorded(matrix, store, names, only):
        known = written.get((type(now), now.environment))
        found = list(differences(known, now)) if known else ["it was never recorded"]
        shown = Shown.PROBES if isinstance(now, Contract) else Shown.SAMPLES
        print(f"{'✗' if found else '✓'} {now.environment} {shown}")
        wrong += [f"{now.environment}: {line}" for line in found]
        for line in found[:20]:
            print(f"    {line}")
    if wrong:
        raise DisagreementError(
            f"vLLM does otherwise than its contract says: {wrong[0]}"
            + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""),
            mend="look at what changed, then `qvlfp8 contract record`",
        )


def differences(known: Answers, found: Answers) -> Iterator[str]:
    """Where two records of one environment differ: the field, the path in it, and both answers."""
    for field, before in asdict(known).items():
        if field not in _LEFT_OUT:
            yield from _differences(field, before, asdict(found)[field])


def _differences(at: str, before: Any, now: Any) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from _differences(f"{at} > {key}", before.get(key), now.get(key))
    elif before != now:
        yield f"{at}: recorded {before!r}, now {now!r}"


def _recorded(
    matrix: Path, store: Path | None, names: Sequence[str], only: Shown | None
) -> Iterator[Answers]:
    project = Project.open(matrix, store)
    environments = _chosen(project, names)
    locks = {environment.id: find_lock(project.matrix, environment) for environment in environments}
    policy = project.matrix.file.locks
    console = Console(stderr=True)
    engine = VenvEngine(
        project.store,
        python=policy.python,
        torch=policy.torch,
        announce=lambda line: console.print(f"$ {line}", markup=False, soft_wrap=True),
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with project.store.locked(), Progress(*columns, console=console, transient=True) as progress:
        for environment in environments:
            for shown in Shown if only is None else (only,):
                yield _one(project, environment, locks[environment.id], engine, progress, shown)


def _one(
    project: Project,
    environment: ServeEnvironment,
    lock: Lock,
    engine: VenvEngine,
    progress: Progress,
    shown: Shown,
) -> Answers:
    task = progress.add_task(environment.id, total=None)
    work = project.store.root / "contract" / environment.id
    work.mkdir(parents=True, exist_ok=True)

    def advance(done: int, total: int) -> None:
        progress.update(task, completed=done, total=total)

    try:
        if not engine.built(environment, lock):
            engine.build(environment, lock, work / "build.log")
        record = recording.record if shown is Shown.PROBES else form_recording.record
        return record(environment, lock, engine, work, advance)
    except BaseException:
        engine.stop()
        raise
    finally:
        progress.remove_task(task)


def _chosen(project: Project, names: Sequence[str]) -> list[ServeEnvironment]:
    known = {e.id: e for e in project.matrix.file.serve if e.recordable}
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"no serve environment {unknown[0]!r}", mend=f"there are {', '.join(known)}")
    return [known[name] for name in names] if names else list(known.values())
