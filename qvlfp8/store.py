"""The store: content-addressed by input digest, written whole or not at all.

::

    .qvlfp8/
      lock                     held (flock) by the run that writes
      unchanged.json           what the last run came to, if it left nothing to do
      unchanged-FORM.json      what `qvlfp8 table` showed last in that form
      tmp/                     what is being made; swept at the next start
      steps/STAGE/DIGEST/      record.json, log.txt, and what the step made: model/ or checkpoint/
      environments/NAME-DIGEST/
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import cast, get_args

from pydantic import ValidationError

from qvlfp8.disk import writing as writing  # noqa: PLC0414  (it is the store's, for most who write)
from qvlfp8.errors import StoreBusyError
from qvlfp8.redaction import redact
from qvlfp8.results import Record, RecordedStage, record_of
from qvlfp8.seen_files import SeenFiles

RECORD = "record.json"
LOG = "log.txt"

_REPLACED = "replaced"
"""How folders in ``tmp/`` begin that were entries, with stage and digest after it."""

_COMMANDS_END_S = 10.0
"""How long the commands of a run that was killed may take to end."""

_SUBJECT = re.compile(rb'"subject": *("(?:[^"\\]|\\.)*")')


class Store:
    """A folder of executed steps and built environments."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tmp = root / "tmp"
        self.environments = root / "environments"
        self._steps = str(root / "steps")
        self._seen = SeenFiles(record_of)
        self._subjects: dict[RecordedStage, dict[str, list[str]]] = {}
        self._lock: int | None = None

    def held(self) -> tuple[int, ...]:
        """The lock's descriptor, while this process has it: who inherits it holds the store as well."""
        return () if self._lock is None else (self._lock,)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the store for writing, and sweep what an interrupted run left half-made.

        Raises:
            StoreBusyError: another run holds it. (The kernel lets go when that process and its commands end.)
            StoreWriteError: the folder cannot be written.
        """
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._take(descriptor)
            self._lock = descriptor
            with writing(self.root):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()} on {socket.gethostname()}".encode(), 0)
                self._put_back()
                shutil.rmtree(self.tmp, ignore_errors=True)
                self.tmp.mkdir(parents=True, exist_ok=True)
            yield
        finally:
            self._lock = None
            os.close(descriptor)

    def _take(self, descriptor: int) -> None:
        deadline = time.monotonic() + _COMMANDS_END_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 300, 0).decode(errors="replace").strip()
                pid, _, host = holder.partition(" on ")
                gone = host == socket.gethostname() and not Path(f"/proc/{pid}").exists()
                if gone and time.monotonic() < deadline:
                    # Its run was killed, and its commands are being ended.
                    time.sleep(0.01)
                    continue
                raise StoreBusyError(
                    f"{self.root}: in use by another run (process {holder or 'unknown'})",
                    mend="wait for it to end, or use another folder (--store)",
                ) from None
            return

    def _put_back(self) -> None:
        """Give entries back that were moved away for new ones, by a run that was killed before these came."""
        for folder in self.tmp.glob(f"{_REPLACED}-*-*"):
            stage, digest = folder.name.split("-")[1:]
            target = self.root / "steps" / stage / digest
            if not target.exists():
                folder.rename(target)

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

    def log(self, stage: RecordedStage, digest: str) -> str:
        """The end of a step's log, as :func:`end_of`."""
        return end_of(f"{self._steps}/{stage}/{digest}/{LOG}")

    def digests(self) -> frozenset[str]:
        """The digests of all steps that have an entry now, whole or not."""
        stages = (f"{self._steps}/{stage}" for stage in get_args(RecordedStage))
        # No Path: of many entries, making one for each takes longer than to list them.
        return frozenset(name for stage in stages if os.path.isdir(stage) for name in os.listdir(stage))  # noqa: PTH112, PTH208

    def records(self) -> Iterator[Record]:
        """Every record that is whole, by stage and digest; many are of no current step."""
        for path in sorted(self.root.glob(f"steps/*/*/{RECORD}")):
            stage, digest = path.parts[-3:-1]
            if stage in get_args(RecordedStage) and (
                found := self.record(cast("RecordedStage", stage), digest)
            ):
                yield found

    def older(self, stage: RecordedStage, subject: str, *, than: str) -> Record | None:
        """The newest record of that stage and subject under another digest; an ``error`` says nothing.

        Newest by its own clock; of two that say the same time, always the same one.
        """
        digests = self._digests_of(stage).get(subject, [])
        found = (self.record(stage, digest) for digest in digests if digest != than)
        said = [record for record in found if record and record.status != "error"]
        return max(said, key=lambda record: (record.started, record.digest), default=None)

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
        again) is replaced; if the disk refuses, it stays.

        Raises:
            StoreWriteError: the disk refuses.
        """
        target = self.entry(record.stage, record.digest)
        with writing(target):
            _write_synced(made / RECORD, redact(record.model_dump_json(indent=1, exclude_none=True)) + "\n")
            target.parent.mkdir(parents=True, exist_ok=True)
            away = None
            if target.exists():
                away = self._move_away(target)
            try:
                made.rename(target)
            except OSError:
                if away is not None:
                    away.rename(target)
                raise
            self._subjects.pop(record.stage, None)
            _sync_folder(target.parent)

    def _move_away(self, entry: Path) -> Path:
        away = self.tmp / f"{_REPLACED}-{entry.parent.name}-{entry.name}"
        shutil.rmtree(away, ignore_errors=True)
        entry.rename(away)
        return away


END_BYTES = 200_000
"""As much of a log's end says why a process ended."""


def end_of(log: Path | str) -> str:
    """The last :data:`END_BYTES` of a log; empty if there is none."""
    try:
        with open(log, "rb", buffering=0) as stream:  # noqa: PTH123  (a Path takes longer to make)
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - END_BYTES))
            return stream.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


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
