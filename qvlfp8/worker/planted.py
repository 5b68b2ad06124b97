"""Worker ``planted``: plant a fault in a copy of a good checkpoint, and hold that copy against the stages.

It asks what ``inspect`` and ``generate`` ask. Both may refuse or fail: that is what is measured.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qvlfp8 import checkpoint as ck
from qvlfp8.truth.faults import faults_for, plant
from qvlfp8.worker import generate, inspect
from qvlfp8.worker.generate import prepare
from qvlfp8.worker.protocol import Refused

__all__ = ["prepare", "run"]


def run(params: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Plant ``params["fault"]`` (None: nothing) in the checkpoint folder ``params["checkpoint"]``, and ask.

    Returns:
        ``checkpoint_digest`` of the good checkpoint; ``inspected`` and ``generated``, each ``measured``
        (what that worker measured) or ``refused`` (the kind of its refusal).

    Raises:
        Refused: ``unknown-fault``; ``not-a-checkpoint`` of the good one.
    """
    good, name = Path(params["checkpoint"]), params["fault"]
    try:
        digest = ck.folder_digest(good)
        config = json.loads((good / ck.CONFIG).read_text(encoding="utf-8"))
    except (ck.NotACheckpoint, OSError, ValueError) as error:
        raise Refused("not-a-checkpoint", str(error)) from error
    faults = {fault.id: fault for fault in faults_for(config)}
    if name is not None and name not in faults:
        raise Refused("unknown-fault", f"no fault {name!r} for this model")
    asked = {key: params[key] for key in ("exam", "options", "baseline")}
    with tempfile.TemporaryDirectory(prefix="planted-", dir=out) as scratch:
        folder = good
        if name is not None:
            folder = Path(scratch) / "checkpoint"
            plant(faults[name], good, folder)
            asked["plant"] = faults[name].in_vllm
        asked["checkpoint"] = str(folder)
        return {
            "checkpoint_digest": digest,
            "inspected": _measured(inspect, {"checkpoint": str(folder), "recipe": None}, out),
            "generated": _measured(generate, asked, out),
        }


def _measured(worker: Any, params: Mapping[str, Any], out: Path) -> dict[str, Any]:
    try:
        return {"measured": worker.run(params, out)}
    except Refused as refused:
        return {"refused": refused.kind}
