"""`nox -s lock`: resolve environments into locks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from qvlfp8 import locks
from qvlfp8.engine.uv import Uv
from qvlfp8.errors import LockError, UsageError
from qvlfp8.matrix import Environment, Matrix


def outdated(matrix: Matrix, chosen: Sequence[Environment] | None = None) -> list[str]:
    """Why each lock that cannot be used cannot be used; of all environments, or of the chosen ones."""
    problems = (locks.problem(matrix, environment) for environment in chosen or matrix.environments)
    return [problem for problem in problems if problem]


def choose(matrix: Matrix, names: Sequence[str]) -> list[Environment]:
    """The environments named, or those whose lock cannot be used.

    Raises:
        UsageError: a name that no environment has.
    """
    known = {environment.id: environment for environment in matrix.environments}
    for name in names:
        if name not in known:
            raise UsageError(f"no environment {name!r}", mend=f"name one of {', '.join(known)}")
    if names:
        return [known[name] for name in names]
    return [e for e in known.values() if locks.problem(matrix, e)]


def lock(
    matrix: Matrix, chosen: Sequence[Environment], uv: Uv, show: Callable[[str], None]
) -> list[LockError]:
    """Resolve the chosen environments; one that does not resolve does not stop the others.

    Raises:
        IndexUnreachableError: the index does not answer.
    """
    failed: list[LockError] = []
    with tempfile.TemporaryDirectory(prefix="qvlfp8-lock-") as folder:
        root = Path(folder)
        builder = root / "builder"
        uv.create(builder, python=matrix.file.locks.python, log=root / "log.txt")
        for environment in chosen:
            scratch = root / environment.id
            scratch.mkdir()
            try:
                uv.compile(
                    locks.request(matrix, environment),
                    locks.path_of(matrix, environment),
                    builder=builder / "bin" / "python",
                    scratch=scratch,
                )
                show(f"✓ {environment.id}")
            except LockError as error:
                show(f"✗ {error}")
                failed.append(error)
    return failed
