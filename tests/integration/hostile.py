"""Worker ``hostile``: what a step must not be able to do; it says what happened.

Copied into a package of its own for :mod:`tests.integration.test_docker_engine`; standard library only.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any


def prepare(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"python": sys.version.split()[0]}


def run(params: Mapping[str, Any], out: Path) -> dict[str, Any]:
    return DEEDS[params["do"]](params, out)


def _tried(deed: Callable[[], object]) -> str:
    try:
        deed()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


def look(params: Mapping[str, Any], out: Path) -> dict[str, Any]:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return {
        "uid": os.getuid(),
        "capabilities": {fields[name].strip() for name in ("CapEff", "CapPrm", "CapBnd")} == {"0" * 16},
        "no new privileges": fields["NoNewPrivs"].strip(),
        "interfaces": [name for _, name in socket.if_nameindex()],
        "variables": sorted(os.environ),
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }


def network(params: Mapping[str, Any], out: Path) -> dict[str, Any]:
    return {"connect": _tried(lambda: socket.create_connection(("192.0.2.1", 80), timeout=5))}


def write(params: Mapping[str, Any], out: Path) -> dict[str, Any]:
    return {name: _tried(partial(Path(name).write_text, "x")) for name in params["paths"]}


def read(params: Mapping[str, Any], out: Path) -> dict[str, Any]:
    return {name: _tried(Path(name).read_bytes) for name in params["paths"]}


def fork(params: Mapping[str, Any], out: Path) -> dict[str, Any]:
    children: list[int] = []
    try:
        while len(children) < 2000:
            pid = os.fork()
            if pid == 0:
                time.sleep(600)
                os._exit(0)
            children.append(pid)
    except BlockingIOError:
        pass
    return {"children": len(children)}


def eat(params: Mapping[str, Any], out: Path) -> dict[str, Any]:
    kept = [bytearray(os.urandom(1 << 20)) for _ in range(4096)]
    return {"eaten": len(kept)}


def fill(params: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Fill /tmp, which is memory."""

    def deed() -> None:
        with Path("/tmp/full").open("wb") as stream:  # noqa: S108
            stream.writelines(bytes(1 << 20) for _ in range(4096))

    return {"filled": _tried(deed)}


def hang(params: Mapping[str, Any], out: Path) -> dict[str, Any]:
    if params.get("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if params.get("family") and os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            (out / "family").touch()
    time.sleep(600)
    return {}


def orphan(params: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Leave a process behind, and see whether anybody looks after it when it ends."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        grandchild = os.fork()
        if grandchild:
            os.write(write, str(grandchild).encode())
        os._exit(0)
    os.waitpid(child, 0)
    left = Path("/proc") / os.read(read, 20).decode()
    for _ in range(100):
        if not left.exists():
            return {"left": False}
        time.sleep(0.05)
    return {"left": True}


def end(params: Mapping[str, Any], out: Path) -> dict[str, Any]:
    if params["code"] < 0:
        os.kill(os.getpid(), -params["code"])
    os._exit(params["code"])


def talk(params: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Say something on standard error, then wait until somebody outside has read it."""
    print("heard me? ü", file=sys.stderr, flush=True)
    for _ in range(600):
        if (out / "heard").exists():
            return {"heard": True}
        time.sleep(0.05)
    return {"heard": False}


DEEDS: dict[str, Callable[[Mapping[str, Any], Path], dict[str, Any]]] = {
    deed.__name__: deed for deed in (look, network, write, read, fork, eat, fill, hang, orphan, end, talk)
}
