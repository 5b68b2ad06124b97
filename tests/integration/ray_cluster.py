"""A Ray cluster of several nodes on this machine, and the survival session's small project to run on it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.survive.journal import Journal, Told
from tests.survive.kept import Entry, Key, entries
from tests.survive.nodes import variables
from tests.survive.project import Drill, make

LIMIT_S = 300.0

DIE = "die-untold"
"""A file in a node's store: the next worker that has put a quantization into the shared store dies of it."""
_PUT = "            self._shared.put(record.stage, record.digest, entry, record.made)\n"
GONE = "daemon-gone"
"""A file in a node's store: there a daemon was at hand when the node was asked, and then is none."""
_MODEL = '        scratch = self._store.scratch("model")\n'
_DIES = {
    "cluster/node.py": (
        _PUT,
        f"""{_PUT}            sign = default_root() / "{DIE}"
            if record.stage == "quantize" and sign.exists():
                sign.unlink()
                os.kill(os.getpid(), 9)
""",
    ),
    "execute.py": (
        _MODEL,
        f"""{_MODEL}        if (self._store.root / "{GONE}").exists():
            from qvlfp8.errors import DaemonError

            verdict = self._fault(DaemonError("the Docker daemon went away"))
            self._keep(step, scratch, verdict, started=now(), seconds=0.0, measured={{}})
            return
""",
    ),
}


@dataclass(frozen=True)
class Ended:
    """How a driver ended."""

    code: int
    said: str


class Bench:
    """A project with drill workers, a cluster, and drivers in stores of their own."""

    def __init__(self, root: Path, cluster: Any) -> None:
        self.root = root
        self.cluster = cluster
        self.drill: Drill = make(root / "drill", _DIES)
        self.journal = Journal(self.drill.pipe)

    def variables(self, node_store: str) -> dict[str, str]:
        """What the processes of a node have in their environment."""
        # No daemon is at hand on these nodes.
        no_daemon = {"DOCKER_HOST": f"unix://{self.root / 'no-docker.sock'}"}
        return {**variables(self.drill, self.root / node_store), **no_daemon}

    def add_node(self, node_store: str, **resources: Any) -> Any:
        """One more node; it has a store of its own."""
        return self.cluster.add_node(env_vars=self.variables(node_store), **resources)

    def driver(self, store: Path, *options: str) -> subprocess.Popen[str]:
        """Start the command on the cluster."""
        return self._start(store, "--engine", "ray", "--address", self.cluster.address, *options)

    def run(self, store: Path, *options: str) -> Ended:
        """The command on the cluster, to its end."""
        return ended(self.driver(store, *options))

    def alone(self, store: Path) -> Ended:
        """The command on this machine alone."""
        return ended(self._start(store, "--engine", "venv"))

    def _start(self, store: Path, *options: str) -> subprocess.Popen[str]:
        command = self.drill.command(store, engine="venv")
        command = [*command[: command.index("--engine")], *options]
        return subprocess.Popen(
            command,
            # Ray puts the driver's folder before what its workers import.
            cwd=self.root,
            env=self.drill.variables(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def begun(self) -> list[Told]:
        """The jobs that workers have begun since the last time."""
        return [told for told in self.journal.read() if told.began]


def ended(driver: subprocess.Popen[str]) -> Ended:
    """Wait for a driver."""
    said, _ = driver.communicate(timeout=LIMIT_S)
    return Ended(driver.returncode, said)


def records(store: Path) -> Mapping[Key, Entry]:
    """What a driver's store holds, builds left out: each node has its own."""
    found, broken = entries(store)
    assert not broken, broken
    return {key: entry for key, entry in found.items() if key[0] != "build"}


def other_than(undisturbed: Path, store: Path) -> list[str]:
    """How the verdicts of two stores differ."""
    ours, theirs = records(store), records(undisturbed)
    found = [f"{key}: only in one" for key in ours.keys() ^ theirs.keys()]
    for key in ours.keys() & theirs.keys():
        one, two = ours[key].record, theirs[key].record
        for field in ("status", "made", "findings", "read", "subject"):
            if getattr(one, field) != getattr(two, field):
                found.append(f"{key}: {field}: {getattr(one, field)!r} is not {getattr(two, field)!r}")
    return found


def wait_for(condition: Any, what: str, limit_s: float = 60.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.05)


def kill(process: int) -> None:
    """As a machine that is switched off would."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def working_in(node_store: Path) -> list[int]:
    """Processes that were started for a step in a node's store."""
    mark = f"{node_store}/".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found
