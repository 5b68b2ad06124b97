"""Make ModelOpt's change of docs/upstream.md in memory, and quantize with it and without.

    python modelopt_probe.py JOB.json RESULT.json

JOB: ``model``, ``recipe`` and ``seed`` as the quantize worker takes them, and ``out``, a folder. RESULT: the
KV cache scales that the vision part and the language model were given, as released and as changed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from qvlfp8 import checkpoint
from qvlfp8.worker import quantize


def only_where_there_is_a_projection(postprocess: Any) -> Any:
    """A key or value scale is named after a projection: where there is none, it is not written."""
    projections = {"k_bmm_quantizer": "k_proj", "v_bmm_quantizer": "v_proj"}

    def has_place(name: str, tensors: dict[str, Any]) -> bool:
        module, _, quantizer = name.removesuffix("._amax").rpartition(".")
        if quantizer not in projections:
            return True
        return f"{module}.{projections[quantizer]}.weight" in tensors

    def changed(tensors: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        kept = {name: tensor for name, tensor in tensors.items() if has_place(name, tensors)}
        return postprocess(kept, *arguments, **options)

    return changed


def main(job: dict[str, Any]) -> dict[str, Any]:
    quantize.prepare([])
    from modelopt.torch.export import unified_export_hf as exporter

    released = exporter.postprocess_state_dict
    result = {}
    for name, function in {
        "released": released,
        "changed": only_where_there_is_a_projection(released),
    }.items():
        out = Path(job["out"]) / name
        out.mkdir()
        with patch.object(exporter, "postprocess_state_dict", function):
            quantize.run(job["params"], out)
        tensors = checkpoint.read(out / quantize.CHECKPOINT).tensors
        scales = [tensor for tensor in tensors if tensor.endswith((".k_scale", ".v_scale"))]
        vision = [tensor for tensor in scales if "visual." in tensor]
        result[name] = {
            "vision": vision,
            "language": sorted(set(scales) - set(vision)),
            "others": sorted(set(tensors) - set(scales)),
        }
    return result


if __name__ == "__main__":
    asked, answer = map(Path, sys.argv[1:])
    answer.write_text(json.dumps(main(json.loads(asked.read_text()))))
