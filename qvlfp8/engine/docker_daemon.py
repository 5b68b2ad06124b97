"""The Docker daemon while it is used: what it is like, and what its words mean."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qvlfp8.errors import (
    DaemonError,
    GpuRuntimeError,
    ImageError,
    QvlError,
    StoreWriteError,
    UsageError,
    WorkerError,
)

if TYPE_CHECKING:
    from docker import DockerClient


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What of a daemon decides how containers are made."""

    memory: int
    """Bytes of the machine that it runs on."""
    rootless: bool = False
    """It runs as a plain user, who is root inside its containers."""
    remapped: bool = False
    """It shifts the user ids of containers, unless told otherwise."""
    unlimited: tuple[str, ...] = ()
    """What it cannot limit: it drops such limits without a word."""
    podman: bool = False
    """It is Podman, through its compatible API."""


_LIMITS = {"MemoryLimit": "memory", "PidsLimit": "processes"}
"""What a daemon says it can limit, by the key of its own word."""


def facts_of(client: DockerClient) -> Facts:
    """Ask a daemon what it is like.

    Raises:
        DaemonError: it went away.
    """
    with understood():
        said = client.info()
        parts = client.version().get("Components") or []
    options = said.get("SecurityOptions") or []
    return Facts(
        memory=int(said["MemTotal"]),
        rootless=any(option.startswith("name=rootless") for option in options),
        remapped=any(option.startswith("name=userns") for option in options),
        unlimited=tuple(what for key, what in _LIMITS.items() if said.get(key) is False),
        podman=any(part.get("Name") == "Podman Engine" for part in parts),
    )


@contextlib.contextmanager
def understood() -> Iterator[None]:
    """Turn what the SDK raises into an error of ours.

    Raises:
        QvlError: as :func:`understand` says.
    """
    import requests
    from docker.errors import DockerException

    try:
        yield
    except (DockerException, requests.exceptions.RequestException) as error:
        raise understand(error) from error


def understand(error: Exception) -> QvlError:
    """What an exception of the SDK means: the class says whose fault it is."""
    from docker.errors import APIError

    if isinstance(error, APIError):
        return _answered(" ".join(str(error.explanation or error).split()))
    return DaemonError(
        f"the Docker daemon does not answer any more: {error}",
        mend="see whether it runs (`docker info`), and run again; finished work is kept",
    )


def _answered(said: str) -> QvlError:
    if 'could not select device driver ""' in said or "nvidia" in said.lower():
        return GpuRuntimeError(
            f"the Docker daemon cannot give a container a GPU: {said}",
            mend="install the NVIDIA Container Toolkit, run `sudo nvidia-ctk runtime configure "
            "--runtime=docker` and restart Docker",
        )
    if "no space left on device" in said.lower():
        return StoreWriteError(
            f"the Docker daemon's disk is full: {said}",
            mend="free some space (`qvlfp8 images --prune`) and run again; finished work is kept",
        )
    if "bind source path does not exist" in said:
        return UsageError(
            f"the Docker daemon does not see this machine's files: {said}",
            mend="use a daemon of this machine (unset DOCKER_HOST): steps read and write folders of yours",
        )
    if "container-init binary not found" in said:
        return WorkerError(f"Podman cannot start a container: {said}", mend="apt-get install catatonit")
    if "no such image" in said.lower():
        return ImageError(f"the Docker daemon has not got it: {said}", mend="`qvlfp8 build`, and run again")
    if "exec format error" in said:
        return ImageError(
            f"the image is of another architecture than this machine: {said}",
            mend="`qvlfp8 build` on this machine",
        )
    return WorkerError(f"the Docker daemon refused: {said}", mend="see its log")
