"""The trained model that comes with the package: a Qwen2.5-VL that sees.

``trained/`` holds its weights, tied and in BF16, and the record of their training: the plan that
makes them again, versions, accuracy per task, digest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qvlfp8.checkpoint import read_bytes, read_header
from qvlfp8.reference import architecture
from qvlfp8.reference.folder import NamedTensor, write_folder

TRAINED = Path(__file__).resolve().parent / "trained"
WEIGHTS = TRAINED / "model.safetensors"
RECORD = TRAINED / "training.json"

_EMBEDDING = "model.embed_tokens.weight"
_FINAL_NORM = "model.norm.weight"


def write_trained(folder: Path, *, tied: bool) -> str:
    """Make the trained model's folder: weights, configuration, tokenizer, preprocessor.

    The untied variant is the same function, bit for bit: its head is the embedding negated, and so
    is its last norm. Whoever ties it silently turns every answer into nonsense.

    Returns:
        The folder's digest, a function of the shipped files and ``tied`` alone.

    Raises:
        FileExistsError: the folder exists already.
    """
    return write_folder(folder, _config(tied=tied), _tensors(tied=tied))


def training_record() -> dict[str, Any]:
    """Read how the shipped weights were made, and what they score."""
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return record


def _config(*, tied: bool) -> dict[str, Any]:
    plan = training_record()["plan"]
    return architecture.seeing_config(tied=tied, depth=plan["depth"], full_attention=plan["full_attention"])


def _tensors(*, tied: bool) -> Iterator[NamedTensor]:
    for name, tensor in read_header(WEIGHTS).items():
        data = read_bytes(tensor)
        if not tied and name == _EMBEDDING:
            yield "lm_head.weight", tensor.dtype, tensor.shape, _negated(data)
        yield name, tensor.dtype, tensor.shape, _negated(data) if not tied and name == _FINAL_NORM else data


def _negated(data: bytes) -> bytes:
    """Negate little-endian BF16 numbers: the sign is the highest bit of each second byte."""
    flipped = bytearray(data)
    flipped[1::2] = bytes(byte ^ 0x80 for byte in data[1::2])
    return bytes(flipped)
