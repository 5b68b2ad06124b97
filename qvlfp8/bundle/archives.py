"""A bundle on disk: archives that share what is the same, cut into parts, with checksums; in pieces."""

from __future__ import annotations

import io
import json
import lzma
import os
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from qvlfp8 import digest, source
from qvlfp8.errors import UsageError
from qvlfp8.worker.run_bundle import ARCHIVE, ARCHIVES, SUMS, TREE, write_sums

PART_BYTES = 4 << 20
"""How much of an archive, before compression, goes into one part: small enough to fill pieces well."""

_PRESET = 1
"""xz level: CUDA code is compressed already, so that higher ones take minutes and win a hundredth."""

START = """\
#!/bin/sh
# Checks, unpacks and runs what lies beside this file. Options: sh start.sh --help
cd "$(dirname "$0")" && exec "${PYTHON:-python3}" run_bundle.py "$@"
"""


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A tree of files that a bundle brings; ``environment`` is its spec for the host, None for ``work``."""

    name: str
    files: Mapping[str, Path]
    environment: Mapping[str, Any] | None = None


@dataclass
class _Archive:
    name: str
    environment: Mapping[str, Any] | None
    needs: list[str] = field(default_factory=list)
    tree: dict[str, str] = field(default_factory=dict)
    objects: dict[str, Path] = field(default_factory=dict)


def _object(path: Path) -> str:
    return digest.of_file(path) + ("x" if os.access(path, os.X_OK) else "")


def _archives(trees: Sequence[Tree]) -> list[_Archive]:
    named = {tree.name: {path: (_object(file), file) for path, file in tree.files.items()} for tree in trees}
    holders = Counter(
        content
        for tree in trees
        if tree.environment is not None
        for content in {content for content, _ in named[tree.name].values()}
    )
    common = _Archive(name="common", environment=None)
    archives = []
    for tree in trees:
        archive = _Archive(name=tree.name, environment=tree.environment)
        for path, (content, file) in named[tree.name].items():
            archive.tree[path] = content
            shared = tree.environment is not None and holders[content] > 1
            (common if shared else archive).objects.setdefault(content, file)
            if shared and not archive.needs:
                archive.needs.append(common.name)
        archives.append(archive)
    if not common.objects:
        return archives
    # Bundles of other environments may be laid into the same folder.
    common.name = f"common-{digest.of_json(sorted(common.objects))[:8]}"
    for archive in archives:
        archive.needs = [common.name] if archive.needs else []
    return [common, *archives]


class _Parts(io.RawIOBase):
    """A stream that is cut every :data:`PART_BYTES` and compressed, part by part, into a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._buffer = bytearray()
        self._pool = ThreadPoolExecutor(2)
        self._left: list[Future[int]] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._buffer += data
        while len(self._buffer) >= PART_BYTES:
            self._cut(PART_BYTES)
        return len(data)

    def _cut(self, size: int) -> None:
        target = self._folder / f"{len(self._left):04}.xz"
        part = bytes(self._buffer[:size])
        del self._buffer[:size]
        self._left.append(self._pool.submit(lambda: target.write_bytes(lzma.compress(part, preset=_PRESET))))
        if len(self._left) > 8:
            self._left[-8].result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._pool:
            if kind is None and self._buffer:
                self._cut(len(self._buffer))
        for part in self._left:
            part.result()


def _pack(archive: _Archive, folder: Path) -> None:
    folder.mkdir(parents=True)
    with _Parts(folder) as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
        for name, path in archive.objects.items():
            entry = tarfile.TarInfo(f"objects/{name}")
            entry.size = path.stat().st_size
            with path.open("rb") as content:
                tar.addfile(entry, content)
        tree = json.dumps(archive.tree).encode()
        entry = tarfile.TarInfo(TREE)
        entry.size = len(tree)
        tar.addfile(entry, io.BytesIO(tree))
    spec = {"needs": archive.needs, "environment": archive.environment}
    (folder / ARCHIVE).write_text(json.dumps(spec, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    write_sums(folder)


def write_bundle(out: Path, trees: Sequence[Tree], *, split: int | None = None) -> list[Path]:
    """Write a bundle; returns its pieces: ``out``, or folders ``out/piece-NN`` to be laid over each other.

    Args:
        split: the most bytes of a piece, None for one whole.

    Raises:
        UsageError: ``out`` is there already, or ``split`` is too small for one part.
    """
    if out.exists():
        raise UsageError(f"{out}: is there already", mend="name a new folder (--out)")
    for archive in _archives(trees):
        _pack(archive, out / ARCHIVES / archive.name)
    (out / "start.sh").write_text(START, encoding="utf-8")
    shutil.copyfile(source.PACKAGE / "worker" / "run_bundle.py", out / "run_bundle.py")
    return [out] if split is None else _split(out, split)


def _split(out: Path, limit: int) -> list[Path]:
    files = [out / "start.sh", out / "run_bundle.py", *_in_order(out)]
    pieces: list[Path] = []
    room = 0
    for file in files:
        size = file.stat().st_size
        if size > limit:
            raise UsageError(
                f"a part of {size} bytes fits in no piece of {limit}", mend="split into larger pieces"
            )
        if size > room:
            pieces.append(out / f"piece-{len(pieces) + 1:02}")
            room = limit
        room -= size
        target = pieces[-1] / file.relative_to(out)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.rename(target)
    shutil.rmtree(out / ARCHIVES)
    return pieces


def _in_order(out: Path) -> Iterator[Path]:
    """An archive's files, its checksums first, so that the host sees at once what is still to come."""
    folders = sorted((out / ARCHIVES).iterdir(), key=lambda folder: (folder.stat().st_mtime_ns, folder.name))
    for folder in folders:
        yield folder / SUMS
        yield from sorted(path for path in folder.iterdir() if path.name != SUMS)


def size(text: str) -> int:
    """``58M`` -> bytes (powers of ten: k, M, G).

    Raises:
        UsageError: it is not a size.
    """
    found = re.fullmatch(r"(\d+)([kMG]?)B?", text)
    if found is None:
        raise UsageError(f"{text!r} is not a size", mend="write it like 58M")
    return int(found[1]) * {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}[found[2]]
