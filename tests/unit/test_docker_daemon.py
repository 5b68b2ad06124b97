"""A daemon that is not there, is not for us, or refuses: one error a cause; and whose containers are left."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docker.errors import APIError
from requests.exceptions import ConnectionError as NoConnection

from qvlfp8.engine import docker_leftovers as leftovers
from qvlfp8.engine.docker_daemon import Facts, facts_of, understand, understood
from qvlfp8.errors import (
    DaemonError,
    DaemonPermissionError,
    GpuRuntimeError,
    ImageError,
    QvlError,
    StoreWriteError,
    UsageError,
    WorkerError,
)
from qvlfp8.images.daemon import connect
from tests.unit.test_cli import fails, qvlfp8


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ('could not select device driver "" with capabilities: [[gpu]]', GpuRuntimeError),
        ("Unknown runtime specified nvidia", GpuRuntimeError),
        ("No such image: sha256:00", ImageError),
        ("no such image: docker.io/library/sha256:00: image not known", ImageError),
        ("container-init binary not found on the host", WorkerError),
        ("standard_init_linux.go: exec user process caused: exec format error", ImageError),
        ("mkdir /var/lib/docker/overlay2/x: no space left on device", StoreWriteError),
        ('invalid mount config for type "bind": bind source path does not exist: /x', UsageError),
        ("something else", WorkerError),
    ],
)
def test_what_the_daemon_says(said: str, kind: type[QvlError]) -> None:
    error = understand(APIError("500", explanation=said))
    assert type(error) is kind
    assert said in error.problem
    assert error.mend


class Told:
    """A daemon that says this of itself; one of these kinds is seldom at hand."""

    def __init__(self, name: str, **info: object) -> None:
        self._name = name
        self._info = {"MemTotal": 1 << 34, "SecurityOptions": ["name=seccomp,profile=default"], **info}

    def info(self) -> dict[str, object]:
        return self._info

    def version(self) -> dict[str, object]:
        return {"Components": [{"Name": self._name}]}


@pytest.mark.parametrize(
    ("daemon", "facts"),
    [
        (Told("Engine", MemoryLimit=True, PidsLimit=True), Facts(memory=1 << 34)),
        (Told("Podman Engine"), Facts(memory=1 << 34, podman=True)),
        (
            Told("Engine", MemoryLimit=False, PidsLimit=False, SecurityOptions=["name=rootless"]),
            Facts(memory=1 << 34, rootless=True, unlimited=("memory", "processes")),
        ),
        (Told("Engine", SecurityOptions=["name=userns"]), Facts(memory=1 << 34, remapped=True)),
    ],
)
def test_what_a_daemon_is_like(daemon: Any, facts: Facts) -> None:
    assert facts_of(daemon) == facts


def test_a_daemon_that_went_away() -> None:
    with pytest.raises(DaemonError, match="does not answer any more"), understood():
        raise NoConnection("reset by peer")


@pytest.fixture
def refused_sockets() -> Iterator[None]:
    """The SDK leaves the socket open of a daemon that it did not reach; the warning belongs to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


@pytest.mark.usefixtures("refused_sockets")
@pytest.mark.parametrize(
    "command",
    [
        ("matrix", "--only", "lm-fp8"),
        ("truth",),
        ("quantize", "lm-fp8", "--model", "a/b", "--out", "made"),
    ],
)
def test_no_daemon_has_an_exit_code_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--a--b").mkdir()
    done = qvlfp8(*command, "--engine", "docker", "--store", str(tmp_path / "store"))
    fails(done, DaemonError.exit_code, "none.sock", "mend:")


@pytest.mark.usefixtures("refused_sockets")
def test_a_socket_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "s.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{place}")
    caller = os.geteuid()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place))
        place.chmod(0)
        if caller == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(DaemonPermissionError, match=r"s\.sock"):
                connect()
        finally:
            os.seteuid(caller)


def test_a_hub_model_that_is_not_downloaded_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    out = tmp_path / "made"
    done = qvlfp8("quantize", "lm-fp8", "--model", "a/b", "--out", str(out), "--engine", "docker")
    fails(done, UsageError.exit_code, "a/b", "no network", "hf download a/b")


def test_a_hub_data_set_that_is_not_downloaded_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--a--b").mkdir()
    command = ("quantize", "lm-fp8", "--model", "a/b", "--out", str(tmp_path / "made"), "--engine", "docker")
    done = qvlfp8(*command, "--dataset", "hub:c/d@main")
    fails(done, UsageError.exit_code, "hub:c/d", "no network", "hf download --repo-type dataset c/d")


def test_an_engine_that_is_none() -> None:
    fails(qvlfp8("matrix", "--engine", "podman"), 2, "podman")


def labels(owner: str, deadline: float) -> dict[str, str]:
    return {leftovers.OWNER: owner, leftovers.DEADLINE: f"{deadline:.0f}"}


def test_who_waits_for_a_container() -> None:
    now = time.time()
    mine = leftovers.owner()
    host, pid, start = mine.rsplit(":", 2)
    assert int(pid) == os.getpid()
    assert not leftovers.is_left(labels(mine, now + 60), now=now)
    assert leftovers.is_left(labels(mine, now - 60), now=now)
    # The pid is another process's by now.
    assert leftovers.is_left(labels(f"{host}:{pid}:{int(start) + 1}", now + 60), now=now)
    # Another machine's owner cannot be looked at: only time tells.
    assert not leftovers.is_left(labels(f"elsewhere:{pid}:1", now + 60), now=now)
    assert leftovers.is_left(labels(f"elsewhere:{pid}:1", now - 60), now=now)
    assert not leftovers.is_left({}, now=now)


def test_a_process_that_has_ended_waits_for_nothing() -> None:
    with subprocess.Popen(["true"]) as process:  # not waited for yet: a zombie
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.001)
        host = leftovers.owner().rsplit(":", 2)[0]
        assert leftovers.is_left(labels(f"{host}:{process.pid}:1", time.time() + 60), now=time.time())
