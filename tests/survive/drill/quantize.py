"""Stands in for stage ``quantize``: copies the model slowly, and changes it as the recipe says."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qvlfp8.worker.protocol import Refused
from tests.survive.drill.telling import told, work

_PIECES = 8


def prepare(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """What importing takes."""
    work(0.1)
    return {"python": platform.python_version()}


def run(params: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Write ``checkpoint``: the model's files, one piece after the other, and one more of the recipe's.

    Raises:
        Refused: the recipe is for weights alone.
        ValueError: the recipe is for vision alone.
    """
    started = time.monotonic()
    recipe = json.dumps(params["recipe"], sort_keys=True)
    scope = params["recipe"]["scope"]
    with told("quantize"):
        made = out / "checkpoint"
        made.mkdir()
        for source in sorted(Path(params["model"]).iterdir()):
            _copy(source, made / source.name)
            if scope == ["vision"]:
                raise ValueError("this drill's recipe always raises")
        if params["recipe"]["kv_cache"]["format"] == "none":
            raise Refused("recipe-not-expressible", "this drill's recipe is always refused")
        seed = hashlib.sha256(recipe.encode()).digest()
        (made / "of-the-recipe.bin.txt").write_bytes(seed * (1 << 14))
        return {"files": len(list(made.iterdir())), "seconds": {"all": time.monotonic() - started}}


def _copy(source: Path, target: Path) -> None:
    content = source.read_bytes()
    size = max(1, -(-len(content) // _PIECES))
    with target.open("wb") as stream:
        for start in range(0, len(content), size):
            stream.write(content[start : start + size])
            stream.flush()
            work(0.015 if len(content) > 1 << 20 else 0)
