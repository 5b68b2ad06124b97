"""A checkpoint by ``hf_ptq.py`` of a Model-Optimizer checkout: the same texts, its own rules and export.

The texts are those that our own step would show, as the chat template wrote them, one to a batch; so what
differs between the two exports is what upstream's script does otherwise.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qvlfp8.quant_cfg import Recipe

_FORMATS = {"fp8": "fp8", "nvfp4": "nvfp4"}
_KV_FORMATS = {"none": "none", "fp8": "fp8", "fp8-cast": "fp8_cast"}
_LAST_LINES = 12


def command(
    script: Path, recipe: Recipe, source: Path, texts: Path, number: int, longest: int, target: Path
) -> list[str]:
    """What to run; options that this script does not have are left out.

    Args:
        script: ``hf_ptq.py``.
        recipe: what to quantize.
        source: the model's folder.
        texts: a JSONL file with a ``text`` a line.
        number: how many lines it has.
        longest: tokens of the longest.
        target: where the export goes.
    """
    known = script.read_text(encoding="utf-8")
    options = {
        "--pyt_ckpt_path": str(source),
        "--qformat": _FORMATS[recipe["format"]],
        "--kv_cache_qformat": _KV_FORMATS[recipe["kv_cache"]["format"]],
        "--dataset": str(texts),
        "--calib_size": str(number),
        "--batch_size": "1",
        "--export_path": str(target),
    }
    if '"--calib_seq"' in known:
        options["--calib_seq"] = str(max(longest, 1))
    flags = ["--skip_generate"] if '"--skip_generate"' in known else []
    return [sys.executable, str(script), *(part for pair in options.items() for part in pair), *flags]


def export(
    script: Path, recipe: Recipe, source: Path, texts: Sequence[tuple[str, int]], target: Path
) -> None:
    """Run it.

    Args:
        script: ``hf_ptq.py``.
        recipe: what to quantize.
        source: the model's folder.
        texts: what to calibrate on, and how many tokens each has.
        target: where the export goes; the texts lie beside it for as long as it runs.

    Raises:
        OSError: there is no GPU, which the script asks for.
        MemoryError: it ran out of memory.
        RuntimeError: it ended with another code than 0; the message has its last lines.
    """
    import torch

    if not torch.cuda.is_available():
        raise OSError("hf_ptq.py needs an NVIDIA GPU, and there is none here")
    shown = target.with_name(target.name + ".texts.jsonl")
    shown.write_text("".join(json.dumps({"text": text}) + "\n" for text, _ in texts), encoding="utf-8")
    longest = max(tokens for _, tokens in texts)
    arguments = command(script, recipe, source, shown, len(texts), longest, target)
    try:
        _run(arguments, script.parent)
    finally:
        shown.unlink()


def _run(arguments: Sequence[str], folder: Path) -> None:
    last: list[str] = []
    with subprocess.Popen(
        arguments, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        for line in process.stdout or ():
            print(line, end="", file=sys.stderr, flush=True)
            last = [*last, line.strip()][-_LAST_LINES:]
    if process.returncode != 0:
        said = f"hf_ptq.py ended with exit code {process.returncode}: {' | '.join(filter(None, last))}"
        raise MemoryError(said) if "out of memory" in said else RuntimeError(said)


def described(script: Path) -> dict[str, Any]:
    """What a record says of the script: where in its checkout it is, and its digest."""
    digest = hashlib.sha256(script.read_bytes()).hexdigest()
    return {"script": "/".join(script.parts[-3:]), "sha256": digest}
