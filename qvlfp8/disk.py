"""What a disk's refusals mean."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from qvlfp8.errors import StoreWriteError

__all__ = ["writing"]

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
