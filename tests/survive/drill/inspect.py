"""The real stage ``inspect``, which is told of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qvlfp8.worker import inspect as itself
from tests.survive.drill.telling import told, work


def prepare(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """As the real one."""
    return itself.prepare(jobs)


def run(params: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """As the real one."""
    with told("inspect"):
        work(0.05)
        return itself.run(params, out)
