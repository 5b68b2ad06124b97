"""`qvlfp8 repair` beside `cp` on the same files: time as a ratio, data on disk for both, and peak memory.

    python bench/repair.py [--gigabytes 4] [--rounds 3] [--folder DIR]

Makes a checkpoint of the given size (one weight file with vision KV cache scales, one that needs no change),
then copies and repairs it in turn. It was just written, so that both find it in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from qvlfp8 import structure
from qvlfp8.conformance import KV_SCALES, SCALES
from qvlfp8.reference.architecture import model_config
from qvlfp8.tensorfile import BITS

_NUMBER = {"dynamic": False, "num_bits": 8, "type": "float"}


def make(folder: Path, gigabytes: float) -> None:
    """Write the checkpoint, a tensor at a time."""
    config = model_config(tied=False)
    config["vocab_size"] = int(gigabytes * 1e9 / 2 / 2 / config["hidden_size"])
    config["quantization_config"] = {
        "ignore": ["lm_head", "visual.patch_embed*"],
        "quant_algo": "FP8",
        "kv_cache_scheme": _NUMBER,
        "producer": {"name": "modelopt", "version": "0.0.0"},
        "quant_method": "modelopt",
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (folder / name).write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    model = structure.from_config(config)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {n: ("BF16", s) for n, s in model.shapes.items()}
    scales = [f"visual.blocks.0.attn.{scale}" for scale in KV_SCALES]
    scales += [f"{attention}.{scale}" for attention in model.attentions for scale in KV_SCALES]
    for linear in model.linears.values():
        if linear.part != "head":
            tensors[f"{linear.name}.weight"] = ("F8_E4M3", model.shapes[f"{linear.name}.weight"])
            scales += [f"{linear.name}.{scale}" for scale in SCALES]
    tensors |= dict.fromkeys(scales, ("F32", ()))
    head = {name: tensors.pop(name) for name in ("lm_head.weight",)}
    _write(folder / "1.safetensors", tensors)
    _write(folder / "2.safetensors", head)


def _write(file: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    entries, sizes, offset = {}, [], 0
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: -BITS[item[1][0]]):
        size = BITS[dtype] // 8
        for side in shape:
            size *= side
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        sizes.append((dtype, size))
        offset += size
    text = json.dumps(entries).encode()
    noise = os.urandom(1 << 20).replace(b"\x7f", b"\x00").replace(b"\xff", b"\x00")
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for dtype, size in sizes:
            left = size
            while left:
                piece = struct.pack("<f", 0.5) if dtype == "F32" else noise[: min(left, len(noise))]
                left -= stream.write(piece)


def _timed(command: list[str]) -> float:
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        root = Path(name)
        source = root / "in"
        source.mkdir()
        make(source, options.gigabytes)
        subprocess.run(["sync"], check=True)
        copies, repairs = [], []
        for _ in range(options.rounds):
            out = root / "out"
            copies.append(_timed(["sh", "-c", f"cp -r {source} {out} && sync -f {out}"]))
            shutil.rmtree(out)
            repairs.append(_timed([sys.executable, "-m", "qvlfp8", "repair", str(source), str(out)]))
            shutil.rmtree(out)
        nbytes = sum(file.stat().st_size for file in source.iterdir())
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    copy, mended = statistics.median(copies), statistics.median(repairs)
    print(f"{nbytes / 1e9:.2f} GB, medians of {options.rounds}")
    print(f"cp + sync  {copy:.2f} s ({nbytes / 1e6 / copy:.0f} MB/s)")
    print(
        f"repair     {mended:.2f} s ({nbytes / 1e6 / mended:.0f} MB/s), peak memory {peak:.0f} MB (bound 200)"
    )
    print(f"throughput of repair over cp: {copy / mended:.2f} (bound 0.9)")


if __name__ == "__main__":
    main()
