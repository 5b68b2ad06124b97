"""`qvlfp8 explain` on checkpoints of the real dimensions that are headers, scales and holes: whole process.

    python bench/explain.py [--rounds 5]

Each is a ModelOpt export with KV cache scales of the vision tower, so that every version fails and a mend is
worked out: the longest way through. `python -c pass` and `qvlfp8 --version` beside it say what the machine
is.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvlfp8 import structure
from qvlfp8.conformance import KV_SCALES, SCALES
from qvlfp8.explained import NOT
from qvlfp8.reference.architecture import model_config
from qvlfp8.worker.contract import write_headers

_NUMBER = {"dynamic": False, "num_bits": 8, "type": "float"}

MOST_MB = 150


@dataclass(frozen=True)
class Size:
    """A published model: what of its config.json matters, in how many files, and the bound in seconds."""

    name: str
    text: dict[str, int]
    vision: dict[str, int]
    tied: bool
    shards: int
    bound_s: float


_3B = {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16}
_72B = {"hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80, "num_attention_heads": 64}
_TOWER = {"depth": 32, "hidden_size": 1280, "num_heads": 16}
_OF_3B = _TOWER | {"intermediate_size": 3420, "out_hidden_size": 2048}
_OF_72B = _TOWER | {"intermediate_size": 3456, "out_hidden_size": 8192}

SIZES = (
    Size("3B", _3B | {"num_key_value_heads": 2, "vocab_size": 151936}, _OF_3B, True, 1, 0.4),
    Size("72B", _72B | {"num_key_value_heads": 8, "vocab_size": 152064}, _OF_72B, False, 31, 1.0),
    Size(
        "72B in 500 files", _72B | {"num_key_value_heads": 8, "vocab_size": 152064}, _OF_72B, False, 500, 1.0
    ),
)


def make(folder: Path, size: Size) -> int:
    """Write the checkpoint; returns how many tensors it has."""
    config: dict[str, Any] = model_config(tied=size.tied) | size.text
    config["vision_config"] |= size.vision
    config["rope_scaling"] = {"type": "mrope", "mrope_section": [16, 24, 24]}
    config["quantization_config"] = {
        "ignore": ["lm_head", "visual.patch_embed*"],
        "quant_algo": "FP8",
        "kv_cache_scheme": _NUMBER,
        "producer": {"name": "modelopt", "version": "0.0.0"},
        "quant_method": "modelopt",
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (folder / name).write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    model = structure.from_config(config)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {
        name: ("BF16", shape) for name, shape in model.shapes.items() if name not in model.optional
    }
    towers = [f"visual.blocks.{block}.attn" for block in range(model.vision_blocks)]
    scales = [f"{attention}.{scale}" for attention in (*model.attentions, *towers) for scale in KV_SCALES]
    for linear in model.linears.values():
        if linear.part != "head":
            tensors[f"{linear.name}.weight"] = ("F8_E4M3", model.shapes[f"{linear.name}.weight"])
            scales += [f"{linear.name}.{scale}" for scale in SCALES]
    tensors |= dict.fromkeys(scales, ("F32", ()))
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    each = -(-len(names) // size.shards)
    for number in range(-(-len(names) // each)):
        part = names[number * each : (number + 1) * each]
        file = folder / f"model-{number:05}.safetensors"
        write_headers(file, {name: tensors[name] for name in part})
        _fill_scales(file)
        weight_map |= dict.fromkeys(part, file.name)
    if size.shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return len(tensors)


def _fill_scales(file: Path) -> None:
    """Write a scale into each hole of one number."""
    with file.open("r+b") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
        for entry in header.values():
            if entry.get("dtype") == "F32":
                stream.seek(8 + length + entry["data_offsets"][0])
                stream.write(struct.pack("<f", 0.0625))


def timed(command: list[str], ends: int = 0) -> tuple[float, float]:
    """Seconds of a whole process that must end with this code, and its peak of memory in MB."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) != ends:
        sys.exit(f"{shlex.join(command)} ended with {os.waitstatus_to_exitcode(status)}, not {ends}")
    return time.monotonic() - started, usage.ru_maxrss / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    for label, command in (("python -c pass", ["-c", "pass"]), ("--version", ["-m", "qvlfp8", "--version"])):
        seconds = statistics.median(timed([sys.executable, *command])[0] for _ in range(rounds))
        print(f"{label:20} {seconds:.2f} s")
    missed = False
    with tempfile.TemporaryDirectory() as name:
        for size in SIZES:
            folder = Path(name) / size.name.replace(" ", "-")
            tensors = make(folder, size)
            command = [sys.executable, "-m", "qvlfp8", "explain", str(folder)]
            found = [timed(command, ends=NOT) for _ in range(rounds)]
            seconds, peak = statistics.median(s for s, _ in found), max(mb for _, mb in found)
            missed |= seconds > size.bound_s or peak > MOST_MB
            print(
                f"{size.name:20} {seconds:.2f} s (bound {size.bound_s}), {peak:.0f} MB (bound {MOST_MB}),"
                f" {tensors} tensors"
            )
    sys.exit(missed)


if __name__ == "__main__":
    main()
