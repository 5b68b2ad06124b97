"""A node's own store: environments, what was fetched, what tasks make. Several tasks use it at once."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from qvlfp8.cluster.shared import SharedStore
from qvlfp8.errors import DamagedEntryError
from qvlfp8.results import RecordedStage
from qvlfp8.store import RECORD, Store, writing

VARIABLE = "QVLFP8_NODE_STORE"
"""The environment variable of a node that says where its store is."""


def default_root() -> Path:
    """Where a node's store is: what :data:`VARIABLE` says there, else the user's cache."""
    if named := os.environ.get(VARIABLE):
        return Path(named).resolve()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache").resolve() / "qvlfp8"


class NodeStore(Store):
    """A store without one holder: each task has a scratch of its own, which goes when the task has ended."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._all_tmp = root / "tmp"
        self._locks = root / "locks"
        self.tmp = self._all_tmp / uuid.uuid4().hex
        self._held: list[int] = []

    def held(self) -> tuple[int, ...]:
        """What this task has locked: its commands hold it as well, until they have ended."""
        return tuple(self._held)

    @contextlib.contextmanager
    def _holding(self, descriptor: int | None) -> Iterator[None]:
        if descriptor is None:
            yield
            return
        self._held.append(descriptor)
        try:
            yield
        finally:
            self._held.remove(descriptor)
            os.close(descriptor)

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Have a scratch for the time of a task; those of tasks that were killed are removed.

        Raises:
            StoreWriteError: the folder cannot be written.
        """
        with writing(self.root):
            for folder in (self._all_tmp, self._locks):
                folder.mkdir(parents=True, exist_ok=True)
            held = _locked(self.tmp.with_suffix(".lock"), wait=True)
            self._sweep()
            self.tmp.mkdir()
        with self._holding(held):
            try:
                yield
            finally:
                shutil.rmtree(self.tmp, ignore_errors=True)
                self.tmp.with_suffix(".lock").unlink(missing_ok=True)

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Wait for whoever does the same on this node, such as building an environment."""
        with writing(self._locks):
            held = _locked(self._locks / f"{name}.lock", wait=True)
        with self._holding(held):
            yield

    def fetch(self, shared: SharedStore, stage: RecordedStage, digest: str) -> bool:
        """Have a step's entry here as it is in the shared store; False if it is not there.

        Raises:
            DamagedEntryError: a file is not what it says; the entry is dropped.
            SharedStoreError: it cannot be read.
            StoreWriteError: this node's disk refuses.
        """
        entry = shared.entry(stage, digest)
        if entry is None:
            return False
        with self.alone(f"{stage}-{digest}"):
            own = self.record(stage, digest)
            if own is not None and own.made == entry.made:
                return True
            scratch = self.scratch("fetch")
            with writing(scratch):
                try:
                    shared.get(stage, digest, scratch)
                except DamagedEntryError:
                    # The next run makes it anew.
                    shared.forget(stage, digest)
                    raise
                self.take(scratch, stage, digest)
        return self.record(stage, digest) is not None

    def take(self, folder: Path, stage: RecordedStage, digest: str) -> None:
        """Make a folder that has its record an entry; one that is there is replaced."""
        target = self.entry(stage, digest)
        if not (folder / RECORD).exists():
            raise FileNotFoundError(folder / RECORD)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            target.rename(self.tmp / f"replaced-{uuid.uuid4().hex}")
        folder.rename(target)

    def _sweep(self) -> None:
        """Remove what tasks left whose process is gone: the kernel has let go of their locks."""
        own = f"{self.tmp.name}.lock"
        for name in os.listdir(self._all_tmp):  # noqa: PTH208  (for every task; most have nothing to sweep)
            lock = self._all_tmp / name
            if lock.suffix != ".lock" or name == own:
                continue
            held = _locked(lock, wait=False)
            if held is not None:
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)
                os.close(held)


def _locked(path: Path, *, wait: bool) -> int | None:
    """Descriptor of a file that is held; None if somebody else holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
