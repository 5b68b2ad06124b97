"""Finding a Ray cluster, and seeing that each of its nodes can carry out what this driver asks."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import signal
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qvlfp8 import __version__, errors, source
from qvlfp8.cluster.order import Setting
from qvlfp8.cluster.shared import SharedStore
from qvlfp8.engine import Announce
from qvlfp8.errors import ClusterError, QvlError

_STARTS = 3
"""How often a cluster of this machine is started at most: a busy one takes longer than Ray waits."""

_ANSWER_S = 120.0
"""How long a node may take to answer; starting a worker process on a busy one takes a while."""


_KNOCK_S = 10.0
"""How long the head may take to accept a connection."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node that is alive: Ray's id, and all that it has (Ray's resources, memory in bytes)."""

    id: str
    name: str
    resources: Mapping[str, float]


def connect(address: str | None, *, announce: Announce) -> None:
    """Join a cluster, or start one of this machine alone.

    Args:
        address: ``HOST:PORT`` of its head, ``auto`` for this machine's, None to start one.
        announce: is told of it.

    Raises:
        ClusterError: Ray is not installed, no cluster answers, or it runs another Ray or Python.
    """
    try:
        # Nothing of what is run here is anybody else's to know.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray's own processes have 15 s to start by default, which is not enough on a busy machine.
        os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")
        import ray
    except ModuleNotFoundError:
        raise ClusterError("Ray is not installed", mend="pip install 'qvlfp8[ray]'") from None
    if address and address.startswith("ray://"):
        raise ClusterError(
            f"{address}: Ray's client cannot hand on what steps say as they run",
            mend="run on a node of the cluster (`ray job submit`, or a pod) with --address auto",
        )
    if address not in {None, "auto", "local"}:
        _knock(str(address))
    announce(f"# ray {ray.__version__}: {address or 'a cluster of this machine alone'}")
    for left in reversed(range(_STARTS)):
        try:
            with _own_signals():
                ray.init(
                    address=address or "local",
                    include_dashboard=None if address else False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    namespace="qvlfp8",
                )
        except ConnectionError as error:
            raise ClusterError(
                f"no Ray cluster answers at {address}: {_first_line(error)}",
                mend="`ray start --head` on one machine; without --address one is started here",
            ) from None
        except Exception as error:
            # Ray gives its own processes half a minute to start, and says so in exceptions of no class.
            ray.shutdown()
            if address or not left:
                raise ClusterError(
                    f"{address or 'a cluster of this machine'}: {_first_line(error)}",
                    mend="see the logs below /tmp/ray/session_latest on its head",
                ) from None
        else:
            return


