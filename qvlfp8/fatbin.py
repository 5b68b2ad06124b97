"""CUDA code in a library, by GPU: what other GPUs need can be zeroed, so that it compresses to nothing.

A library holds containers (``fatbin``), one a translation unit; each holds entries: machine code (ELF)
for one compute capability, or PTX, which the driver compiles where there is no machine code. The driver
picks an entry by its header, which stays, so that the same code runs as before on the GPU that is kept.
"""

from __future__ import annotations

import mmap
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MAGIC = struct.pack("<I", 0xBA55ED50)
_CONTAINER = struct.Struct("<IHHQ")
"""Magic, version, size of this header, size of the entries after it."""
_ENTRY = struct.Struct("<HHIQ12xI")
"""Kind, version, size of this header, size of the payload, …, compute capability."""

PTX, ELF = 1, 2


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry: ``capability`` as 90 for 9.0; the payload is ``size`` bytes from ``start`` of the file."""

    kind: int
    capability: int
    start: int
    size: int


def containers(code: bytes | mmap.mmap) -> Iterator[list[Entry]]:
    """The containers of a library, each as its entries; bytes that only look like one are passed over."""
    at = code.find(_MAGIC)
    while at != -1:
        end = at + 4
        if at + _CONTAINER.size <= len(code):
            _, version, header, size = _CONTAINER.unpack_from(code, at)
            entries = _entries(code, at + header, at + header + size) if version == 1 else None
            if entries:
                yield entries
                end = at + header + size
        at = code.find(_MAGIC, end)


def _entries(code: bytes | mmap.mmap, start: int, end: int) -> list[Entry] | None:
    found = []
    while start < end <= len(code):
        if start + _ENTRY.size > end:
            return None
        kind, _, header, size, capability = _ENTRY.unpack_from(code, start)
        if header < _ENTRY.size or start + header + size > end:
            return None
        found.append(Entry(kind=kind, capability=capability, start=start + header, size=size))
        start += header + size
    return found or None


def needless(entries: list[Entry], capability: int) -> Iterator[Entry]:
    """The entries of a container that a GPU of that compute capability cannot or will not use."""
    exact = any(entry.kind == ELF and entry.capability == capability for entry in entries)
    for entry in entries:
        newer = entry.kind == PTX and entry.capability > capability
        other = entry.kind == ELF and entry.capability != capability
        # Machine code runs on later minor versions of its own major one: kept where there is no exact match.
        related = entry.capability // 10 == capability // 10 and entry.capability < capability
        if newer or (exact and entry.kind == PTX) or (other and (exact or not related)):
            yield entry


def keep_only(library: Path, target: Path, capability: int) -> int:
    """Copy a library without the code that a GPU of that compute capability does not use.

    Returns:
        How many bytes were zeroed; nothing is written if none.
    """
    with library.open("rb") as stream:
        if library.stat().st_size == 0:
            return 0
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as code:
            entries = [e for container in containers(code) for e in needless(container, capability)]
    if entries:
        shutil.copyfile(library, target)
        shutil.copymode(library, target)
        with target.open("r+b") as stream:
            for entry in entries:
                stream.seek(entry.start)
                stream.write(bytes(entry.size))
    return sum(entry.size for entry in entries)
