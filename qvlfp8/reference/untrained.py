"""The tiny Qwen2.5-VL with random weights, byte for byte the same on any machine.

Only integer draws of the Mersenne Twister and correctly rounded arithmetic are used: no logarithm,
sine or library generator whose last bit depends on the machine.
"""

from __future__ import annotations

import functools
import hashlib
import math
import random
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qvlfp8 import structure
from qvlfp8.reference import architecture
from qvlfp8.reference.folder import NamedTensor, write_folder

BIAS_BOUND = 0.125
"""Biases are uniform in [-BIAS_BOUND, BIAS_BOUND]."""


def write_random(folder: Path, *, seed: int, tied: bool) -> str:
    """Make the model's folder: weights, configuration, tokenizer, preprocessor.

    The folder appears whole or not at all. With ``tied`` there is no ``lm_head.weight``.

    Returns:
        The folder's digest, a function of ``seed`` and ``tied`` alone.

    Raises:
        FileExistsError: the folder exists already.
    """
    config = architecture.model_config(tied=tied)
    return write_folder(folder, config, _tensors(config, seed))


def _tensors(config: dict[str, Any], seed: int) -> Iterator[NamedTensor]:
    model = structure.from_config(config)
    for name, shape in model.shapes.items():
        if name not in model.optional:
            yield name, "BF16", shape, _fill(name, shape, seed)


def _fill(name: str, shape: tuple[int, ...], seed: int) -> bytes:
    if name.endswith(".bias"):
        return _uniform(f"{seed}/{name}", math.prod(shape), BIAS_BOUND)
    if len(shape) == 1:
        return b"\x80\x3f" * shape[0]  # norms: 1.0
    # Variance 1 / fan-in keeps activations near 1 through any depth, so that every input shows.
    return _uniform(f"{seed}/{name}", math.prod(shape), math.sqrt(3 / math.prod(shape[1:])))


def _uniform(key: str, count: int, bound: float) -> bytes:
    """Draw ``count`` BF16 numbers, uniform in [-bound, bound]; each key is a stream of its own."""
    source = random.Random(int.from_bytes(hashlib.sha256(key.encode()).digest()))  # noqa: S311
    draws = _little_endian(array("H", source.randbytes(2 * count)))
    patterns = _patterns(bound)
    return _little_endian(array("H", [patterns[draw] for draw in draws])).tobytes()


@functools.cache
def _patterns(bound: float) -> tuple[int, ...]:
    """The BF16 bit pattern of each of 65,536 even steps from -bound to bound."""
    singles = array("f", [(2 * draw - 65535) / 65535 * bound for draw in range(65536)])
    # The nearest BF16, ties to even: the upper half of the F32, rounded.
    return tuple((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 for bits in array("I", singles.tobytes()))


def _little_endian(numbers: array[int]) -> array[int]:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
