"""Faults that are planted in vLLM itself while it runs: they cannot be written into a checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from qvlfp8.worker.protocol import Refused


@contextlib.contextmanager
def planted(name: str | None) -> Iterator[None]:
    """Plant the named fault; None plants nothing.

    Raises:
        Refused: ``unknown-plant``.
    """
    if name is None:
        yield
        return
    if name not in PLANTS:
        raise Refused("unknown-plant", f"no fault {name!r}: name one of {', '.join(PLANTS)}")
    with PLANTS[name]():
        yield


@contextlib.contextmanager
def _window_order() -> Iterator[None]:
    """The tower works on its patches window by window; here the order is not undone at its end."""
    import torch
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VisionTransformer as Tower

    def keep(permutation: Any) -> Any:
        return torch.arange(len(permutation), device=permutation.device, dtype=permutation.dtype)

    original = Tower.__dict__["invert_permutation"]
    Tower.invert_permutation = staticmethod(keep)
    try:
        yield
    finally:
        Tower.invert_permutation = original


PLANTS: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {"window-order": _window_order}
"""The faults by name."""
