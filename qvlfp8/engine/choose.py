"""The engines by name."""

from __future__ import annotations

from typing import Literal, assert_never

from qvlfp8.engine import Announce, Engine
from qvlfp8.environments import Locks
from qvlfp8.store import Store

EngineName = Literal["venv", "docker"]


def make_engine(
    name: EngineName, store: Store, settings: Locks, *, announce: Announce, offline: bool = True
) -> Engine:
    """An engine, ready to use.

    Args:
        settings: how locks are resolved: the Python and torch of the environments.
        offline: keep the hub of models out of reach; a container has no network anyway.

    Raises:
        DaemonError: engine docker, and no daemon answers.
        DaemonPermissionError: it is not for this user.
        BuildError: engine venv, and uv is missing.
    """
    match name:
        case "venv":
            from qvlfp8.engine.venv import VenvEngine

            return VenvEngine(
                store, python=settings.python, torch=settings.torch, announce=announce, offline=offline
            )
        case "docker":
            from qvlfp8.engine.docker import DockerEngine

            return DockerEngine(announce=announce, held=store.held)
        case _:
            assert_never(name)
