"""The Docker daemon: reached through the SDK, and the one of its client programs that can build."""

from __future__ import annotations

import grp
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvlfp8.errors import DaemonError, DaemonPermissionError

if TYPE_CHECKING:
    from docker import DockerClient

SOCKET = "/var/run/docker.sock"
"""Where the SDK looks if DOCKER_HOST says nothing else."""

_TIMEOUT_S = 120


def connect(environment: Mapping[str, str] = os.environ) -> DockerClient:
    """The daemon that DOCKER_HOST names, or this machine's; it has answered.

    Raises:
        DaemonError: none answers.
        DaemonPermissionError: its socket is not for this user.
    """
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env(environment=dict(environment), timeout=_TIMEOUT_S)
        client.ping()
    except (DockerException, OSError) as error:
        raise _unreachable(error, environment.get("DOCKER_HOST") or f"unix://{SOCKET}") from None
    return client


def _unreachable(error: Exception, host: str) -> DaemonError | DaemonPermissionError:
    if "Permission denied" in str(error):
        socket = Path(host.removeprefix("unix://"))
        try:
            group = grp.getgrgid(socket.stat().st_gid).gr_name
        except (OSError, KeyError):
            group = "docker"
        return DaemonPermissionError(
            f"{socket}: this user may not use the Docker daemon's socket",
            mend=f"become a member of its group: sudo usermod -aG {group} $USER, and log in again",
        )
    return DaemonError(
        f"no Docker daemon answers at {host}: {_cause(error)}",
        mend="start it (systemctl start docker), or name another with DOCKER_HOST",
    )


def _cause(error: Exception) -> str:
    inner: BaseException = error
    while (below := inner.__cause__ or inner.__context__) is not None:
        inner = below
    return inner.strerror if isinstance(inner, OSError) and inner.strerror else str(inner)


def inspect(client: DockerClient, name: str) -> dict[str, Any]:
    """What the daemon says of an image, by its name or id.

    Raises:
        docker.errors.ImageNotFound: it has none of that name.
    """
    return dict(client.images.get(name).attrs)
