"""The store: content-addressed by input digest, written whole or not at all.

::

    .qvlfp8/
      lock                     held (flock) by the run that writes
      tmp/                     what is being made; swept at the next start
      steps/STAGE/DIGEST/      record.json, log.txt, and what the step made: model/ or checkpoint/
      environments/NAME-DIGEST/
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import cast, get_args

from pydantic import ValidationError

from qvlfp8.errors import StoreBusyError, StoreWriteError
from qvlfp8.results import Record, RecordedStage
from qvlfp8.seen_files import SeenFiles

RECORD = "record.json"
LOG = "log.txt"

_SUBJECT = re.compile(rb'"subject": *("(?:[^"\\]|\\.)*")')

_CANNOT_WRITE = {
    errno.ENOSPC,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EDQUOT,
    errno.ENOENT,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EISDIR,
    errno.EIO,
    errno.ENOTDIR,
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the disk's refusals into a :class:`StoreWriteError` that names the place and the mend.

    Raises:
        StoreWriteError: no space left, quota, read-only file system, no permission.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        raise StoreWriteError(
            f"{error.filename or path}: {os.strerror(error.errno or 0).lower()}",
            mend="free some space and run again; finished work is kept"
            if full
            else "make it writable, or name another folder (--store)",
        ) from error


class Store:
    """A folder of executed steps and built environments."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tmp = root / "tmp"
        self.environments = root / "environments"
        self._steps = str(root / "steps")
        self._seen = SeenFiles(Record.model_validate_json)
        self._subjects: dict[RecordedStage, dict[str, list[str]]] = {}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the store for writing, and sweep what an interrupted run left half-made.

        Raises:
            StoreBusyError: another run holds it. (The kernel lets go when that process ends.)
            StoreWriteError: the folder cannot be written.
        """
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 64, 0).decode(errors="replace").strip()
                raise StoreBusyError(
                    f"{self.root}: in use by another run (process {holder or 'unknown'})",
                    mend="wait for it to end, or use another folder (--store)",
                ) from None
            with writing(self.root):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
                shutil.rmtree(self.tmp, ignore_errors=True)
                self.tmp.mkdir(parents=True, exist_ok=True)
            yield
        finally:
            os.close(descriptor)

    def entry(self, stage: RecordedStage, digest: str) -> Path:
        """Where a step's entry is, whether or not it is there."""
        return self.root / "steps" / stage / digest

    def record(self, stage: RecordedStage, digest: str) -> Record | None:
        """The step's record; None if it was not executed, or its entry is not whole or not ours."""
        try:
            # No Path: most steps of a large plan have no entry, and making one takes longer than to see that.
            record = self._seen.read(f"{self._steps}/{stage}/{digest}/{RECORD}")
        except (OSError, ValidationError):
            return None
        # What was executed here names what it read; one that does not could never be told to be stale.
        own = record.digest == digest and record.stage == stage and not record.elsewhere
        return record if own else None

    def records(self) -> Iterator[Record]:
        """Every record that is whole, by stage and digest; many are of no current step."""
        for path in sorted(self.root.glob(f"steps/*/*/{RECORD}")):
            stage, digest = path.parts[-3:-1]
            if stage in get_args(RecordedStage) and (
                found := self.record(cast("RecordedStage", stage), digest)
            ):
                yield found

    def older(self, stage: RecordedStage, subject: str, *, than: str) -> Record | None:
        """The newest record of that stage and subject under another digest; an ``error`` says nothing."""
        digests = self._digests_of(stage).get(subject, [])
        found = (self.record(stage, digest) for digest in digests if digest != than)
        said = [record for record in found if record and record.status != "error"]
        return max(said, key=lambda record: record.started, default=None)

    def _digests_of(self, stage: RecordedStage) -> dict[str, list[str]]:
        """Subject -> digests of its entries, from the first lines of each: most are never read whole."""
        if stage not in self._subjects:
            found = self._subjects.setdefault(stage, {})
            for path in self.root.glob(f"steps/{stage}/*/{RECORD}"):
                with path.open("rb") as stream:
                    subject = _SUBJECT.search(stream.read(1024))
                if subject:
                    found.setdefault(json.loads(subject[1]), []).append(path.parts[-2])
        return self._subjects[stage]

    def scratch(self, name: str) -> Path:
        """A new empty folder on the store's file system.

        Raises:
            StoreWriteError: the folder cannot be written.
        """
        with writing(self.tmp):
            # Not mkdtemp, which shuts everybody else out: another user may have to read what becomes of it.
            folder = self.tmp / f"{name}-{uuid.uuid4().hex}"
            folder.mkdir()
            return folder

    def commit(self, made: Path, record: Record) -> None:
        """Take a finished step in: ``made`` (from :meth:`scratch`) becomes the entry in one rename.

        An entry that is there already (an ``error`` that was tried again, or one that was asked for
        again) is replaced.

        Raises:
            StoreWriteError: the disk refuses.
        """
        target = self.entry(record.stage, record.digest)
        with writing(target):
            _write_synced(made / RECORD, record.model_dump_json(indent=1, exclude_none=True) + "\n")
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                target.rename(self.tmp / f"replaced-{record.stage}-{record.digest}")
            made.rename(target)
            self._subjects.pop(record.stage, None)
            _sync_folder(target.parent)


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
