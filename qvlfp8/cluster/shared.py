"""The store that all nodes reach: finished steps below an fsspec URL (``file://``, ``s3://``, ``gs://`` …).

::

    URL/steps/STAGE/DIGEST/UUID/        record.json, log.txt, model/ or checkpoint/ …
    URL/steps/STAGE/DIGEST/entry.json   names one such folder, and size and SHA-256 of every file in it

``entry.json`` is written last and in one piece: until then there is no entry. What is fetched is checked
against it, so that a file which was cut short, changed or lost is never taken for the step's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

from pydantic import ValidationError

from qvlfp8.errors import DamagedEntryError, SharedStoreError, UsageError
from qvlfp8.results import Digest, RecordedStage
from qvlfp8.yamlfile import Strict

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

ENTRY = "entry.json"

_STREAMS = 8
"""Files that are copied at a time."""

_SMALL_BYTES = 4_000_000
"""Less is copied on a disk faster than threads are started for it; other stores take their time to answer."""

_HALF_MADE_S = 24 * 3600.0
"""After which a folder without an entry is nobody's: its upload was interrupted."""


_PASSWORD = re.compile(
    r"://[^/@]*:[^/]*@"
    r"|^(?!file:)[^:/?]+://.*[?&]([^=&]*(token|secret|passw[a-z]*|credentials?|signature|key)|sig|sas|auth|pwd)=",
    re.IGNORECASE,
)
"""Behind a name, before a host; or among the options behind the path, by their names."""


class SharedFile(Strict):
    """One file of an entry."""

    size: int
    sha256: Digest


class Entry(Strict):
    """A finished step: the folder that holds it, the digest of what it made, its files by relative name."""

    folder: str
    made: Digest | None
    files: dict[str, SharedFile]


