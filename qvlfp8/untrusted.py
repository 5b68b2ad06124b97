"""Reading what a stranger wrote: regular files inside one folder, bounded in size, JSON without traps.

A checkpoint is downloaded data. Whatever of it is opened is opened here, after it was seen to be a regular
file of the folder; what is parsed was measured first, so that no file costs more than its bound.
"""

from __future__ import annotations

import gc
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

MAX_DEPTH = 64
"""Deepest nesting of a JSON file that is used later; published configurations have five levels."""

_NOTHING_SPECIAL = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_LONGEST = 400

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def printable(text: str, *, most: int = _LONGEST) -> str:
    """Give text on one line that no terminal acts upon, shortened in its middle to ``most`` characters.

    Control characters, line ends, marks of writing direction and lone surrogates become escapes.
    """
    if len(text) > most:
        text = f"{text[: most // 2]} … {text[-most // 2 :]}"
    return _escaped(text, "")


def harmless(text: str) -> str:
    """Give text of several lines that no terminal acts upon: as :func:`printable`, whole, lines kept."""
    return _escaped(text, "\n\t")


def _escaped(text: str, kept: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text)


class NotACheckpoint(Exception):
    """A folder or file that is no checkpoint: which file, what is wrong, what to do."""

    def __init__(self, file: Path, problem: str, mend: str) -> None:
        """Say all three in one sentence; what the file brought into it cannot harm a terminal."""
        self.file = file
        self.problem = printable(problem)
        self.mend = mend
        super().__init__(f"{printable(str(file))}: {self.problem}; {mend}")


class Allowance:
    """What reading may still cost: bytes, and JSON values.

    Python needs up to some 100 bytes and 0.3 us for a value, however few bytes write it; so both count.
    """

    def __init__(self, *, nbytes: int, values: int) -> None:
        """Allow so many bytes and values."""
        self.nbytes = nbytes
        self.values = values

    def take_bytes(self, file: Path, nbytes: int, what: str = "") -> None:
        """Take bytes of ``what``, such as ``a header of``.

        Raises:
            NotACheckpoint: there are not so many left.
        """
        if nbytes > self.nbytes:
            _too_much(file, f"{what}{nbytes} bytes", str(self.nbytes))
        self.nbytes -= nbytes

    def take_values(self, file: Path, raw: bytes) -> None:
        """Take as many values as the JSON text can have: each but the first follows one of ``,:[{``.

        Raises:
            NotACheckpoint: there are not so many left.
        """
        values = sum(map(raw.count, (b",", b":", b"[", b"{")))
        if values > self.values:
            _too_much(file, f"about {values} JSON values", str(self.values))
        self.values -= values


def of_configuration() -> Allowance:
    """Bound of a configuration file: published ones have up to 100 kB and 5,000 values."""
    return Allowance(nbytes=2_000_000, values=100_000)


def of_tokenizer() -> Allowance:
    """Bound of a tokenizer's file: Qwen3-VL's, the largest of the family, has 11.4 MB, 800,000 values."""
    return Allowance(nbytes=16_000_000, values=1_200_000)


def is_inside(file: Path, root: Path) -> bool:
    """Whether a file's bytes lie in the folder, or in the hub's cache that the folder is a snapshot of."""
    if file.parent == root and not file.is_symlink():
        return True
    real, home = Path(os.path.realpath(file)), Path(os.path.realpath(root))
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    return any(real.is_relative_to(folder) for folder in allowed)


def open_regular(file: Path, root: Path | None = None, *, mend: str = "put the file there") -> BufferedReader:
    """Open a regular file for reading; a named pipe or device is not even opened, and nothing waits.

    Args:
        file: what to open.
        root: the folder in which its bytes must lie (:func:`is_inside`).
        mend: what to do if it cannot be read.

    Raises:
        NotACheckpoint: it is something else, a link out of ``root``, or cannot be read.
    """
    try:
        if root is not None and not is_inside(file, root):
            raise NotACheckpoint(file, "is a link out of the folder", "put the file itself there")
        _must_be_regular(file, file.stat())
        descriptor = os.open(file, _NOTHING_SPECIAL)
        try:
            _must_be_regular(file, os.fstat(descriptor))
        except BaseException:
            os.close(descriptor)
            raise
        return os.fdopen(descriptor, "rb")
    except OSError as error:
        raise NotACheckpoint(file, f"cannot be read ({error.strerror})", mend) from error


def _must_be_regular(file: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for test, name in _KINDS if test(status.st_mode)), "no file")
        raise NotACheckpoint(file, f"is {kind}, not a regular file", "put the file itself there")


def read_bounded(file: Path, allowance: Allowance, mend: str, root: Path | None = None) -> bytes:
    """Read a whole file that is small enough.

    Raises:
        NotACheckpoint: as :func:`open_regular`, or the file is larger than is allowed.
    """
    with open_regular(file, root, mend=mend) as stream:
        size = os.fstat(stream.fileno()).st_size
        allowance.take_bytes(file, size)
        try:
            return stream.read(size)
        except OSError as error:
            raise NotACheckpoint(file, f"cannot be read ({error.strerror})", mend) from error


def read_object(file: Path, allowance: Allowance, mend: str, root: Path | None = None) -> dict[str, Any]:
    """Read a JSON file that must be one object.

    Raises:
        NotACheckpoint: as :func:`read_bounded` and :func:`parse_object`.
    """
    return parse_object(file, read_bounded(file, allowance, mend, root), mend, allowance)


def parse_object(file: Path, raw: bytes, mend: str, allowance: Allowance) -> dict[str, Any]:
    """Parse JSON text that must be one object, strictly.

    Refused are a name that occurs twice in one object, numbers that are not finite, and text that no
    file can hold (lone surrogates).

    Raises:
        NotACheckpoint: it is not such an object, or has more values than are allowed.
    """
    allowance.take_values(file, raw)
    try:
        with collection_paused():
            value = json.loads(
                raw.decode("utf-8"),
                object_pairs_hook=_unique,
                parse_constant=_no_constant,
                parse_float=_finite,
            )
            if b"\\ud" in raw or b"\\uD" in raw:
                json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise NotACheckpoint(file, "is not valid JSON (nested too deeply)", mend) from None
    except ValueError as error:
        raise NotACheckpoint(file, f"is not valid JSON ({error})", mend) from error
    if not isinstance(value, dict):
        raise NotACheckpoint(file, f"holds a JSON {type(value).__name__}, not an object", mend)
    return value


def check_depth(file: Path, value: object, mend: str) -> None:
    """Check that nothing is nested deeper than :data:`MAX_DEPTH`: what is written again must be.

    Raises:
        NotACheckpoint: it is.
    """
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise NotACheckpoint(file, f"its values are nested more than {MAX_DEPTH} deep", mend)


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pause the cyclic garbage collector: parsing makes no cycles, and it would take most of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _too_much(file: Path, has: str, left: str) -> NoReturn:
    raise NotACheckpoint(
        file,
        f"has {has}, of which {left} at most are read",
        "give a Qwen VL checkpoint; this is many times what any of them has",
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} occurs twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value
