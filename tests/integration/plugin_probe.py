"""Ask a vLLM's own loader about checkpoints without and with the plugin; run by that environment's Python.

    python plugin_probe.py JOB.json RESULT.json

JOB: ``checkpoints`` maps names to folders; ``settings`` lists what is asked: ``absent`` (the plugin is not
registered), or a value of QVLFP8_VLLM_BLIND. ``entry_point``: the plugin is found by vLLM's own search,
before any model is imported; else its ``register`` is called after the first pass. RESULT: what preflight
measured and what the plugin logged, by setting and name.
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
from qvlfp8.worker import generate_patches, preflight, vllm_patches
from qvlfp8.worker.vllm_patches import version_of_vllm

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


def prepare() -> dict[str, Any]:
    """Prepare as the preflight worker does; the CPU build, which it is not meant for, as generate does."""
    if version_of_vllm() != _version("vllm"):
        vllm_patches.PATCHES = ()
        generate_patches.apply(on_cpu=True)
        vars(preflight)["version"] = lambda name: version_of_vllm() if name == "vllm" else _version(name)
    facts = preflight.prepare([])
    # Qwen2-VL looks up an activation that Qwen2.5-VL does not; only the name is needed.
    vllm_patches._declare_activations()
    return facts


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def wraps() -> int:
    """How often the model class's load_weights was wrapped."""
    function = sys.modules[MODEL].Qwen2_5_VLForConditionalGeneration.load_weights
    depth = 0
    while hasattr(function, "__wrapped__"):
        function, depth = function.__wrapped__, depth + 1
    return depth


def main(job: dict[str, Any]) -> dict[str, Any]:
    lines = Lines()
    result: dict[str, Any] = {"runs": {}, "logged": {}}
    if job["entry_point"]:
        result["found"] = find_by_vllm()
    result["facts"] = prepare()
    if "fault" in result["facts"]:
        return result
    # Not before: vLLM's own configuration of logging takes handlers away.
    logging.getLogger("vllm.qvlfp8").addHandler(lines)
    result["wrapped_before"] = wraps()
    for setting in job["settings"]:
        if setting != "absent":
            os.environ["QVLFP8_VLLM_BLIND"] = setting
            if not job["entry_point"]:
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
    answer.write_text(json.dumps(main(json.loads(asked.read_text()))))
