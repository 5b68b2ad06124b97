"""``qvlfp8 contract record`` and ``qvlfp8 contract check``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qvlfp8.contract import data, recording
from qvlfp8.contract.data import Contract
from qvlfp8.engine.venv import VenvEngine
from qvlfp8.environments import ServeEnvironment
from qvlfp8.errors import QvlError, UsageError
from qvlfp8.locks import Lock, find_lock
from qvlfp8.project import Project

_LEFT_OUT = ("lock", "transformers")
"""Fields that name the environment, and are no answer of vLLM's."""


class DisagreementError(QvlError):
    """The recorded contract and vLLM disagree."""


def run_record(matrix: Path, store: Path | None, names: Sequence[str], folder: Path | None) -> None:
    """Record the named environments, or all, and write their contracts.

    Raises:
        QvlError: by class.
    """
    for contract in _recorded(matrix, store, names):
        print(f"✓ {data.save(contract, folder or data.FOLDER)}")


def run_check(matrix: Path, store: Path | None, names: Sequence[str], folder: Path | None) -> None:
    """Record the named environments, or all, anew, and compare with what is written.

    Raises:
        DisagreementError: they differ, or one was never recorded.
        QvlError: by class.
    """
    written = {contract.environment: contract for contract in data.load_all(folder or data.FOLDER)}
    wrong = []
    for contract in _recorded(matrix, store, names):
        known = written.get(contract.environment)
        found = list(differences(known, contract)) if known else ["it was never recorded"]
        print(f"{'✗' if found else '✓'} {contract.environment}")
        wrong += [f"{contract.environment}: {line}" for line in found]
        for line in found[:20]:
            print(f"    {line}")
    if wrong:
        raise DisagreementError(
            f"vLLM does otherwise than its contract says: {wrong[0]}"
            + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""),
            mend="look at what changed, then `qvlfp8 contract record`",
        )


def differences(known: Contract, found: Contract) -> Iterator[str]:
    """Where two contracts differ: the field, the path in it, and both answers."""
    for field, before in asdict(known).items():
        if field not in _LEFT_OUT:
            yield from _differences(field, before, asdict(found)[field])


def _differences(at: str, before: Any, now: Any) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from _differences(f"{at} > {key}", before.get(key), now.get(key))
    elif before != now:
        yield f"{at}: recorded {before!r}, now {now!r}"


def _recorded(matrix: Path, store: Path | None, names: Sequence[str]) -> Iterator[Contract]:
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
            yield _one(project, environment, locks[environment.id], engine, progress)


def _one(
    project: Project, environment: ServeEnvironment, lock: Lock, engine: VenvEngine, progress: Progress
) -> Contract:
    task = progress.add_task(environment.id, total=None)
    work = project.store.root / "contract" / environment.id
    work.mkdir(parents=True, exist_ok=True)

    def advance(done: int, total: int) -> None:
        progress.update(task, completed=done, total=total)

    try:
        if not engine.built(environment, lock):
            engine.build(environment, lock, work / "build.log")
        return recording.record(environment, lock, engine, work, advance)
    except BaseException:
        engine.stop()
        raise
    finally:
        progress.remove_task(task)


def _chosen(project: Project, names: Sequence[str]) -> list[ServeEnvironment]:
    # A labelled environment has packages on trial: what it says is theirs.
    known = {e.id: e for e in project.matrix.file.serve if e.label is None}
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"no serve environment {unknown[0]!r}", mend=f"there are {', '.join(known)}")
    return [known[name] for name in names] if names else list(known.values())
