"""``qvlfp8 lock``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from qvlfp8.engine.process import Processes
from qvlfp8.engine.uv import Uv
from qvlfp8.errors import LockError
from qvlfp8.locking import choose, lock, of_matrix, outdated
from qvlfp8.project import Project


def run_lock(matrix: Path, names: Sequence[str], *, check: bool) -> None:
    """Resolve environments, or say which locks are out of date.

    Raises:
        LockError: with ``check``, a lock is out of date; else, an environment does not resolve, and
            matrix.yaml does not expect that.
    """
    project = Project.open(matrix)
    if check:
        problems = outdated(project.matrix, choose(project.matrix, names) if names else None)
        if problems:
            raise LockError(
                "\n".join(problems), mend=" ".join(("nox -s lock", *(["--", *names] if names else [])))
            )
        print(f"{len(of_matrix(project.matrix))} locks are up to date")
        return
    console = Console(stderr=True)

    def show(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    processes = Processes(lambda command: show(f"$ {command}"))
    try:
        failed = lock(
            project.matrix,
            choose(project.matrix, names),
            Uv(processes, torch=project.matrix.file.locks.torch),
            show,
        )
    finally:
        processes.stop()
    unexpected = [f"{e.id} does not resolve" for e in failed if not project.matrix.expects_unresolved(e)]
    if unexpected:
        raise LockError(
            "; ".join(dict.fromkeys(unexpected)),
            mend="name other versions in matrix.yaml, or expect it there: shows: {resolve: does-not-resolve}",
        )
