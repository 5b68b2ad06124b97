"""Worker ``inspect``: hold a checkpoint against its own configuration, and against its recipe.

Needs no package at all, so it runs in any environment. It reads headers, and all bytes twice: for what no
weight may hold, and for the digest. What is wrong with a checkpoint is measured, never raised.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qvlfp8 import checkpoint, declared, structure
from qvlfp8.conformance import Case, check_all, expected_kv_scales, of_checkpoint
from qvlfp8.structure import Part
from qvlfp8.worker.protocol import Refused

MOST_PROBLEMS = 50
"""Problems listed in a result; ``counts`` covers all of them."""


def prepare(jobs: list[dict[str, Any]]) -> dict[str, Any]:  # noqa: ARG001  (the worker protocol)
    """Nothing to import: only the interpreter is a fact."""
    return {"python": platform.python_version()}


def run(params: Mapping[str, Any], out: Path) -> dict[str, Any]:  # noqa: ARG001
    """Inspect ``params["checkpoint"]``, with ``params["recipe"]`` (or None) as the intention.

    Raises:
        Refused: ``not-a-checkpoint``, ``unknown-model`` or ``unknown-quantization``.
    """
    root = Path(params["checkpoint"])
    try:
        held = checkpoint.read(root)
        case = of_checkpoint(held)
        with ThreadPoolExecutor(1) as beside:
            hashing = beside.submit(checkpoint.folder_digest, root)
            problems = list(check_all(case, params["recipe"]))
        digest = hashing.result()
    except checkpoint.NotACheckpoint as error:
        raise Refused("not-a-checkpoint", str(error)) from error
    except structure.UnknownModel as error:
        raise Refused("unknown-model", f"{root}: {error}") from error
    except declared.UnknownDeclaration as error:
        raise Refused("unknown-quantization", f"{root}: {error}") from error
    return _describe(case) | {
        "problems": [asdict(problem) for problem in problems[:MOST_PROBLEMS]],
        "counts": dict(Counter(problem.finding for problem in problems)),
        "digest": digest,
    }


def _describe(case: Case) -> dict[str, Any]:
    held, said = case.checkpoint, case.declared
    parts: tuple[Part, ...] = ("vision", "language_model")
    modules = {name.removesuffix(".weight") for name in case.model.shapes}
    return {
        "producer": {"name": said.producer, "version": said.producer_version} if said.producer else {},
        "format": said.method,
        "config_source": held.quantization_source,
        "exclusions": list(said.exclusions),
        "exclusions_without_effect": [
            pattern for pattern in said.exclusions if not any(map(case.excludes([pattern]), modules))
        ],
        "scope_quantized": {part: _share(*case.quantized(part)) for part in parts},
        "kv_scales": {
            "config": "fp8" if case.kv_fp8 else "none",
            "expected": len(expected_kv_scales(case.model)) if case.kv_fp8 else 0,
            **{part: len(case.kv_scales(part)) for part in parts},
        },
        "tensors": len(held.tensors),
        "bytes": held.nbytes,
    }


def _share(quantized: list[str], unquantized: list[str]) -> list[int]:
    return [len(quantized), len(quantized) + len(unquantized)]
