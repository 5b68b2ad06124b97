"""Ask a vLLM's own loader about checkpoints without and with the plugin; run by that environment's Python.

    python plugin_probe.py JOB.json RESULT.json

JOB: ``checkpoints`` maps names to folders; ``settings`` lists what is asked: ``absent`` (the plugin is not
registered), or a value of QVLFP8_VLLM_BLIND. Run as a program, the plugin is found by vLLM's own search,
before any model is imported; in :mod:`tests.integration.vllm_host`, ``register`` is called after the first
pass. RESULT: what preflight measured and what the plugin logged, by setting and name.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from qvlfp8 import checkpoint
from qvlfp8.worker import preflight, vllm_patches
from tests.integration import vllm_host

MODEL = "vllm.model_executor.models.qwen2_5_vl"


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record.getMessage())


def find_by_vllm() -> dict[str, Any]:
    """Let vLLM find the plugin, as it does when it starts."""
    from vllm import plugins

    plugins.load_general_plugins()
    # Worker processes load plugins again.
    plugins.plugins_loaded = False
    plugins.load_general_plugins()
    import qvlfp8_vllm

    hooks = [finder for finder in sys.meta_path if type(finder).__module__ == "qvlfp8_vllm"]
    return {
        "file": qvlfp8_vllm.__file__,
        "hooks": len(hooks),
        "model_imported": MODEL in sys.modules,
        "distribution": metadata.version("qvlfp8-vllm"),
    }


def wraps() -> int:
    """How often the model class's load_weights was wrapped."""
    function = sys.modules[MODEL].Qwen2_5_VLForConditionalGeneration.load_weights
    depth = 0
    while hasattr(function, "__wrapped__"):
        function, depth = function.__wrapped__, depth + 1
    return depth


def main(job: dict[str, Any], facts: dict[str, Any], *, found: bool = False) -> dict[str, Any]:
    """Ask in a prepared vLLM; ``found``: the plugin is registered."""
    lines = Lines()
    result: dict[str, Any] = {"runs": {}, "logged": {}, "facts": facts}
    if "fault" in facts:
        return result
    # Qwen2-VL looks up an activation that Qwen2.5-VL does not; only the name is needed.
    vllm_patches._declare_activations()
    # Not before: vLLM's own configuration of logging takes handlers away.
    logging.getLogger("vllm.qvlfp8").addHandler(lines)
    result["wrapped_before"] = wraps()
    for setting in job["settings"]:
        if setting != "absent":
            os.environ["QVLFP8_VLLM_BLIND"] = setting
            if not found:
                import qvlfp8_vllm

                qvlfp8_vllm.register()
                qvlfp8_vllm.register()
        runs = result["runs"][setting] = {}
        logged = result["logged"][setting] = {}
        for name, folder in job["checkpoints"].items():
            lines.kept = []
            # Not run(): it asks about Qwen2.5-VL alone, and two more classes have the plugin.
            runs[name] = preflight._examine(checkpoint.read(Path(folder)))
            logged[name] = lines.kept
    result["wrapped_after"] = wraps()
    return result


if __name__ == "__main__":
    asked, answer = map(Path, sys.argv[1:])
    by_vllm = find_by_vllm()
    said = main(json.loads(asked.read_text()), vllm_host.prepare(), found=True)
    answer.write_text(json.dumps({**said, "found": by_vllm}))
