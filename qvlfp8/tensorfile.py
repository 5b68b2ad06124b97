"""One safetensors file: its header, the values of small tensors, and writing.

The rules are those of the format (https://github.com/huggingface/safetensors#format): what its own
reader refuses is refused here too, with a sentence that names the file. So are headers so large that to
read them would take longer than a second.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from qvlfp8.untrusted import Allowance, NotACheckpoint, collection_paused, open_regular, parse_object

BITS: Mapping[str, int] = MappingProxyType(
    {
        "F64": 64, "I64": 64, "U64": 64, "C64": 64,
        "F32": 32, "I32": 32, "U32": 32,
        "BF16": 16, "F16": 16, "I16": 16, "U16": 16,
        "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8,
        "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
    }
)  # fmt: skip
"""Bits of one element, by the format's name for the type."""

MAX_HEADER_BYTES = 16_000_000
"""Most bytes of all headers of a checkpoint. The format allows 100 MB a file (``MAX_HEADER_SIZE``), for which
Python needs 8 s and 1 GB; a 72B model in FP8 has 0.5 MB."""

MAX_HEADER_VALUES = 300_000
"""Most JSON values of all headers of a checkpoint. A tensor has 10, and one for each dimension: 72B in FP8
have 40,000; 26,000 tensors fit, which is what can be read and judged within a second."""

MAX_DIMENSIONS = 64
"""Most dimensions of a tensor: NumPy's limit, and PyTorch's; the models here have up to five."""

MAX_VALUES = 65_536
"""Most elements that :func:`values` decodes: it is for scales and biases, not for weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """One header entry; the bytes are ``file[start:end]``, counted from the file's first."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    @property
    def elements(self) -> int:
        """How many elements; 1 for a scalar (shape ``()``)."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return self.end - self.start


def of_headers() -> Allowance:
    """What the headers of one checkpoint may cost."""
    return Allowance(nbytes=MAX_HEADER_BYTES, values=MAX_HEADER_VALUES)


def read_header(
    file: Path, *, root: Path | None = None, allowance: Allowance | None = None
) -> dict[str, Tensor]:
    """Read the tensors that one safetensors file declares, in the order of their data.

    Args:
        file: the file.
        root: the folder in which its bytes must lie; None: anywhere.
        allowance: what its header may cost; None: as much as those of a checkpoint.

    Raises:
        NotACheckpoint: the file is missing, no regular file, cut short, too large, or breaks a rule
            of the format.
    """
    with collection_paused():
        entries, begin, size = _read_entries(file, root, allowance or of_headers())
        _check_metadata(file, entries.pop("__metadata__", None))
        found = [_parse_entry(file, begin, name, entry) for name, entry in entries.items()]
        found.sort(key=lambda tensor: (tensor.start, tensor.end))
        _check_layout(file, found, begin, size)
        return {tensor.name: tensor for tensor in found}


def read_metadata(file: Path) -> Mapping[str, str] | None:
    """Read the ``__metadata__`` of a file; None if it has none.

    Raises:
        NotACheckpoint: as :func:`read_header`.
    """
    metadata: Mapping[str, str] | None = _read_entries(file, None, of_headers())[0].get("__metadata__")
    _check_metadata(file, metadata)
    return metadata


def _read_entries(file: Path, root: Path | None, allowance: Allowance) -> tuple[dict[str, Any], int, int]:
    """The header as an object, where the data begin, and the size of the file."""
    try:
        with open_regular(file, root) as stream:
            size = os.fstat(stream.fileno()).st_size
            prefix = stream.read(8)
            length = int.from_bytes(prefix, "little") if len(prefix) == 8 else -1
            if not 2 <= length <= size - 8:
                _refuse_pickle(file, prefix)
                _malformed(file, f"its header length is {length}, its size {size} bytes")
            allowance.take_bytes(file, length, "a header of ")
            raw = stream.read(length)
    except OSError as error:
        raise NotACheckpoint(file, f"cannot be read ({error.strerror})", "copy the file again") from error
    if not raw.startswith(b"{"):
        _refuse_pickle(file, prefix)
    return parse_object(file, raw, "copy the file again", allowance), 8 + length, size


def _refuse_pickle(file: Path, prefix: bytes) -> None:
    """Say it if the file begins as PyTorch's pickles do: as a zip archive, or with pickle protocol 2 to 5."""
    if prefix.startswith(b"PK\x03\x04") or (prefix[:1] == b"\x80" and prefix[1:2] in b"\x02\x03\x04\x05"):
        raise NotACheckpoint(
            file,
            "is a pickle, not safetensors, and is not opened: a pickle can run any code",
            "have the model saved with safetensors by someone you trust",
        )


def read_bytes(tensor: Tensor) -> bytes:
    """Read the bytes of one tensor, little-endian as they lie in the file.

    Raises:
        NotACheckpoint: the file has become shorter than its header says, or cannot be read.
    """
    with open_regular(tensor.file) as stream:
        return _read_from(stream, tensor)


def blocks(tensor: Tensor, size: int = 8 << 20) -> Iterator[bytes]:
    """Read the bytes of one tensor in blocks of ``size``, so that little of it is in memory at once.

    Raises:
        NotACheckpoint: as :func:`read_bytes`.
    """
    with open_regular(tensor.file) as stream:
        for start in range(0, tensor.nbytes, size):
            stop = min(start + size, tensor.nbytes)
            yield _read_from(stream, tensor, start, stop)


def _read_from(stream: BufferedReader, tensor: Tensor, start: int = 0, stop: int | None = None) -> bytes:
    wanted = (tensor.nbytes if stop is None else stop) - start
    try:
        stream.seek(tensor.start + start)
        data = stream.read(wanted)
    except OSError as error:
        raise NotACheckpoint(
            tensor.file, f"cannot be read ({error.strerror})", "put the file back"
        ) from error
    if len(data) != wanted:
        _malformed(tensor.file, f"it ends inside the data of {tensor.name!r}")
    return data


