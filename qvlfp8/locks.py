"""Hash-locked requirement files, one an environment, in ``containers/locks/``.

A lock's header carries the digest of what was asked for, so that a lock which no longer belongs to
matrix.yaml is seen without resolving anything. :mod:`qvlfp8.engine.uv` makes and installs them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from qvlfp8 import digest
from qvlfp8.errors import LockError
from qvlfp8.matrix import Environment, Matrix

_ASKED = "# asked: sha256:"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of the resolver for one environment."""

    environment: str
    python: str
    platform: str
    exclude_newer: str
    requires: tuple[str, ...]
    override: tuple[str, ...]
    exclude: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of everything that can change the answer."""
        return digest.of_json(self.__dict__)

    def header(self) -> str:
        """The comment that opens the lock."""
        return (
            f"# {self.environment}: made by `nox -s lock`; do not edit.\n"
            f"# python {self.python} · {self.platform} · packages up to {self.exclude_newer}\n"
            f"{_ASKED}{self.digest}\n"
        )


@dataclass(frozen=True, kw_only=True)
class Lock:
    """A lock that belongs to its environment: where it is, its digest, and its pinned versions."""

    path: Path
    digest: str

    def versions(self) -> dict[str, str]:
        """Package -> version, as pinned."""
        text = self.path.read_text(encoding="utf-8")
        return dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)==([^ \\\n]+)", text, flags=re.MULTILINE))


def request(matrix: Matrix, environment: Environment) -> Request:
    """What matrix.yaml asks for: the environment's own line and its kind's policy."""
    locks, policy = matrix.file.locks, matrix.policy(environment)
    package, version = environment.package
    name = "nvidia-modelopt[hf]" if package == "modelopt" else package
    return Request(
        environment=environment.id,
        python=locks.python,
        platform=locks.platform,
        exclude_newer=locks.exclude_newer,
        requires=(
            f"{name}=={version}",
            f"transformers=={environment.transformers}",
            *policy.requires,
            *environment.requires,
        ),
        override=(f"torch=={locks.torch}", *policy.override, *environment.override),
        exclude=policy.exclude,
    )


def path_of(matrix: Matrix, environment: Environment) -> Path:
    """Where an environment's CPU lock lives, whether or not it is there."""
    return matrix.path.parent / "containers" / "locks" / f"{environment.id}.cpu.txt"


def problem(matrix: Matrix, environment: Environment) -> str | None:
    """Why the lock cannot be used, or None."""
    path = path_of(matrix, environment)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return f"{path}: no lock for {environment.id}"
    found = re.search(rf"^{_ASKED}([0-9a-f]{{64}})$", text, flags=re.MULTILINE)
    if found is None or found[1] != request(matrix, environment).digest:
        return f"{path}: out of date: matrix.yaml asks for something else than this was made from"
    return None


def read_lock(matrix: Matrix, environment: Environment) -> Lock:
    """The environment's lock.

    Raises:
        LockError: it is missing, or was made from something else than matrix.yaml asks for now.
    """
    if trouble := problem(matrix, environment):
        raise LockError(trouble, mend=f"nox -s lock -- {environment.id}")
    path = path_of(matrix, environment)
    return Lock(path=path, digest=digest.of_file(path))