class SharedStore:
    """Finished steps below a URL."""

    def __init__(self, url: str) -> None:
        """Find the file system.

        Raises:
            UsageError: a password is in it: every task, and what is said of it, would have that.
            SharedStoreError: nothing handles such a URL here, or it cannot be reached.
        """
        if _PASSWORD.search(url):
            raise UsageError(
                "--shared: a password or token in the URL would go to every task",
                mend="leave it out, and set FSSPEC_SCHEME_OPTION (as FSSPEC_FTP_PASSWORD) on every node",
            )
        self.url = url
        with self._reached("opened"):
            from fsspec.core import url_to_fs

            try:
                found: tuple[AbstractFileSystem, str] = url_to_fs(url)
            except (ImportError, ValueError) as error:
                raise SharedStoreError(
                    f"{url}: {error}", mend="install what handles it (s3fs, gcsfs, …) on every node"
                ) from None
        self._fs, root = found
        self._root = root.rstrip("/")
        self._local = "file" in _protocols(self._fs)

    def entries(self) -> frozenset[tuple[RecordedStage, str]]:
        """Stage and digest of everything that is there, by one listing.

        Raises:
            SharedStoreError: it cannot be read.
        """
        with self._reached("listed"):
            self._fs.invalidate_cache()
            found = self._fs.glob(f"{self._root}/steps/*/*/{ENTRY}")
        stages = get_args(RecordedStage)
        parts = (PurePosixPath(path).parts[-3:-1] for path in found)
        return frozenset((cast("RecordedStage", stage), digest) for stage, digest in parts if stage in stages)

    def entry(self, stage: RecordedStage, digest: str) -> Entry | None:
        """A step's entry; None if it is not there, or not whole.

        Raises:
            SharedStoreError: it cannot be read.
        """
        with self._reached("read"):
            try:
                return Entry.model_validate_json(self._fs.cat_file(f"{self._place(stage, digest)}/{ENTRY}"))
            except (FileNotFoundError, ValidationError):
                return None

    def put(self, stage: RecordedStage, digest: str, folder: Path, made: str | None) -> None:
        """Take a finished step in; one that was there before is replaced, in one moment.

        Args:
            stage: of the step.
            digest: of the step.
            folder: its entry in a :class:`qvlfp8.store.Store`.
            made: digest of what it made, as its record says.

        Raises:
            SharedStoreError: it cannot be written, or a file cannot be read.
        """
        name = uuid.uuid4().hex
        place = self._place(stage, digest)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        first = self._local and not Path(place).exists()

        def send(path: Path) -> tuple[str, SharedFile]:
            relative = path.relative_to(folder).as_posix()
            self._fs.put_file(str(path), f"{place}/{name}/{relative}")
            return relative, SharedFile(size=path.stat().st_size, sha256=_sha256(path))

        with self._reached("written"):
            for parent in {path.parent for path in paths}:
                self._make_folder(f"{place}/{name}/{parent.relative_to(folder).as_posix()}")
            nbytes = sum(path.stat().st_size for path in paths)
            entry = Entry(folder=name, made=made, files=dict(self._copied(send, paths, nbytes)))
            self._write_whole(f"{place}/{ENTRY}", entry.model_dump_json().encode())
            if not first:
                self._sweep(place, name)

    def get(self, stage: RecordedStage, digest: str, into: Path, *, only: str | None = None) -> Entry:
        """Fetch a step's files into an empty folder, and check every one.

        Args:
            stage: of the step.
            digest: of the step.
            into: where they go.
            only: the one file that is wanted [default: all].

        Raises:
            DamagedEntryError: a file is gone, or not what the entry says.
            SharedStoreError: the entry is not there, or cannot be read.
        """
        entry = self.entry(stage, digest)
        if entry is None:
            raise SharedStoreError(f"{self.url}: no whole entry of {stage} {digest}", mend="run again")
        place = self._place(stage, digest)

        def receive(name: str) -> None:
            target = into / _inside(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            source = f"{place}/{entry.folder}/{name}"
            try:
                self._fs.get_file(source, str(target))
            except FileNotFoundError:
                raise DamagedEntryError(f"{source}: it is gone", mend=_MADE_ANEW) from None
            if target.stat().st_size != entry.files[name].size or _sha256(target) != entry.files[name].sha256:
                raise DamagedEntryError(f"{source}: not what was written there", mend=_MADE_ANEW)

        with self._reached("read"):
            names = [name for name in entry.files if only in {None, name}]
            self._copied(receive, names, sum(entry.files[name].size for name in names))
        return entry

    def forget(self, stage: RecordedStage, digest: str) -> None:
        """Drop a step's entry, whose files are not what it says: it is made anew.

        Raises:
            SharedStoreError: it cannot be written.
        """
        with self._reached("written"), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._place(stage, digest)}/{ENTRY}")

    def sign(self, name: str) -> None:
        """Leave a small file, by which others see that they reach the same place.

        Raises:
            SharedStoreError: it cannot be written.
        """
        with self._reached("written"):
            self._make_folder(f"{self._root}/signs")
            self._write_whole(f"{self._root}/signs/{name}", b"")

    def signed(self, name: str) -> bool:
        """Whether such a file is there.

        Raises:
            SharedStoreError: it cannot be read.
        """
        with self._reached("read"):
            self._fs.invalidate_cache()
            return bool(self._fs.exists(f"{self._root}/signs/{name}"))

    def unsign(self, names: list[str]) -> None:
        """Remove such files."""
        for name in names:
            with contextlib.suppress(SharedStoreError, FileNotFoundError), self._reached("written"):
                self._fs.rm_file(f"{self._root}/signs/{name}")

    def _copied(self, copy: Callable[[_Item], _Result], items: list[_Item], nbytes: int) -> list[_Result]:
        """Copy so many bytes, several files at a time where that is worth the threads."""
        if self._local and nbytes < _SMALL_BYTES:
            return [copy(item) for item in items]
        with ThreadPoolExecutor(_STREAMS) as pool:
            return list(pool.map(copy, items))

    def _place(self, stage: str, digest: str) -> str:
        return f"{self._root}/steps/{stage}/{digest}"

    def _make_folder(self, path: str) -> None:
        # A bucket is its owner's to make: it would be made here, under a name that was mistyped.
        if self._local:
            self._fs.makedirs(path, exist_ok=True)

    def _write_whole(self, path: str, content: bytes) -> None:
        if not self._local:
            # An object is there wholly or not at all.
            self._fs.pipe_file(path, content)
            return
        half = f"{path}.{uuid.uuid4().hex}"
        self._fs.pipe_file(half, content)
        Path(half).replace(path)

    def _sweep(self, place: str, current: str) -> None:
        """Remove folders of this step that uploads left half-made, or that were replaced, a day ago."""
        mine = f"{place}/{current}"
        for found in self._fs.ls(place, detail=True):
            name = str(found["name"]).rstrip("/")
            if found["type"] == "directory" and not name.endswith(mine) and self._age(name) > _HALF_MADE_S:
                self._fs.rm(name, recursive=True)

    def _age(self, folder: str) -> float:
        """Seconds since the newest file of a folder was written; 0 where the file system does not say."""
        newest = 0.0
        for path in self._fs.find(folder):
            with contextlib.suppress(NotImplementedError, FileNotFoundError):
                newest = max(newest, self._fs.modified(path).timestamp())
        return time.time() - newest if newest else 0.0

    @contextlib.contextmanager
    def _reached(self, what: str) -> Iterator[None]:
        """Turn what a file system raises into one class; each has exceptions of its own."""
        try:
            yield
        except SharedStoreError:
            raise
        except Exception as error:
            raise SharedStoreError(
                f"{self.url}: cannot be {what}: {error or type(error).__name__}",
                mend="check the URL, its credentials on every node, and that there is space",
            ) from error


_MADE_ANEW = "run again: it is made anew"


def default_url(store: Path) -> str:
    """The shared store of a cluster on one machine, or on machines that share its disk."""
    return f"file://{store / 'shared'}"


def _protocols(fs: AbstractFileSystem) -> tuple[str, ...]:
    said: Any = fs.protocol
    return (said,) if isinstance(said, str) else tuple(said)


def _inside(name: str) -> PurePosixPath:
    """A relative name that leads nowhere else.

    Raises:
        DamagedEntryError: it would.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise DamagedEntryError(f"an entry names {json.dumps(name)}, outside of it", mend=_MADE_ANEW)
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
