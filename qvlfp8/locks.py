"""Hash-locked requirement files, one an environment and device, in ``containers/locks/``.

A lock's header carries the digest of what was asked for, so that a lock which no longer belongs to
matrix.yaml is seen without resolving anything. :mod:`qvlfp8.engine.uv` makes and installs them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from qvlfp8 import digest
from qvlfp8.environments import Device, Environment
from qvlfp8.errors import LockError
from qvlfp8.matrix import Matrix

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
    released: bool = False
    """The packages as they are released, CUDA code and all: no other torch, nothing built from source."""

    @property
    def digest(self) -> str:
        """SHA-256 of everything that can change the answer."""
        asked = {name: value for name, value in self.__dict__.items() if name != "released" or value}
        return digest.of_json(asked)

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
    released: bool = False
    """As for :attr:`Request.released`."""

    def versions(self) -> dict[str, str]:
        """Package -> version, as pinned."""
        text = self.path.read_text(encoding="utf-8")
        return dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)==([^ \\\n]+)", text, flags=re.MULTILINE))


@dataclass(frozen=True, kw_only=True)
class GpuHost:
    """What CUDA locks are resolved for: ``3.12``, and uv's name of the platform."""

    python: str
    platform: str


GPU_HOST = GpuHost(python="3.12", platform="x86_64-manylinux_2_39")


def request(matrix: Matrix, environment: Environment, device: Device = "cpu") -> Request:
    """What matrix.yaml asks for: the environment's own line and, without a GPU, its kind's policy."""
    if device == "cuda":
        return _request_released(matrix, environment)
    locks, policy = matrix.file.locks, matrix.policy(environment)
    return Request(
        environment=environment.id,
        python=locks.python,
        platform=locks.platform,
        exclude_newer=locks.exclude_newer,
        requires=(
            environment.requirement,
            f"transformers=={environment.transformers}",
            *policy.requires,
            *environment.requires,
        ),
        override=(f"torch=={locks.torch}", *policy.override, *environment.override),
        exclude=tuple(name for name in policy.exclude if name not in environment.keep),
    )


def _request_released(matrix: Matrix, environment: Environment) -> Request:
    return Request(
        environment=environment.id,
        python=GPU_HOST.python,
        platform=GPU_HOST.platform,
        exclude_newer=matrix.file.locks.exclude_newer,
        requires=(
            environment.requirement, f"transformers=={environment.transformers}", *environment.requires
        ),
        override=environment.override,
        exclude=(),
        released=True,
    )  # fmt: skip


def path_of(matrix: Matrix, environment: Environment, device: Device = "cpu") -> Path:
    """Where an environment's lock lives, whether or not it is there."""
    return matrix.path.parent / "containers" / "locks" / f"{environment.id}.{device}.txt"


def problem(matrix: Matrix, environment: Environment, device: Device = "cpu") -> str | None:
    """Why the lock cannot be used, or None."""
    path = path_of(matrix, environment, device)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return f"{path}: no lock for {_name(environment, device)}"
    found = re.search(rf"^{_ASKED}([0-9a-f]{{64}})$", text, flags=re.MULTILINE)
    if found is None or found[1] != request(matrix, environment, device).digest:
        return f"{path}: out of date: matrix.yaml asks for something else than this was made from"
    return None


def _name(environment: Environment, device: Device) -> str:
    return environment.id if device == "cpu" else f"{environment.id}.{device}"


def read_lock(matrix: Matrix, environment: Environment, device: Device = "cpu") -> Lock:
    """The environment's lock.

    Raises:
        LockError: it is missing, or was made from something else than matrix.yaml asks for now.
    """
    if trouble := problem(matrix, environment, device):
        raise LockError(trouble, mend=f"nox -s lock -- {_name(environment, device)}")
    path = path_of(matrix, environment, device)
    return Lock(path=path, digest=digest.of_file(path), released=device == "cuda")
