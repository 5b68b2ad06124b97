"""Files that were read before and have not changed since: what was made of them is kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Mark", "SeenFiles", "mark_at"]

Made = TypeVar("Made")
Mark = tuple[int, int, int, int, int]
"""Device, inode, size in bytes, and when its content and its status were last changed, in ns since 1970."""


_BLOCK = 1 << 20


class SeenFiles(Generic[Made]):
    """What was made of files, by path; one that is another file since, or was written to, is read again.

    A run asks for its records before it executes and after; reading and checking them is most of what it
    does where there is nothing to execute. The kernel notes when a file was changed (``ctime``); nobody sets
    it.
    """

    def __init__(self, make: Callable[[bytes], Made]) -> None:
        """``make`` makes of a file's bytes what is wanted; what it raises is not kept."""
        self._make = make
        self._known: dict[str, tuple[Mark, Made]] = {}

    def read(self, path: str) -> Made:
        """What was made of the file.

        Raises:
            OSError: it cannot be read.
        """
        known = self._known.get(path)
        if known is not None and known[0] == mark_at(path):
            return known[1]
        # Not open(): it asks the kernel four things more, and there are thousands of files.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # Before it is read: what is written meanwhile changes the mark.
            status = os.fstat(descriptor)
            content = os.read(descriptor, status.st_size + 1)
            # A file server may give less at once than it was asked for.
            while more := os.read(descriptor, _BLOCK):
                content += more
        finally:
            os.close(descriptor)
        made = self._make(content)
        self._known[path] = (_mark(status), made)
        return made


def mark_at(path: str) -> Mark | None:
    """What another file, or the same with other content, would have otherwise; None if there is none."""
    try:
        return _mark(os.stat(path))  # noqa: PTH116  (a Path takes longer to make)
    except OSError:
        return None


def _mark(status: os.stat_result) -> Mark:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
