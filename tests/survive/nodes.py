"""A Ray cluster on this machine, whose nodes are lost and come again: each has a store of its own."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.survive import processes
from tests.survive.kills import ON_A_CLUSTER, Target
from tests.survive.processes import Process
from tests.survive.project import Drill
from tests.survive.surroundings import ThisMachine

_NODES = 2
_MEMORY, _OBJECTS = 8_000_000_000, 200_000_000
_TRIES = 4
_COMES_AGAIN_S = 8.0
"""After how long at most a node is there again."""


@dataclass(kw_only=True)
class _Node:
    """One that works: ``there`` is Ray's own object, None while it is lost."""

    store: Path
    there: Any = None

    @property
    def raylet(self) -> int:
        return int(self.there.all_processes["raylet"][0].process.pid)


class Nodes(ThisMachine):
    """A head without CPUs, which only keeps the cluster together and is not killed, and nodes that work."""

    away_s = 60.0
    habits = ON_A_CLUSTER

    def __init__(self, root: Path, drill: Drill) -> None:
        """Start them.

        Args:
            root: an empty folder for what nodes store.
            drill: what their workers import.
        """
        from ray.cluster_utils import Cluster

        self._root = root
        self._drill = drill
        self._made = 0
        # Not below the root: names of sockets have to be short.
        self._temp = Path(tempfile.mkdtemp(prefix="qvlfp8-ray-"))
        # Nodes are started by threads, too, in which Ray cannot arrange for their end: close() does.
        self._cluster = Cluster(shutdown_at_exit=False)
        self._coming: list[threading.Thread] = []
        self._add(root / "head", num_cpus=0, _system_config={"health_check_period_ms": 1000})
        self._nodes = [_Node(store=self._new_store()) for _ in range(_NODES)]
        self.ready()

    @property
    def address(self) -> str:
        """Of the head."""
        return str(self._cluster.address)

    def ready(self) -> None:
        """All nodes are there."""
        for thread in self._coming:
            thread.join()
        self._coming.clear()
        for node in self._nodes:
            if node.there is None or not processes.alive(node.raylet):
                self._start(node)

    def fresh(self) -> None:
        """Every node has an empty disk."""
        self.ready()
        for node in self._nodes:
            for folder in node.store.glob("*"):
                shutil.rmtree(folder)

    def processes(self, driver: int) -> list[Process]:
        """What carries steps out on any node; what another driver has left among them."""
        kinds = {"guard", "worker", "job", "installer", "ray worker"}
        return [process for process in processes.descendants() if process.kind in kinds]

    def others(self) -> Mapping[Target, Sequence[str]]:
        """Nodes, as long as another one is left."""
        there = [str(number) for number, node in enumerate(self._nodes) if node.there is not None]
        return {"raylet": there, "node": there} if len(there) > 1 else {}

    def kill(self, target: Target, which: str, dice: random.Random) -> bool:
        """Kill a raylet, or all of a node at once; another comes, with the disk of the lost one or not."""
        node = self._nodes[int(which)]
        lost = node.there
        if target == "node":
            _switch_off(node.raylet)
        done = processes.kill(node.raylet)
        node.there = None
        new_disk, pause = dice.random() < 0.5, dice.uniform(0, _COMES_AGAIN_S)

        def come_again() -> None:
            lost.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
            self._cluster.worker_nodes.discard(lost)
            time.sleep(pause)
            if new_disk:
                node.store = self._new_store()
            self._start(node)

        self._coming.append(threading.Thread(target=come_again, daemon=True))
        self._coming[-1].start()
        return done

    def environments(self, store: Path) -> Iterator[Path]:
        """Those of every node's store."""
        for node in self._nodes:
            yield from node.store.glob("environments/*")

    def left(self) -> list[str]:
        """What still runs in a node's store."""
        mark = f"{self._root}/".encode()

        def running() -> list[int]:
            return [p.pid for p in processes.descendants() if mark in processes.command_line(p.pid)]

        processes.wait_until(lambda: not running(), self.away_s)
        return [f"process {pid} works on for nobody" for pid in running()]

    def close(self) -> None:
        """End the cluster."""
        for thread in self._coming:
            thread.join()
        self._cluster.shutdown()  # type: ignore[no-untyped-call]
        shutil.rmtree(self._temp, ignore_errors=True)

    def _new_store(self) -> Path:
        self._made += 1
        return self._root / f"disk-{self._made}"

    def _start(self, node: _Node) -> None:
        node.there = self._add(node.store, num_cpus=2, memory=_MEMORY)

    def _add(self, store: Path, **resources: Any) -> Any:
        """A busy machine takes longer than Ray waits for its own processes."""
        for left in reversed(range(_TRIES)):
            try:
                return self._cluster.add_node(
                    object_store_memory=_OBJECTS, env_vars=variables(self._drill, store),
                    temp_dir=str(self._temp),
                    **resources,
                )  # fmt: skip
            except Exception:
                if not left:
                    raise
        raise AssertionError


def variables(drill: Drill, store: Path) -> dict[str, str]:
    """What the processes of a node have in their environment, beside this process's.

    Args:
        drill: what its workers import.
        store: the node's own.
    """
    return {
        **{name: said for name, said in drill.variables().items() if os.environ.get(name) != said},
        "QVLFP8_NODE_STORE": str(store),
        "RAY_USAGE_STATS_ENABLED": "0",
        # A busy machine takes longer than Ray waits for its own processes.
        "RAY_agent_register_timeout_ms": "120000",
    }


def _switch_off(raylet: int) -> None:
    """End all that descends from a raylet as if at once: none sees another one's end."""
    stopped: set[int] = set()
    while found := {process.pid for process in processes.descendants(raylet)} - stopped:
        for pid in found:
            processes.kill(pid, signal.SIGSTOP)
        stopped |= found
    for pid in (raylet, *stopped):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
