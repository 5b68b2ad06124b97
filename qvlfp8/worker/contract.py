"""Show vLLM's loader many checkpoints that differ in one thing, and return what it did with each.

A checkpoint here is a base and edits, written as headers without data: what preflight reads. Each is
examined by :mod:`qvlfp8.worker.preflight`, as if a user had asked; :mod:`qvlfp8.contract` says what to show
and what follows. Beside it stand the two tables of vLLM's model class that no checkpoint shows.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from qvlfp8.tensorfile import BITS
from qvlfp8.worker import preflight, vllm_patches
from qvlfp8.worker.protocol import Refused

__all__ = ["OBSERVED", "changed", "examine", "prepare", "run", "write_checkpoint", "write_headers"]

OBSERVED = "observed.jsonl"
"""In the job's folder: one line a case, in their order."""

Header = tuple[str, tuple[int, ...]]
"""Type and shape of a tensor."""


def prepare(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """Make vLLM's loader ready, controls included, as preflight does."""
    del jobs
    return preflight.prepare([])


def run(params: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Examine ``params["cases"]``, a JSONL file of cases over the bases in the JSON file ``params["bases"]``.

    A base has ``files`` (name -> JSON content; None: not there) and ``tensors`` (name -> [type, shape]). A
    case names its ``base`` and may have ``files``, ``put`` and ``drop`` that change it. A line of the result
    is what preflight measured, or ``{"refused_kind": ...}``. ``architectures``: see :func:`examine`.
    """
    architectures = params.get("architectures")
    bases = json.loads(Path(params["bases"]).read_text(encoding="utf-8"))
    count = 0
    with (
        (out / OBSERVED).open("w", encoding="utf-8") as stream,
        tempfile.TemporaryDirectory(prefix="contract-") as scratch,
    ):
        for case in _cases(Path(params["cases"])):
            # A folder of its own: vLLM from 0.30 on remembers by path what a checkpoint holds.
            folder = Path(scratch) / str(count)
            write_checkpoint(folder, *changed(bases[case["base"]], case))
            stream.write(json.dumps(examine(folder, architectures), separators=(",", ":")) + "\n")
            stream.flush()
            shutil.rmtree(folder)
            count += 1
    return {"cases": count, "model_class": _model_class()}


def _cases(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)


def changed(base: Mapping[str, Any], case: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Header]]:
    """The files and tensors of a base after a case's changes; both as :func:`run` says."""
    tensors = {**base["tensors"], **case.get("put", {})}
    for name in case.get("drop", ()):
        del tensors[name]
    return {**base["files"], **case.get("files", {})}, tensors


def examine(folder: Path, architectures: Sequence[Any] | None = None) -> dict[str, Any]:
    """What preflight measures of a checkpoint folder, or ``{"refused_kind": ...}``.

    ``architectures``: what config.json may say there, if it is not Qwen2.5-VL's class alone.
    """
    params: dict[str, Any] = {"checkpoint": str(folder)}
    if architectures is not None:
        _stand_in()
        params["architectures"] = architectures
    try:
        return preflight.run(params, folder)
    except Refused as error:
        return {"refused_kind": error.kind}


@cache
def _stand_in() -> None:
    """What the other kinds need beside preflight's patches, once: no kernel runs, but some are looked for."""
    # Qwen2-VL looks up one that Qwen2.5-VL does not, in every version; only the name is needed.
    vllm_patches._declare_activations()
    # NVFP4 by vLLM's own software kernel, the one that needs no GPU. Before 0.16 ModelOpt's has none.
    os.environ["VLLM_USE_NVFP4_CT_EMULATIONS"] = "1"
    try:
        from vllm.model_executor.kernels.linear import register_linear_kernel
        from vllm.model_executor.kernels.linear.nvfp4.emulation import EmulationNvFp4LinearKernel
        from vllm.platforms import PlatformEnum
    except ImportError:
        return  # up to 0.18 the setting is enough
    register_linear_kernel(EmulationNvFp4LinearKernel, PlatformEnum.CPU, "nvfp4")


def write_checkpoint(folder: Path, files: Mapping[str, Any], tensors: Mapping[str, Header]) -> None:
    """Write a checkpoint without data; ``files`` maps names to JSON content, None to no file."""
    folder.mkdir()
    for name, content in files.items():
        if content is not None:
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
    write_headers(folder / "model.safetensors", tensors)


def write_headers(file: Path, tensors: Mapping[str, Header]) -> None:
    """Write a safetensors file whose data is a hole: it takes no room on the disk."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in sorted(tensors.items()):
        begin, end = end, end + math.prod(shape) * BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + end)


def _model_class() -> dict[str, Any]:
    """How the model class renames prefixes and fuses modules: matching of exclusions uses both tables."""
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration as Model

    return {
        # In vLLM's order: a later prefix may match what an earlier one made.
        "prefixes": list(Model.hf_to_vllm_mapper.orig_to_new_prefix.items()),
        "packed": {name: list(parts) for name, parts in Model.packed_modules_mapping.items()},
    }
