"""Carry out a repair: a mended copy beside the checkpoint, whole or not at all.

Weights are copied by the kernel (which clones them where the file system can) and never held in memory;
what was copied is read back and compared by digest while the copy goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qvlfp8 import __version__
from qvlfp8 import checkpoint as ck
from qvlfp8.errors import RepairError, StoreWriteError, UsageError
from qvlfp8.repair import REPORT, Repair, companions
from qvlfp8.store import writing
from qvlfp8.tensorfile import BITS, Tensor, read_metadata

__all__ = ["Link", "carry_out"]

Link = Literal["copy", "hard"]
"""How files that need no change get into the mended folder."""

_CHUNK = 64 << 20
"""Bytes that the kernel is asked to copy at once: progress and Ctrl-C come between two."""

_PIECE = 4 << 20
"""Bytes read at once while digesting."""


@dataclass(frozen=True)
class _Span:
    """Bytes ``[source, source + length)`` of one file that go to ``target`` in another."""

    source: int
    target: int
    length: int


def carry_out(
    repair: Repair, out: Path, *, link: Link = "copy", advance: Callable[[int], None] = lambda _bytes: None
) -> dict[str, Any]:
    """Write the mended checkpoint to ``out``; its source is never changed.

    Args:
        repair: what to change.
        out: a folder that does not exist yet.
        link: ``hard`` links weight files that need no change instead of copying them.
        advance: is told of bytes that were copied.

    Returns:
        What ``repair.json`` in the folder says.

    Raises:
        UsageError: ``out`` exists, or lies in the checkpoint.
        RepairError: a link leads out of the folder, or the copy is not what it must be.
        StoreWriteError: ``out`` cannot be written, or there is no space for it.
    """
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out}: exists already", mend="name a folder that does not exist yet")
    if out.resolve().is_relative_to(repair.source.root.resolve()):
        raise UsageError(f"{out}: lies in the checkpoint", mend="name a folder elsewhere")
    carried = companions(repair)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _check_space(repair, carried, out.parent, link)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name[:80]}-", dir=out.parent))
    try:
        with writing(partial):
            made = partial / "checkpoint"
            made.mkdir()
            report = _fill(repair, made, carried, link, advance)
            _check(repair, made)
            try:
                made.rename(out)
            except OSError:
                raise UsageError(f"{out}: appeared while this ran", mend="name another folder") from None
            _sync_folder(out.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def _check_space(repair: Repair, carried: Sequence[Path], parent: Path, link: Link) -> None:
    """Check that the copy can fit: a file with holes may claim any size.

    On the source's own file system it may be cloned, which needs no space, so there only its size counts.
    """
    source = repair.source
    weights = [source.root / name for name in source.weight_files] if link == "copy" else []
    needed = sum(file.stat().st_size for file in [*carried, *weights])
    disk = shutil.disk_usage(parent)
    left = disk.total if source.root.stat().st_dev == parent.stat().st_dev else disk.free
    if needed > left:
        raise StoreWriteError(
            f"{parent}: the copy has {needed} bytes, for which there is no space ({left})",
            mend="name a folder on a larger disk; a file with holes is a download that was not finished",
        )


def _fill(
    repair: Repair, made: Path, carried: Sequence[Path], link: Link, advance: Callable[[int], None]
) -> dict[str, Any]:
    source = repair.source
    weights = {}
    for name in source.weight_files:
        weights[name] = _weights(repair, source.root / name, made / name, link, advance)
    for file in [*carried, *repair.restored.values()]:
        shutil.copyfile(file, made / file.name)
    for name, content in repair.written.items():
        _write_json(made / name, content)
    report = {
        "qvlfp8": __version__,
        "changes": list(repair.changes),
        "dropped_tensors": list(repair.dropped),
        "written": sorted(repair.written),
        "restored": sorted(repair.restored),
        "weights": weights,
    }
    _write_json(made / REPORT, report)
    return report


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    with file.open("w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=2, ensure_ascii=False)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())


def _weights(
    repair: Repair, old: Path, new: Path, link: Link, advance: Callable[[int], None]
) -> dict[str, Any]:
    """One weight file: linked, copied, or written without the tensors that are dropped."""
    gone = set(repair.dropped)
    held = [tensor for tensor in repair.source.tensors.values() if tensor.file.name == old.name]
    kept = sorted(
        (tensor for tensor in held if tensor.name not in gone), key=lambda t: (-BITS[t.dtype], t.start)
    )
    if len(kept) == len(held):
        if link == "hard":
            return {"action": "hard-linked" if _hard_link(old, new) else "copied"} | _copied(
                old, new, advance
            )
        return {"action": "copied"} | _copied(old, new, advance)
    header, spans = _layout(old, kept)
    digest = _copy(old, new, header, spans, advance)
    return {"action": "rewritten", "tensors": len(kept), "sha256_of_kept": digest}


def _hard_link(old: Path, new: Path) -> bool:
    """Link if both are on one file system."""
    try:
        new.hardlink_to(old.resolve())
    except OSError:
        return False
    return True


def _copied(old: Path, new: Path, advance: Callable[[int], None]) -> dict[str, Any]:
    size = old.stat().st_size
    if new.exists():
        advance(size)
        return {"bytes": size}
    return {"bytes": size, "sha256": _copy(old, new, b"", [_Span(0, 0, size)], advance)}


def _layout(old: Path, kept: Sequence[Tensor]) -> tuple[bytes, list[_Span]]:
    """The new file's header, and what goes where; tensors that lie side by side go together."""
    entries: dict[str, Any] = {}
    metadata = read_metadata(old)
    if metadata:
        entries["__metadata__"] = metadata
    offset = 0
    for tensor in kept:
        end = offset + tensor.nbytes
        entries[tensor.name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end],
        }  # fmt: skip
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = struct.pack("<Q", len(text)) + text
    spans: list[_Span] = []
    position = len(header)
    for tensor in kept:
        last = spans[-1] if spans else None
        if last is not None and last.source + last.length == tensor.start:
            spans[-1] = _Span(last.source, last.target, last.length + tensor.nbytes)
        else:
            spans.append(_Span(tensor.start, position, tensor.nbytes))
        position += tensor.nbytes
    return header, spans


