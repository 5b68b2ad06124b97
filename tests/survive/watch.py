"""What happens in a store's folders, as it happens (inotify): what kills are aimed at."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from tests.survive.kept import Key

Event = Literal[
    "locked", "sweep", "scratch", "record", "commit", "replace", "environment", "built", "view", "uploading",
    "uploaded",
]  # fmt: skip
"""``record``: a record is being written; ``commit``: a finished step was renamed to its place. In the shared
store of a cluster, ``shared/``: an upload has begun (``uploading``), its entry is there (``uploaded``)."""

EVENTS: tuple[Event, ...] = get_args(Event)

_MODIFY, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x80, 0x100, 0x200
_MASK = _MODIFY | _MOVED_TO | _CREATE | _DELETE
_IS_FOLDER = 0x40000000
_HEADER = struct.Struct("iIII")


class Watch:
    """Watches one store; folders that appear are watched as well."""

    def __init__(self, root: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._root = root
        self._paths: dict[int, Path] = {}
        self.uploads: dict[Key, dict[tuple[int, int], float]] = {}
        """When entries of the shared store were written, by step: one for each time (inode, time)."""
        self._missed: list[Event] = []
        root.mkdir(parents=True, exist_ok=True)
        self._add(root)
        self._missed.clear()

    def close(self) -> None:
        """Watch no more."""
        os.close(self._descriptor)

    def wait(self, seconds: float) -> Iterator[Event]:
        """The events of the next ``seconds``, each as it comes."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([self._descriptor], [], [], left)
            if ready:
                yield from self._read()

    def _read(self) -> Iterator[Event]:
        buffer = os.read(self._descriptor, 1 << 16)
        at = 0
        while at < len(buffer):
            watch, mask, _, length = _HEADER.unpack_from(buffer, at)
            at += _HEADER.size
            name = buffer[at : at + length].rstrip(b"\0").decode()
            at += length
            folder = self._paths.get(watch)
            if folder is None:
                continue
            path = folder / name
            # Watched before it is told, what happens in it next is not missed.
            if mask & _IS_FOLDER and mask & (_CREATE | _MOVED_TO) and self._is_watched(path):
                self._add(path)
                # What came before the watch did.
                yield from self._missed
                self._missed.clear()
            event = self._event(path.relative_to(self._root).parts, mask)
            if event == "uploaded":
                self._uploaded(path)
            if event is not None:
                yield event

    def _is_watched(self, path: Path) -> bool:
        parts = path.relative_to(self._root).parts
        depth = {"tmp": 2, "steps": 2, "environments": 2, "shared": 4}
        return len(parts) <= depth.get(parts[0], 0) and not (parts[0] == "tmp" and "replaced" in parts[-1])

    def _add(self, path: Path) -> None:
        watch = self._libc.inotify_add_watch(self._descriptor, os.fsencode(path), _MASK)
        if watch < 0:
            return
        self._paths[watch] = path
        for entry in _inside(path):
            if entry.is_dir() and not entry.is_symlink() and self._is_watched(entry):
                self._add(entry)
            elif entry.name == "entry.json":
                self._uploaded(entry)
                self._missed.append("uploaded")

    def _uploaded(self, entry: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            stat = entry.stat()
            stage, step = entry.parts[-3:-1]
            self.uploads.setdefault((stage, step), {})[stat.st_ino, stat.st_mtime_ns] = stat.st_mtime

    @staticmethod
    def _event(parts: tuple[str, ...], mask: int) -> Event | None:
        match parts:
            case ("lock",) if mask & _MODIFY:
                return "locked"
            case ("matrix.md" | "matrix.json",):
                return "view"
            case ("tmp",) | ("tmp", _) if mask & _DELETE:
                return "sweep"
            case ("tmp", name) if name.startswith("replaced-"):
                return "replace" if mask & _MOVED_TO else None
            case ("tmp", _) if mask & _CREATE:
                return "scratch"
            case ("tmp", _, "record.json") if mask & (_CREATE | _MODIFY):
                return "record"
            case ("steps", _, _) if mask & _MOVED_TO:
                return "commit"
            case ("shared", "steps", _, _, "entry.json") if mask & _MOVED_TO:
                return "uploaded"
            case ("shared", "steps", _, _, _) if mask & _CREATE and mask & _IS_FOLDER:
                return "uploading"
            case ("environments", _, "complete.json"):
                return "built"
            case ("environments", *_) if mask & (_CREATE | _MOVED_TO | _DELETE):
                return "environment"
        return None


def _inside(folder: Path) -> list[Path]:
    """What a folder holds; nothing if it has gone meanwhile."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
