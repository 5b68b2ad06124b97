"""`nox -s lock`: resolve environments into locks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from qvlfp8 import locks
from qvlfp8.engine.uv import Uv
from qvlfp8.environments import Environment
from qvlfp8.errors import UnresolvableError, UsageError
from qvlfp8.locks import Target
from qvlfp8.matrix import Matrix

Asked = tuple[Environment, Target]
"""One lock: an environment, and what it is locked for."""


def of_matrix(matrix: Matrix) -> dict[str, Asked]:
    """Name -> every lock: those of each environment's targets, and those for bundles that are there."""
    found: dict[str, Asked] = {}
    for environment in matrix.environments:
        for target in locks.targets_of(environment):
            found[locks.name_of(environment, target)] = (environment, target)
    for name, (environment, target) in _bundles(matrix).items():
        if locks.path_of(matrix, environment, target).exists():
            found[name] = (environment, target)
    return found


def _bundles(matrix: Matrix) -> dict[str, Asked]:
    on_gpu = (e for e in matrix.environments if e.kind == "quantize" or e.device == "cuda")
    return {locks.name_of(environment, "bundle"): (environment, "bundle") for environment in on_gpu}


def outdated(matrix: Matrix, chosen: Sequence[Asked] | None = None) -> list[str]:
    """Why each lock that cannot be used cannot be used; of all, or of the chosen ones."""
    asked = chosen or of_matrix(matrix).values()
    problems = (locks.problem(matrix, environment, target) for environment, target in asked)
    return [problem for problem in problems if problem]


def choose(matrix: Matrix, names: Sequence[str]) -> list[Asked]:
    """The locks named (``vllm-0.26.0``, ``vllm-0.26.0.cuda`` for a GPU), or those that cannot be used.

    Raises:
        UsageError: a name that no environment has.
    """
    known = of_matrix(matrix)
    every = known | _bundles(matrix)
    for name in names:
        if name not in every:
            raise UsageError(f"no environment {name!r}", mend=f"name one of {', '.join(known)}")
    if names:
        return [every[name] for name in dict.fromkeys(names)]
    return [asked for asked in known.values() if locks.problem(matrix, *asked)]


def lock(matrix: Matrix, chosen: Sequence[Asked], uv: Uv, show: Callable[[str], None]) -> list[Environment]:
    """Resolve the chosen locks; what does not resolve is written down as that.

    Returns:
        The environments that do not resolve.

    Raises:
        IndexUnreachableError: the index does not answer.
    """
    failed: list[Environment] = []
    with tempfile.TemporaryDirectory(prefix="qvlfp8-lock-") as folder:
        root = Path(folder)
        builder = root / "builder"
        uv.create(builder, python=matrix.file.locks.python, log=root / "log.txt")
        for environment, target in chosen:
            path = locks.path_of(matrix, environment, target)
            asked = locks.request(matrix, environment, target)
            scratch = root / path.stem
            scratch.mkdir()
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                made = uv.compile(asked, builder=builder / "bin" / "python", scratch=scratch)
                path.write_text(asked.header() + made, encoding="utf-8")
                show(f"✓ {path.stem}")
            except UnresolvableError as error:
                path.write_text(asked.unresolved(error.problem), encoding="utf-8")
                show(f"✗ {path.stem}: does not resolve: {error.problem}")
                failed.append(environment)
    return failed