def _copy(old: Path, new: Path, header: bytes, spans: Sequence[_Span], advance: Callable[[int], None]) -> str:
    """Copy the spans behind the header; returns the SHA-256 of the spans, equal in both files.

    Raises:
        RepairError: they differ.
    """
    digests = hashlib.sha256(), hashlib.sha256()
    with (
        old.open("rb") as source,
        new.open("x+b") as target,
        ThreadPoolExecutor(1) as one,
        ThreadPoolExecutor(1) as other,
    ):
        target.write(header)
        target.flush()
        reading: list[Future[None]] = []
        for span in spans:
            for begin in range(0, span.length, _CHUNK):
                length = min(_CHUNK, span.length - begin)
                _copy_range(
                    source.fileno(), target.fileno(), span.source + begin, span.target + begin, length
                )
                pairs = (
                    (one, digests[0], source.fileno(), span.source + begin),
                    (other, digests[1], target.fileno(), span.target + begin),
                )
                reading += [pool.submit(_digest, into, file, at, length) for pool, into, file, at in pairs]
                advance(length)
        os.fsync(target.fileno())
        for future in reading:
            future.result()
    if digests[0].digest() != digests[1].digest():
        raise RepairError(f"{old}: it changed while it was copied", mend="try again when nobody writes to it")
    return digests[0].hexdigest()


def _copy_range(source: int, target: int, begin: int, at: int, length: int) -> None:
    """Copy within the kernel, by reading and writing where it cannot (between some file systems)."""
    done = 0
    while done < length:
        try:
            moved = os.copy_file_range(source, target, length - done, begin + done, at + done)
        except OSError:
            piece = os.pread(source, min(_PIECE, length - done), begin + done)
            moved = os.pwrite(target, piece, at + done)
        if moved == 0:
            raise RepairError("a weight file has become shorter while it was copied", mend="try again")
        done += moved


def _digest(into: Any, file: int, at: int, length: int) -> None:
    done = 0
    while done < length:
        piece = os.pread(file, min(_PIECE, length - done), at + done)
        if not piece:
            return
        into.update(piece)
        done += len(piece)


def _check(repair: Repair, made: Path) -> None:
    """Read the copy as any checkpoint is read; it must hold just what is kept.

    Raises:
        RepairError: it does not.
    """
    gone = set(repair.dropped)
    wanted = {t.name: (t.dtype, t.shape) for t in repair.source.tensors.values() if t.name not in gone}
    try:
        found = {t.name: (t.dtype, t.shape) for t in ck.read(made).tensors.values()}
    except ck.NotACheckpoint as error:
        raise RepairError(f"{repair.source.root}: its copy is not whole: {error.problem}") from error
    if wanted != found:
        raise RepairError(f"{repair.source.root}: its copy is not what it must be", mend="report this")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
