"""Finding a Ray cluster, and seeing that each of its nodes can carry out what this driver asks."""

from __future__ import annotations

import os
import platform
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qvlfp8 import __version__, source
from qvlfp8.cluster.shared import SharedStore
from qvlfp8.engine import Announce
from qvlfp8.errors import ClusterError

_ANSWER_S = 120.0
"""How long a node may take to answer; starting a worker process on a busy one takes a while."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node that is alive: Ray's id, and all that it has (Ray's resources, memory in bytes)."""

    id: str
    name: str
    resources: Mapping[str, float]


def connect(address: str | None, *, announce: Announce) -> None:
    """Join a cluster, or start one of this machine alone.

    Args:
        address: ``HOST:PORT`` of its head, ``auto`` for the one that this machine belongs to, None to start one.
        announce: is told of it.

    Raises:
        ClusterError: Ray is not installed, no cluster answers, or it runs another Ray or Python.
    """
    try:
        # Nothing of what is run here is anybody else's to know.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray
    except ModuleNotFoundError:
        raise ClusterError("Ray is not installed", mend="pip install 'qvlfp8[ray]'") from None
    if address and address.startswith("ray://"):
        raise ClusterError(
            f"{address}: Ray's client cannot hand on what steps say as they run",
            mend="run on a node of the cluster (`ray job submit`, or a pod) with --address auto",
        )
    announce(f"# ray {ray.__version__}: {address or 'a cluster of this machine alone'}")
    try:
        ray.init(
            address=address or "local",
            include_dashboard=False if not address else None,
            log_to_driver=False,
            logging_level="ERROR",
            namespace="qvlfp8",
        )
    except (ConnectionError, ValueError) as error:
        raise ClusterError(
            f"no Ray cluster answers at {address}: {_first_line(error)}",
            mend="`ray start --head` on one machine, and name it; without --address one is started here",
        ) from None
    except RuntimeError as error:
        raise ClusterError(f"{address or 'Ray'}: {_first_line(error)}", mend=None) from None


def disconnect() -> None:
    """Leave the cluster; one that :func:`connect` started ends."""
    import ray

    ray.shutdown()


def nodes() -> tuple[Node, ...]:
    """The nodes that are alive now."""
    import ray

    return tuple(
        Node(id=node["NodeID"], name=f"{node['NodeName']} ({node['NodeID'][:8]})", resources=node["Resources"])
        for node in ray.nodes()
        if node["Alive"]
    )


def check_nodes(shared: SharedStore, *, announce: Announce) -> tuple[Node, ...]:
    """Ask every node what it has of qvlfp8, and whether it reaches the shared store.

    Returns:
        The nodes that may be used; one that does not answer is left out, and announced.

    Raises:
        ClusterError: a node has another qvlfp8 than this driver, or reaches another store.
        SharedStoreError: this driver does not reach it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    found = nodes()
    sign = uuid.uuid4().hex
    shared.sign(sign)
    probe = ray.remote(num_cpus=0, max_retries=0)(_probe())
    asked = {
        node.id: probe.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node.id, soft=False)
        ).remote(shared.url, sign, f"{sign}-{node.id}")
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


def _probe() -> Callable[[str, str, str], dict[str, Any]]:
    """A function that needs nothing of this package to arrive on a node: Ray sends one that is defined inside
    another by value."""

    def probe(url: str, sign: str, answer: str) -> dict[str, Any]:
        try:
            from qvlfp8.cluster.connect import identity
            from qvlfp8.cluster.shared import SharedStore
        except ImportError as error:
            return {"missing": str(error)}
        reached: bool | str
        try:
            shared = SharedStore(url)
            reached = shared.signed(sign)
            if reached:
                shared.sign(answer)
        except Exception as error:  # noqa: BLE001
            reached = str(error)
        return {**identity(), "shared": reached}

    return probe


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
