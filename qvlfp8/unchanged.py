"""What a run with nothing to do came to, and what a table showed, for as long as nothing they read changes.

Reading, judging and drawing ten thousand records takes seconds; to see that none of them has changed takes a
twentieth of one. What counts is each file that could matter - the project's, the committed records, every
record of the store, this package - with the kernel's own marks: inode, size, and the times of its content and
of its status, of which the last is nobody's to set. A file that is another one, was written to, is new or is
gone makes all be read and judged again.

A file can be written to twice in one tick of the kernel's clock: what was changed in the last second before
a run ends is not relied on.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from qvlfp8 import __version__, digest
from qvlfp8.results import RecordedStage
from qvlfp8.seen_files import Mark, mark_at
from qvlfp8.source import PACKAGE
from qvlfp8.store import RECORD, Store
from qvlfp8.yamlfile import Strict

__all__ = ["Outcome", "Unchanged"]

SETTLED_NS = 1_000_000_000
"""How old the newest file has to be: far more than a tick of any kernel or file server."""


_Marked = tuple[str, Mark | None]
"""A file, and its mark if it is there."""


_JUDGED_WITH = ("packaging", "pydantic", "PyYAML", "rich")


class Outcome(Strict):
    """What a run with nothing to do, no error and no surprise has shown, or a table."""

    shown: str
    """On standard output."""
    summary: str = ""


class _Kept(Strict):
    of: str
    """Digest of all that the outcome follows from."""
    outcome: Outcome


class Unchanged:
    """What a run reads, as it was when the run began; and the last outcome that a store keeps."""

    def __init__(
        self, asked: Mapping[str, object], inputs: Sequence[Path], *, kept_as: str = "unchanged"
    ) -> None:
        """Look at what is going to be read: before it is.

        Args:
            asked: what the user asked for, and how it is shown, as JSON values.
            inputs: files and folders that are read, besides the store and this package.
            kept_as: under what name the store keeps the outcome.
        """
        self._name = f"{kept_as}.json"
        self._records: tuple[_Marked, ...] = ()
        libraries = {name: version(name) for name in _JUDGED_WITH}
        self._asked = digest.of_json(
            {**asked, "version": __version__, "python": sys.version, "libraries": libraries}
        )
        self._inputs = (*inputs, PACKAGE)
        self._before = tuple(_marks(self._inputs))

    def outcome(self, store: Store, outputs: Sequence[Path] = ()) -> Outcome | None:
        """What a run would show; None if something has changed, or nothing is kept.

        Args:
            store: whose records are read.
            outputs: files that a run writes, and the user may look at.
        """
        self._records = tuple(_marks_of(store))
        try:
            kept = _Kept.model_validate_json((store.root / self._name).read_bytes())
        except (OSError, ValidationError):
            return None
        of = self._digest((*self._before, *self._records), outputs)
        return kept.outcome if kept.of == of else None

    def keep(self, outcome: Outcome, store: Store, outputs: Sequence[Path] = (), *, held: bool) -> None:
        """Keep what a run came to that has nothing left to do.

        Nothing is kept if an input was changed while the run read it, or just now.

        Args:
            outcome: what it came to.
            store: that it has read.
            outputs: as for :meth:`outcome`.
            held: the store is this run's alone since :meth:`outcome`: what was recorded since is its own.
        """
        inputs, records = tuple(_marks(self._inputs)), tuple(_marks_of(store))
        if not held and records != self._records:
            return
        newest = max(mark[-1] for _, mark in (*inputs, *records) if mark)
        if inputs != self._before or newest > time.time_ns() - SETTLED_NS:
            return
        of = self._digest((*inputs, *records), outputs)
        path = store.root / self._name
        half = path.with_suffix(f".{os.getpid()}.half")
        # It only spares time: where the disk refuses it, it is not there.
        with contextlib.suppress(OSError):
            half.write_text(_Kept(of=of, outcome=outcome).model_dump_json(), encoding="utf-8")
            half.replace(path)

    def _digest(self, marks: Iterable[_Marked], outputs: Sequence[Path]) -> str:
        # What was written just now is told by its content.
        written = [digest.of_file(path) if path.is_file() else None for path in outputs]
        told = hashlib.sha256(f"{self._asked} {written}".encode())
        for name, mark in marks:
            told.update(f"{name}\0{mark}\n".encode(errors="surrogateescape"))
        return told.hexdigest()


def _marks_of(store: Store) -> Iterator[_Marked]:
    for stage in get_args(RecordedStage):
        folder = f"{store.root}/steps/{stage}"
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else ()  # noqa: PTH112, PTH208
        for name in names:
            path = f"{folder}/{name}/{RECORD}"
            yield path, mark_at(path)


def _marks(paths: Sequence[Path]) -> Iterator[_Marked]:
    """Every file of these and in them, with its mark; None for one that is not there.

    What is read may lie behind a link to a folder; each is looked through once, however links lead to it.
    """
    for path in paths:
        if not path.is_dir():
            yield str(path), mark_at(str(path))
        seen: set[tuple[int, int]] = set()
        for folder, inner, files in os.walk(path, followlinks=True):
            mark = mark_at(folder)
            if mark is None or mark[:2] in seen:
                inner.clear()
                continue
            seen.add(mark[:2])
            inner[:] = sorted(set(inner) - {"__pycache__"})
            for name in sorted(files):
                yield f"{folder}/{name}", mark_at(f"{folder}/{name}")
