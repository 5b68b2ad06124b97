"""The plain script that the quantize worker is measured beside: load, `mtq.quantize`, `export_hf_checkpoint`.

    python -m bench.plain_export SPEC.json

The spec names ``model``, ``recipe``, ``seed`` and ``out`` as the worker's does. The configuration and the
calibration batches are the worker's, so that both do the same arithmetic; nothing is checked, copied or
respelled.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from bench.real_sizes import told


def work(spec: dict[str, Any], out: Path) -> dict[str, Any]:
    import modelopt
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import Qwen2_5_VLForConditionalGeneration

    from qvlfp8.quant_cfg import quant_cfg
    from qvlfp8.worker import audit, calibration

    device = "cuda" if torch.cuda.is_available() else "cpu"
    seconds = {}
    recipe: Any = spec["recipe"]
    torch.manual_seed(spec["seed"])

    started = time.monotonic()
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        spec["model"], dtype=torch.bfloat16, device_map=device
    ).eval()
    shown = calibration.prepare(Path(spec["model"]), recipe["calibration"], None, out / "dataset")
    batches = list(shown.batches(model))
    seconds["load"] = time.monotonic() - started

    started = time.monotonic()
    config = quant_cfg(recipe, modelopt.__version__, audit.places(model))
    with torch.no_grad():
        mtq.quantize(model, config, lambda m: [m(**batch, use_cache=False) for batch in batches])
    seconds["quantize"] = time.monotonic() - started

    started = time.monotonic()
    with torch.inference_mode():
        export_hf_checkpoint(model, export_dir=out / "checkpoint")
    seconds["export"] = time.monotonic() - started
    return {
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "peak_gpu_mb": torch.cuda.max_memory_allocated() // 1_000_000 if device == "cuda" else None,
    }


if __name__ == "__main__":
    sys.exit(told.main(work))
