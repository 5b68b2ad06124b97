"""A checkpoint folder opened for changes: tensors by canonical name, JSON files by file name.

Standard library alone: FP8 numbers are worked on byte by byte, through tables of 256 entries.
"""

from __future__ import annotations

import bisect
import json
import math
import random
import shutil
import struct
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qvlfp8 import checkpoint as ck
from qvlfp8.structure import canonical, part_of
from qvlfp8.tensorfile import BITS, decode_e4m3

__all__ = ["Draft", "Entry", "encode_e4m3", "rescale_e4m3"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A tensor: its name and file on disk, type, shape and little-endian bytes."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def width(self) -> int:
        """Bytes of one element."""
        return BITS[self.dtype] // 8


class Draft:
    """A copy of a checkpoint folder, changed in memory and written by :meth:`save`."""

    def __init__(self, good: Path, folder: Path) -> None:
        """Copy the folder ``good`` to ``folder``.

        Raises:
            NotACheckpoint: it is none.
            FileExistsError: ``folder`` is there already.
        """
        shutil.copytree(good, folder)
        self.folder = folder
        held = ck.read(folder)
        self.config: dict[str, Any] = json.loads((folder / ck.CONFIG).read_text(encoding="utf-8"))
        self.tensors = {
            canonical(name): Entry(
                name=name, file=t.file.name, dtype=t.dtype, shape=t.shape, data=ck.read_bytes(t)
            )
            for name, t in held.tensors.items()
        }
        self._changed: set[str] = set()

    def names(self, ending: str, *, part: str | None = None) -> list[str]:
        """The canonical names with this ending, of one part of the model or of all.

        Raises:
            LookupError: there is none, so that a fault cannot be planted in nothing.
        """
        found = [n for n in self.tensors if n.endswith(ending) and part in (None, part_of(n))]
        if not found:
            raise LookupError(f"{self.folder}: no tensor {ending!r} of {part or 'any part'}")
        return found

    def put(self, name: str, **changes: Any) -> None:
        """Change fields of a tensor."""
        self.tensors[name] = replace(self.tensors[name], **changes)
        self._changed.add(self.tensors[name].file)

    def drop(self, name: str) -> None:
        """Remove a tensor."""
        self._changed.add(self.tensors.pop(name).file)

    def scalar(self, name: str) -> float:
        """The value of a scale: one F32 or BF16 number.

        Raises:
            ValueError: it is something else.
        """
        entry = self.tensors[name]
        if len(entry.data) != entry.width or entry.dtype not in ("F32", "BF16"):
            raise ValueError(f"{name} is {entry.dtype} of shape {entry.shape}, not one number")
        (value,) = struct.unpack("<f", entry.data.rjust(4, b"\0"))
        return float(value)

    def set_scalar(self, name: str, value: float) -> None:
        """Set a scale's value; a BF16 one is cut, not rounded."""
        self.scalar(name)
        self.put(name, data=struct.pack("<f", value)[-self.tensors[name].width :])

    def shuffle(self, name: str) -> None:
        """Put a tensor's elements into another order, the same at every call."""
        entry = self.tensors[name]
        code = {1: "B", 2: "H", 4: "I"}[entry.width]
        elements = array(code, entry.data)
        random.Random(name).shuffle(elements)  # noqa: S311
        self.put(name, data=elements.tobytes())

    def swap(self, one: str, other: str) -> None:
        """Let two tensors change places, their types and shapes with them."""
        a, b = self.tensors[one], self.tensors[other]
        self.put(one, dtype=b.dtype, shape=b.shape, data=b.data)
        self.put(other, dtype=a.dtype, shape=a.shape, data=a.data)

    def zero(self, name: str) -> None:
        """Set every element to zero."""
        self.put(name, data=bytes(len(self.tensors[name].data)))

    def edit_json(self, file: str, change: Callable[[dict[str, Any]], None]) -> None:
        """Change a JSON file of the folder, if it has it; config.json is :attr:`config`."""
        path = self.folder / file
        if path.exists():
            content = json.loads(path.read_text(encoding="utf-8"))
            change(content)
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def sections(self) -> Iterator[dict[str, Any]]:
        """Every object of config.json, itself first: what is said twice has to be changed twice."""
        waiting = [self.config]
        while waiting:
            section = waiting.pop()
            yield section
            waiting += [value for value in section.values() if isinstance(value, dict)]

    def save(self) -> None:
        """Write config.json and the weight files whose tensors were changed."""
        text = json.dumps(self.config, indent=2) + "\n"
        (self.folder / ck.CONFIG).write_text(text, encoding="utf-8")
        for file in self._changed:
            held = [e for e in self.tensors.values() if e.file == file]
            ck.write_safetensors(
                self.folder / file, [(e.name, e.dtype, e.shape, e.data) for e in held], {"format": "pt"}
            )


_MAGNITUDES = [decode_e4m3(byte) for byte in range(0x7F)]


def encode_e4m3(value: float) -> int:
    """The byte of the nearest number of E4M3, ties to even; what is too large becomes the largest."""
    if math.isnan(value):
        return 0x7F
    sign = 0x80 if math.copysign(1.0, value) < 0 else 0
    magnitude = abs(value)
    above = bisect.bisect_left(_MAGNITUDES, magnitude)
    if above == len(_MAGNITUDES):
        return sign | (above - 1)
    if above == 0:
        return sign
    below = above - 1
    to_below, to_above = magnitude - _MAGNITUDES[below], _MAGNITUDES[above] - magnitude
    nearest = below if to_below < to_above or (to_below == to_above and below % 2 == 0) else above
    return sign | nearest


def rescale_e4m3(data: bytes, factor: float) -> bytes:
    """Each number times ``factor``, rounded to E4M3 again."""
    table = bytes(encode_e4m3(decode_e4m3(byte) * factor) for byte in range(256))
    return data.translate(table)
