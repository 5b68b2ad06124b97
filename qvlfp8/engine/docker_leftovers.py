"""Containers that nobody waits for any more: whose they are, when they should have ended, and their end.

A client that is killed leaves its container to the guard inside (:mod:`qvlfp8.engine.guard`), which ends it,
and at last to its time limit (:mod:`qvlfp8.engine.docker_plan`); what is left of it goes when the next engine
starts.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qvlfp8.engine.docker_daemon import understood

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

KIND = "qvlfp8.kind"
OWNER = "qvlfp8.owner"
DEADLINE = "qvlfp8.deadline"
STEP = "step"


def owner() -> str:
    """This process, as ``host:pid:start time``: a pid alone may be another's by the time it is read.

    Where pids mean something else (in a container that shares the host's name) is another host.
    """
    return f"{_host()}:{os.getpid()}:{_started(os.getpid())}"


def _host() -> str:
    namespace = str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")
    return f"{socket.gethostname()}/{namespace}"


def _started(pid: int) -> str | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    # The second field, the name in brackets, may hold spaces; the start is the twentieth after it.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else fields[19]


def is_left(labels: Mapping[str, str], *, now: float) -> bool:
    """Whether a step's container has outlived its owner or its time.

    Args:
        labels: the container's.
        now: seconds since the epoch.
    """
    host, _, process = labels.get(OWNER, "").partition(":")
    pid, _, start = process.partition(":")
    if host == _host() and pid.isdigit() and _started(int(pid)) != start:
        return True
    deadline = labels.get(DEADLINE, "")
    return deadline.isdigit() and now > int(deadline)


def reap(client: DockerClient) -> list[str]:
    """Remove what is left over; returns the names of what was removed.

    Raises:
        DaemonError: the daemon went away.
    """
    removed = []
    with understood():
        for container in client.containers.list(all=True, filters={"label": f"{KIND}={STEP}"}, sparse=True):
            labels = container.attrs.get("Labels") or {}
            if is_left(labels, now=time.time()):
                remove(container)
                removed.append(str(container.attrs.get("Names", ["?"])[0]).lstrip("/"))
    return removed


def remove(container: Container) -> None:
    """End and remove a container; another engine's reaping may have come first."""
    from docker.errors import APIError, NotFound

    try:
        container.remove(force=True, v=True)
    except NotFound:
        return
    except APIError as error:
        if "already in progress" not in str(error):
            raise