def values_of_each(tensors: Iterable[Tensor]) -> Iterator[tuple[Tensor, tuple[float, ...]]]:
    """Decode many small tensors as :func:`values` does, opening each file once; in the files' order.

    Raises:
        ValueError, NotACheckpoint: as :func:`values`.
    """
    ordered = sorted(tensors, key=lambda tensor: (str(tensor.file), tensor.start))
    for file, group in groupby(ordered, key=lambda tensor: tensor.file):
        with open_regular(file) as stream:
            for tensor in group:
                _must_be_small(tensor)
                yield tensor, _decode(tensor, _read_from(stream, tensor))


def values(tensor: Tensor) -> tuple[float, ...]:
    """Decode a small floating-point tensor, row-major.

    Raises:
        ValueError: the type is not F64, F32, BF16, F16, F8_E4M3 or F8_E5M2, or there are more than
            :data:`MAX_VALUES` elements.
        NotACheckpoint: the file cannot be read.
    """
    _must_be_small(tensor)
    return _decode(tensor, read_bytes(tensor))


def _must_be_small(tensor: Tensor) -> None:
    if tensor.elements > MAX_VALUES:
        raise ValueError(f"{tensor.name} has {tensor.elements} elements; values() is for small tensors")


def _decode(tensor: Tensor, data: bytes) -> tuple[float, ...]:
    count = tensor.elements
    match tensor.dtype:
        case "F64":
            return struct.unpack(f"<{count}d", data)
        case "F32":
            return struct.unpack(f"<{count}f", data)
        case "F16":
            return struct.unpack(f"<{count}e", data)
        case "BF16":
            # BF16 is the upper half of an F32, F8_E5M2 that of an F16.
            wide = b"".join(b"\0\0" + data[i : i + 2] for i in range(0, len(data), 2))
            return struct.unpack(f"<{count}f", wide)
        case "F8_E5M2":
            return struct.unpack(f"<{count}e", b"".join(bytes((0, byte)) for byte in data))
        case "F8_E4M3":
            return tuple(map(decode_e4m3, data))
        case other:
            raise ValueError(f"{tensor.name} is {other}, no floating-point type of a scale")


def write_safetensors(
    path: Path,
    tensors: Iterable[tuple[str, str, Sequence[int], bytes | memoryview]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write ``(name, dtype, shape, little-endian bytes)`` as one file, whole or not at all.

    Data is ordered by element size and then by name, as the reference writer does: every tensor is
    aligned to its element, and equal tensors give equal bytes.

    Raises:
        ValueError: a name occurs twice or is reserved, a type is unknown, or bytes and shape
            disagree.
    """
    ordered = sorted(tensors, key=lambda item: (-BITS.get(item[1], 0), item[0]))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, dtype, shape, data in ordered:
        if name in header or name == "__metadata__":
            raise ValueError(f"tensor name {name!r} occurs twice or is reserved")
        if dtype not in BITS or math.prod(shape) * BITS[dtype] != len(data) * 8:
            raise ValueError(f"{name}: {len(data)} bytes are not {dtype} of shape {list(shape)}")
        end = offset + len(data)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for _, _, _, data in ordered:
            stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def _malformed(file: Path, problem: str) -> NoReturn:
    raise NotACheckpoint(file, problem, "the file is damaged or not safetensors: copy it again")


def _check_metadata(file: Path, metadata: object) -> None:
    texts = {} if metadata is None else metadata
    if not isinstance(texts, dict) or not all(isinstance(v, str) for v in texts.values()):
        _malformed(file, "its __metadata__ is not text to text")


def _is_sizes(value: object) -> bool:
    """Whether it is a list of sizes; a product of many would take Python minutes."""
    return (
        isinstance(value, list)
        and len(value) <= MAX_DIMENSIONS
        and all(type(item) is int and 0 <= item < 2**63 for item in value)
    )


def _parse_entry(file: Path, begin: int, name: str, entry: object) -> Tensor:
    match entry:
        case {"dtype": str(dtype), "shape": shape, "data_offsets": [int(), int()] as offsets} if _is_sizes(
            shape
        ) and _is_sizes(offsets):
            pass
        case _:
            _malformed(file, f"the header entry of {name!r} is not dtype, shape and data_offsets")
    if dtype not in BITS:
        _malformed(file, f"{name!r} has the unknown type {dtype!r}")
    start, end = offsets
    if math.prod(shape) * BITS[dtype] != (end - start) * 8:
        _malformed(file, f"{name!r} is {dtype} of shape {shape} in {end - start} bytes")
    return Tensor(name=name, dtype=dtype, shape=tuple(shape), file=file, start=begin + start, end=begin + end)


def _check_layout(file: Path, tensors: Iterable[Tensor], begin: int, size: int) -> None:
    """Data must follow each other without overlap or hole, up to the end of the file."""
    position = begin
    for tensor in tensors:
        if tensor.start != position:
            problem = "overlaps the data before it" if tensor.start < position else "follows a hole"
            _malformed(file, f"the data of {tensor.name!r} {problem}")
        position = tensor.end
    if position != size:
        _malformed(file, f"its tensors end at byte {position}, the file at {size}")


def decode_e4m3(byte: int) -> float:
    """Give the number that a byte is in E4M3, the "FN" variant: no infinities, one NaN for each sign."""
    sign = -1.0 if byte & 0x80 else 1.0
    exponent, mantissa = (byte >> 3) & 0xF, byte & 0x7
    if byte & 0x7F == 0x7F:
        return math.nan
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (8 + mantissa) * 2.0 ** (exponent - 10)
