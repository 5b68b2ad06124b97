"""Hash-locked requirement files, one an environment and target, in ``containers/locks/``.

A lock's header carries the digest of what was asked for, so that a lock which no longer belongs to
matrix.yaml is seen without resolving anything. What does not resolve has a file too, with the resolver's
reason: that is the result of the stage `resolve`. :mod:`qvlfp8.engine.uv` makes and installs them.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qvlfp8 import digest
from qvlfp8.environments import Environment
from qvlfp8.errors import LockError
from qvlfp8.matrix import Matrix

Target = Literal["cpu", "cuda", "bundle"]
"""What a lock is for: a machine without a GPU, one with a GPU, or a GPU host that reaches no network."""

_ASKED = "# asked: sha256:"
_UNRESOLVED = "# does not resolve:"


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

    def unresolved(self, reason: str) -> str:
        """The file that says why there is no lock."""
        lines = textwrap.wrap(reason, 100, break_long_words=False, break_on_hyphens=False)
        return "".join((self.header(), f"{_UNRESOLVED}\n", *(f"#   {line}\n" for line in lines)))


@dataclass(frozen=True, kw_only=True)
class Lock:
    """A lock that belongs to its environment: where it is, its digest, and its pinned versions."""

    path: Path
    digest: str
    target: Target = "cpu"
    unresolved: str | None = None
    """The resolver's reason, if there are no such versions: nothing can be installed from it."""

    @property
    def released(self) -> bool:
        """As for :attr:`Request.released`."""
        return self.target != "cpu"

    def versions(self) -> dict[str, str]:
        """Package -> version, as pinned."""
        text = self.path.read_text(encoding="utf-8")
        return dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)==([^ \\\n]+)", text, flags=re.MULTILINE))


@dataclass(frozen=True, kw_only=True)
class BundleHost:
    """The GPU hosts that bundles are made for: ``3.12``, and uv's name of the platform."""

    python: str
    platform: str


BUNDLE_HOST = BundleHost(python="3.12", platform="x86_64-manylinux_2_39")


def targets_of(environment: Environment) -> tuple[Target, ...]:
    """The targets that an environment is locked for; a bundle is made of few, and locked when asked for."""
    of_cpu_build = environment.kind == "serve" and environment.device == "cpu"
    return ("cpu",) if of_cpu_build else ("cpu", "cuda")


def request(matrix: Matrix, environment: Environment, target: Target = "cpu") -> Request:
    """What matrix.yaml asks for: the environment's own line and its kind's policy for the target."""
    locks = matrix.file.locks
    python, platform, policy = locks.python, locks.platform, matrix.policy(environment)
    torch = [f"torch=={locks.torch}"]
    if target == "cuda":
        platform, torch = locks.cuda.platform, []
        policy = locks.cuda.quantize if environment.kind == "quantize" else locks.cuda.serve
    elif target == "bundle":
        python, platform, torch = BUNDLE_HOST.python, BUNDLE_HOST.platform, []
        policy = locks.bundle.quantize if environment.kind == "quantize" else locks.bundle.serve
    named = [environment.requirement]
    if environment.transformers is not None:
        named.append(f"transformers=={environment.transformers}")
    return Request(
        environment=environment.id,
        python=python,
        platform=platform,
        exclude_newer=locks.exclude_newer,
        requires=(*named, *policy.requires, *environment.requires),
        override=(*torch, *policy.override, *environment.override),
        exclude=tuple(name for name in policy.exclude if name not in environment.keep),
        released=target != "cpu",
    )


def path_of(matrix: Matrix, environment: Environment, target: Target = "cpu") -> Path:
    """Where an environment's lock lives, whether or not it is there."""
    return matrix.path.parent / "containers" / "locks" / f"{environment.id}.{target}.txt"


def problem(matrix: Matrix, environment: Environment, target: Target = "cpu") -> str | None:
    """Why the file does not speak of what matrix.yaml asks for, or None."""
    path = path_of(matrix, environment, target)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return f"{path}: no lock for {name_of(environment, target)}"
    except (OSError, UnicodeDecodeError) as error:
        return f"{path}: cannot be read: {error}"
    found = re.search(rf"^{_ASKED}([0-9a-f]{{64}})$", text, flags=re.MULTILINE)
    if found is None or found[1] != request(matrix, environment, target).digest:
        return f"{path}: out of date: matrix.yaml asks for something else than this was made from"
    if not _reason(text) and "==" not in text:
        return f"{path}: damaged: it pins nothing, and gives no reason"
    return None


def name_of(environment: Environment, target: Target) -> str:
    """How a lock is asked for on the command line."""
    return environment.id if target == "cpu" else f"{environment.id}.{target}"


def find_lock(matrix: Matrix, environment: Environment, target: Target = "cpu") -> Lock:
    """The environment's lock, or what its file says of why there is none.

    Raises:
        LockError: the file is missing, or was made from something else than matrix.yaml asks for now.
    """
    if trouble := problem(matrix, environment, target):
        raise LockError(trouble, mend=f"nox -s lock -- {name_of(environment, target)}")
    path = path_of(matrix, environment, target)
    return Lock(
        path=path,
        digest=digest.of_file(path),
        target=target,
        unresolved=_reason(path.read_text(encoding="utf-8")),
    )


def _reason(text: str) -> str | None:
    """The resolver's reason in an unresolved lock; None if it is resolved."""
    if _UNRESOLVED not in text:
        return None
    parts = re.split(rf"^{_UNRESOLVED}[ \t]*$", text, maxsplit=1, flags=re.MULTILINE)
    if len(parts) == 1:
        return None
    return " ".join(line.removeprefix("#").strip() for line in parts[1].splitlines()).strip()


def read_lock(matrix: Matrix, environment: Environment, target: Target = "cpu") -> Lock:
    """The environment's lock, which can be installed.

    Raises:
        LockError: it is missing, was made from something else than matrix.yaml asks for, or does not resolve.
    """
    lock = find_lock(matrix, environment, target)
    if lock.unresolved is not None:
        raise LockError(
            f"{name_of(environment, target)} does not resolve: {lock.unresolved}",
            mend=f"change its versions in {matrix.path.name}",
        )
    return lock