def _knock(address: str) -> None:
    """See that something listens there: where nothing does, Ray tries for minutes, and writes past us.

    Raises:
        ClusterError: nothing does, or that is no address.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ClusterError(
            f"{address}: not an address", mend="--address HOST:PORT, or auto on one of its nodes"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise ClusterError(
            f"no Ray cluster answers at {address}: {_first_line(error)}",
            mend="`ray start --head` on one machine; without --address one is started here",
        ) from None


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep what this process does at a signal: Ray puts handlers of its own in their place."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def disconnect() -> None:
    """Leave the cluster; one that :func:`connect` started ends."""
    import ray

    ray.shutdown()


def nodes() -> tuple[Node, ...]:
    """The nodes that are alive now."""
    import ray

    said: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return tuple(
        Node(
            id=node["NodeID"],
            name=f"{node['NodeName']} ({node['NodeID'][:8]})",
            resources=node["Resources"],
        )
        for node in said
        if node["Alive"]
    )


def check_nodes(shared: SharedStore, setting: Setting, *, announce: Announce) -> tuple[Node, ...]:
    """Ask every node what it has of qvlfp8, whether it reaches the shared store, and can carry orders out.

    Returns:
        The nodes that may be used; one that does not answer is left out, and announced.

    Raises:
        ClusterError: a node has another qvlfp8 than this driver, or reaches another store.
        StoreWriteError: a node cannot write its own store.
        QvlError: a node lacks what its engine needs, as engines say it.
        SharedStoreError: this driver does not reach it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    found = nodes()
    sign = uuid.uuid4().hex
    shared.sign(sign)
    probe = ray.remote(num_cpus=0, max_retries=0)(_probe())
    # As plain values: a node with another qvlfp8, or none, has to say so.
    wanted = (setting.inside, setting.node_store, setting.settings.model_dump(mode="json"))
    asked = {
        node.id: probe.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node.id, soft=False)
        ).remote(shared.url, sign, f"{sign}-{node.id}", identity(), wanted)
        for node in found
    }
    usable = []
    try:
        for node in found:
            try:
                said = ray.get(asked[node.id], timeout=_ANSWER_S)
            except (ray.exceptions.RayError, TimeoutError) as error:
                announce(f"# node {node.name} is left out: {_first_line(error)}")
                continue
            _check(node, said, signed=shared.signed(f"{sign}-{node.id}"), shared=shared)
            usable.append(node)
    finally:
        shared.unsign([sign, *(f"{sign}-{node.id}" for node in found)])
    if not usable:
        raise ClusterError("no node of the cluster answers", mend="`ray status`, on its head")
    return tuple(usable)


def identity() -> dict[str, str]:
    """What has to be the same on every node."""
    return {"qvlfp8": __version__, "source": source.of_package(), "python": platform.python_version()}


def _check(node: Node, said: Mapping[str, Any], *, signed: bool, shared: SharedStore) -> None:
    if "missing" in said:
        raise ClusterError(
            f"node {node.name} cannot run qvlfp8: {said['missing']}",
            mend=f"pip install 'qvlfp8[ray]=={__version__}' there",
        )
    own = identity()
    for name, title in (("qvlfp8", "qvlfp8"), ("source", "source of qvlfp8"), ("python", "Python")):
        if said[name] != own[name]:
            raise ClusterError(
                f"node {node.name} has {title} {said[name][:12]}, and this driver {own[name][:12]}",
                mend="install the same on every node",
            )
    if said["shared"] is not True or not signed:
        why = said["shared"] if isinstance(said["shared"], str) else "it is another one there"
        raise ClusterError(
            f"node {node.name} does not reach the store {shared.url}: {why}",
            mend="name one that every node reaches (--shared s3://…, gs://…, or a shared disk)",
        )
    if said["unprepared"] is not None and node.resources.get("CPU", 0.0) > 0:
        name, problem, mend = said["unprepared"]
        kind: type[QvlError] = getattr(errors, name, ClusterError)
        raise kind(f"node {node.name} cannot carry out steps: {problem}", mend=mend)


def _probe() -> Callable[..., dict[str, Any]]:
    """A function that needs nothing of this package to arrive on a node: Ray sends one that is defined inside
    another by value."""

    def probe(
        url: str, sign: str, answer: str, driver: dict[str, str], wanted: tuple[Any, ...]
    ) -> dict[str, Any]:
        try:
            from qvlfp8.cluster.connect import identity
            from qvlfp8.cluster.shared import SharedStore
        except ImportError as error:
            return {"missing": str(error)}
        said: dict[str, Any] = {**identity(), "shared": False, "unprepared": None}
        try:
            shared = SharedStore(url)
            said["shared"] = shared.signed(sign)
            if said["shared"]:
                shared.sign(answer)
        except Exception as error:
            said["shared"] = str(error)
        if identity() == driver:
            # Of another qvlfp8 nothing else is known.
            from qvlfp8.cluster.node import unprepared

            try:
                said["unprepared"] = unprepared(*wanted)
            except Exception as error:
                said["unprepared"] = ("ClusterError", f"{type(error).__name__}: {error}", None)
        return said

    return probe


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
