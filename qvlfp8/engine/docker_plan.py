"""What a step's container may do: its user, mounts, limits and variables. Pure.

A container has no network, no capabilities, a root file system that cannot be written, and of this machine
only the folders that its jobs name: what they read cannot be written, and their output folders can.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvlfp8.engine.docker_daemon import Facts

PYTHON = "/opt/env/bin/python"
"""Where an image has its environment's Python."""

STEP_USER = 10001
"""User and group id of a step whose caller is root."""

TIMED_OUT = 124
"""Exit code of the time limit inside a container."""

GRACE_S = 30.0
"""How much longer a container lives by itself than its engine lets it."""

_REAP_AFTER_S = 120.0
_SHARED_MEMORY = 1 << 30
_PIDS = 4096
_LEFT_TO_THE_MACHINE = 1 << 30

_TMP = "/tmp"  # noqa: S108  (the only folder inside that every step may write)

_VARIABLES = {
    "PATH": "/opt/env/bin:/usr/local/bin:/usr/bin:/bin",
    # Where every library puts its caches, each below ~/.cache or the like.
    "HOME": _TMP,
    # torch asks for the user's name, and the step's user is in no list of users.
    "USER": "qvlfp8",
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a container may use, in bytes and processes (threads count)."""

    memory: int
    pids: int = _PIDS
    shared_memory: int = _SHARED_MEMORY

    @classmethod
    def of(cls, facts: Facts) -> Limits:
        """All the memory of the daemon's machine less 1 GB, so that a step dies before its machine."""
        return cls(memory=max(facts.memory // 2, facts.memory - _LEFT_TO_THE_MACHINE))


@dataclass(frozen=True, kw_only=True)
class User:
    """Who a step is: inside, ``ids``; ``gives`` if the output folders have to be handed to it and back."""

    ids: tuple[int, int]
    gives: bool = False

    @classmethod
    def of(cls, facts: Facts, uid: int, gid: int) -> User:
        """The caller, unless the caller is root."""
        if facts.rootless:
            # Inside, root is the user who runs the daemon; every other id is one that owns nothing.
            return cls(ids=(0, 0))
        return cls(ids=(uid, gid)) if uid else cls(ids=(STEP_USER, STEP_USER), gives=True)


@dataclass(frozen=True, kw_only=True)
class Bind:
    """A folder or file of this machine, at ``path`` inside."""

    source: Path
    path: Path
    writable: bool = False


def binds(
    reads: Iterable[Path], writes: Iterable[Path], links: Iterable[tuple[Path, Path]] = ()
) -> tuple[Bind, ...]:
    """Mounts at the same paths inside as outside, none twice; what is written may lie in what is read.

    Args:
        reads: folders and files.
        writes: folders.
        links: (where a symbolic link in ``reads`` points, the file that it leads to).
    """
    written = tuple(dict.fromkeys(writes))
    open_to = [*written]
    found = [Bind(source=path, path=path, writable=True) for path in written]
    # The shorter path first: what lies below it needs no mount of its own.
    for path in sorted(set(reads), key=lambda path: len(path.parts)):
        if not any(path.is_relative_to(folder) for folder in open_to):
            open_to.append(path)
            found.append(Bind(source=path, path=path))
    for path, source in dict.fromkeys(links):
        if not any(path.is_relative_to(folder) for folder in open_to):
            found.append(Bind(source=source, path=path))
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Container:
    """One step's container. ``gpus``: ids of GPUs, ``("all",)``, or none."""

    image: str
    command: Sequence[str]
    variables: Mapping[str, str]
    binds: tuple[Bind, ...]
    user: User
    limits: Limits
    labels: Mapping[str, str]
    remapped: bool = False
    gpus: tuple[str, ...] = ()
    guard: tuple[str, ...] = ()

    def arguments(self) -> dict[str, Any]:
        """For ``containers.create`` of the Docker SDK; mounts and GPUs stay for the SDK's own classes."""
        return {
            "image": self.image,
            "entrypoint": [],
            "command": [*self.guard, *self.command],
            "environment": {**_VARIABLES, **self.variables},
            "user": self._user,
            "network_mode": "none",
            "read_only": True,
            "tmpfs": {_TMP: self._tmp},
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "userns_mode": "host" if self.remapped else None,
            "ipc_mode": "private",
            "init": True,
            # Open as long as its engine is there.
            "stdin_open": True,
            "pids_limit": self.limits.pids,
            "mem_limit": self.limits.memory,
            # As much as without swap: a step that swaps would only be slow before it dies.
            "memswap_limit": self.limits.memory,
            "shm_size": self.limits.shared_memory,
            "labels": dict(self.labels),
            # What it prints is streamed; the daemon's disk keeps no second copy.
            "log_config": {"type": "none"},
        }

    def command_line(self) -> str:
        """The same as a line that can be typed; who types it ends it, and needs no guard."""
        limits = self.limits
        words = [
            "docker", "run", "--rm", "--network", "none", "--read-only", "--tmpfs", f"{_TMP}:{self._tmp}",
            "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", self._user, "--init",
            "--ipc", "private", "--pids-limit", str(limits.pids), "--memory", str(limits.memory),
            "--memory-swap", str(limits.memory), "--shm-size", str(limits.shared_memory),
            *(("--userns", "host") if self.remapped else ()),
            *(("--gpus", f"device={','.join(self.gpus)}" if self.gpus != ("all",) else "all")
              if self.gpus else ()),
            *(word for bind in self.binds for word in ("--mount", _mount_word(bind))),
            *(word for pair in ({**_VARIABLES, **self.variables}).items()
              for word in ("--env", "=".join(pair))),
            "--entrypoint", self.command[0], self.image, *self.command[1:],
        ]  # fmt: skip
        return shlex.join(words)

    @property
    def _user(self) -> str:
        uid, gid = self.user.ids
        return f"{uid}:{gid}"

    @property
    def _tmp(self) -> str:
        # What Triton and torch compile at run time is loaded from there as a library: exec is needed.
        return f"rw,nosuid,nodev,exec,mode=1777,size={self.limits.memory // 2}"


def _mount_word(bind: Bind) -> str:
    word = f"type=bind,source={bind.source},target={bind.path}"
    return word if bind.writable else f"{word},readonly"


def limited(command: Sequence[str], limit_s: float) -> list[str]:
    """The command with a time limit of its own, for when nobody outside is left to keep it.

    Args:
        limit_s: the engine's own limit, which comes first.
    """
    return ["timeout", "--kill-after=10", f"{limit_s + GRACE_S:.0f}", *command]


def guard(package: Path) -> tuple[str, ...]:
    """What stands before a command to end it when the engine is gone (:mod:`qvlfp8.engine.guard`).

    Args:
        package: qvlfp8's own source, as it lies inside.
    """
    return (PYTHON, "-I", "-S", str(package / "engine" / "guard.py"), "0")


def deadline(now: float, limit_s: float) -> str:
    """The label that says when a container must be gone, in seconds since the epoch."""
    return f"{now + limit_s + GRACE_S + _REAP_AFTER_S:.0f}"


def gpus(visible: str | None) -> tuple[str, ...]:
    """The GPUs of a step, as the caller's ``CUDA_VISIBLE_DEVICES`` says; all without it."""
    if visible is None:
        return ("all",)
    return tuple(name.strip() for name in visible.split(",") if name.strip())


def code_of(status: int) -> int:
    """An exit status of a container, as :mod:`subprocess` gives it: negative for a signal."""
    return 128 - status if 128 < status <= 128 + 64 else status


def may_read(mode: int, owner: tuple[int, int], user: tuple[int, int], *, folder: bool) -> bool:
    """Whether plain permissions let a user read a file, or list and enter a folder."""
    wanted = 0o5 if folder else 0o4
    shift = 6 if owner[0] == user[0] else 3 if owner[1] == user[1] else 0
    return user[0] == 0 or (mode >> shift) & wanted == wanted
