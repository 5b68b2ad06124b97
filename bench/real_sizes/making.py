"""Make a model of random weights on the GPU, and save it as the published ones are: BF16, in shards.

Weights are drawn with variance 1 / fan-in, so that activations stay near 1 through any depth and every
input shows in the output. The head is drawn wider: logits with a deviation of :data:`LOGITS` put most of
the probability on few tokens, as a trained model does, so that a divergence means something. In a tied
model the embedding is that head.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.real_sizes import sizes, told
from qvlfp8 import structure
from qvlfp8.checkpoint import INDEX, WEIGHTS
from qvlfp8.reference.folder import write_folder

SHARD_BYTES = 5_000_000_000
LOGITS = 4.5
"""Of N normal logits of this deviation the entropy is about ln N - LOGITS² / 2: 1.8 nats for 152,000."""

BIAS = 0.1


def work(spec: dict[str, Any], out: Path) -> dict[str, Any]:
    """Make the model ``spec["size"]`` with ``spec["seed"]`` in ``spec["folder"]``, whole or not at all."""
    import torch

    del out
    size = sizes.SIZES[spec["size"]]
    folder = Path(spec["folder"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    started = time.monotonic()
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    config = sizes.config(size)
    write_folder(partial, config, ())
    (partial / WEIGHTS).unlink()
    (partial / "preprocessor_config.json").write_text(json.dumps(sizes.preprocessor(), indent=2) + "\n")
    model = structure.from_config(config)
    total = _save(partial, _tensors(model, spec["seed"], device), _shards(model))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return {
        "bytes": total,
        "parameters": total // 2,
        "seconds": round(time.monotonic() - started, 2),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


def _wanted(model: structure.Structure) -> dict[str, structure.Shape]:
    return {name: shape for name, shape in model.shapes.items() if name not in model.optional}


def _shards(model: structure.Structure) -> list[list[str]]:
    """Names by shard, in order, each shard of at most :data:`SHARD_BYTES`."""
    shards: list[list[str]] = []
    room = 0
    for name, shape in _wanted(model).items():
        nbytes = 2 * math.prod(shape)
        if nbytes > room:
            shards.append([])
            room = SHARD_BYTES
        room -= nbytes
        shards[-1].append(name)
    return shards


def _tensors(model: structure.Structure, seed: int, device: str) -> Iterator[tuple[str, Any]]:
    import torch

    for name, shape in _wanted(model).items():
        draws = torch.Generator(device=device)
        draws.manual_seed(int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7]))
        if name.endswith(".bias"):
            deviation = BIAS
        elif len(shape) == 1:
            yield name, torch.ones(shape, dtype=torch.bfloat16, device=device)
            continue
        else:
            of_head = name == f"{structure.HEAD}.weight" or (model.tied and "embed_tokens" in name)
            deviation = (LOGITS if of_head else 1.0) / math.sqrt(math.prod(shape[1:]))
        yield (
            name,
            torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0.0, deviation, generator=draws),
        )


def _save(folder: Path, tensors: Iterator[tuple[str, Any]], shards: list[list[str]]) -> int:
    from safetensors.torch import save_file

    index: dict[str, str] = {}
    total = 0
    for number, names in enumerate(shards, 1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        held = {}
        for name in names:
            made, held[name] = next(tensors)
            assert made == name
            index[name] = file
            total += 2 * held[name].numel()
        save_file(held, folder / file, {"format": "pt"})
    if len(shards) > 1:
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
        (folder / INDEX).write_text(text + "\n", encoding="utf-8")
    return total


if __name__ == "__main__":
    sys.exit(told.main(work))
