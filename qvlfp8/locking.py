"""`nox -s lock`: resolve environments into locks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from qvlfp8 import locks
from qvlfp8.engine.uv import Uv
from qvlfp8.environments import Device, Environment
from qvlfp8.errors import LockError, UsageError
from qvlfp8.matrix import Matrix

Asked = tuple[Environment, Device]
"""One lock: an environment, and what it computes on."""


def of_matrix(matrix: Matrix) -> dict[str, Asked]:
    """Name -> every lock: the CPU's of each environment, and the CUDA locks that are there."""
    found: dict[str, Asked] = {environment.id: (environment, "cpu") for environment in matrix.environments}
    for environment in matrix.file.serve:
        if environment.device == "cuda" and locks.path_of(matrix, environment, "cuda").exists():
            found[f"{environment.id}.cuda"] = (environment, "cuda")
    return found


def outdated(matrix: Matrix, chosen: Sequence[Asked] | None = None) -> list[str]:
    """Why each lock that cannot be used cannot be used; of all, or of the chosen ones."""
    asked = chosen or of_matrix(matrix).values()
    problems = (locks.problem(matrix, environment, device) for environment, device in asked)
    return [problem for problem in problems if problem]


def choose(matrix: Matrix, names: Sequence[str]) -> list[Asked]:
    """The locks named (``vllm-0.26.0``, or ``vllm-0.26.0.cuda`` for a GPU), or those that cannot be used.

    Raises:
        UsageError: a name that no environment has.
    """
    known = of_matrix(matrix)
    known |= {f"{e.id}.cuda": (e, "cuda") for e in matrix.file.serve if e.device == "cuda"}
    for name in names:
        if name not in known:
            raise UsageError(f"no environment {name!r}", mend=f"name one of {', '.join(known)}")
    if names:
        return [known[name] for name in names]
    return [asked for asked in of_matrix(matrix).values() if locks.problem(matrix, *asked)]


def lock(matrix: Matrix, chosen: Sequence[Asked], uv: Uv, show: Callable[[str], None]) -> list[LockError]:
    """Resolve the chosen locks; one that does not resolve does not stop the others.

    Raises:
        IndexUnreachableError: the index does not answer.
    """
    failed: list[LockError] = []
    with tempfile.TemporaryDirectory(prefix="qvlfp8-lock-") as folder:
        root = Path(folder)
        builder = root / "builder"
        uv.create(builder, python=matrix.file.locks.python, log=root / "log.txt")
        for environment, device in chosen:
            target = locks.path_of(matrix, environment, device)
            scratch = root / target.stem
            scratch.mkdir()
            try:
                uv.compile(
                    locks.request(matrix, environment, device),
                    target,
                    builder=builder / "bin" / "python",
                    scratch=scratch,
                )
                show(f"✓ {target.stem}")
            except LockError as error:
                show(f"✗ {error}")
                failed.append(error)
    return failed
