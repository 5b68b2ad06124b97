"""Folders of this machine as a step's user sees them: who may read them, and whose the outputs are."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from qvlfp8.engine.docker_plan import Bind, User, may_read
from qvlfp8.errors import UsageError
from qvlfp8.store import writing

_ROOTS_HOME = Path("/root")


def check_readable(paths: Iterable[Path], user: User) -> None:
    """See that a step can read its inputs: a folder, and the files in it.

    Inside a container "permission denied" often shows up as something else. A step that is the caller
    can read what the caller can; only another user is checked.

    Raises:
        UsageError: it cannot; the message names the file.
    """
    if not user.gives:
        return
    for path in paths:
        files = [entry for entry in path.iterdir() if entry.is_file()] if path.is_dir() else []
        for entry in (path, *files):
            status = entry.stat()
            owner = (status.st_uid, status.st_gid)
            if not may_read(status.st_mode, owner, user.ids, folder=stat.S_ISDIR(status.st_mode)):
                raise UsageError(
                    f"{entry}: not readable for user {user.ids[0]}, as whom steps of root run in containers",
                    mend=f"chmod -R o+rX {path}",
                )


def links_out(folders: Iterable[Path]) -> Iterator[tuple[Path, Path]]:
    """Where symbolic links in folders point, and the files they lead to: a snapshot of a model hub is links.

    Links to what is not there are left out.
    """
    for folder in folders:
        for entry in folder.rglob("*"):
            if entry.is_symlink() and entry.is_file():
                yield Path(os.path.normpath(entry.parent / entry.readlink())), entry.resolve()


@contextlib.contextmanager
def reachable(mounts: tuple[Bind, ...], user: User) -> Iterator[tuple[Bind, ...]]:
    """The mounts, and for those below ``/root`` a way there: an image's own ``/root`` lets only root through.

    The way is a folder of this machine that holds nothing but the places of the mounts, while they last.
    """
    below = [bind for bind in mounts if _ROOTS_HOME in bind.path.parents]
    if not below or user.ids[0] == 0 or any(bind.path == _ROOTS_HOME for bind in mounts):
        yield mounts
        return
    with tempfile.TemporaryDirectory(prefix="qvlfp8-") as folder:
        way = Path(folder)
        for bind in below:
            place = way / bind.path.relative_to(_ROOTS_HOME)
            if bind.source.is_dir():
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
        for entry in (way, *way.rglob("*")):
            entry.chmod(0o755)
        yield (Bind(source=way, path=_ROOTS_HOME), *mounts)


@contextlib.contextmanager
def given(folders: Iterable[Path], user: User) -> Iterator[None]:
    """Output folders that belong to the step while it runs, and to the caller again afterwards.

    Raises:
        StoreWriteError: they cannot be given.
    """
    if not user.gives:
        yield
        return
    folders = tuple(folders)
    for folder in folders:
        with writing(folder):
            hand_over(folder, *user.ids)
    try:
        yield
    finally:
        for folder in folders:
            # One that is finished has been handed back and moved away.
            if folder.exists():
                hand_over(folder, os.getuid(), os.getgid())


def hand_over(folder: Path, uid: int, gid: int) -> None:
    """Change the owner of a folder and all in it; no link in it leads anywhere else."""
    for _, folders, files, descriptor in os.fwalk(folder, follow_symlinks=False):
        os.fchown(descriptor, uid, gid)
        for name in (*folders, *files):
            with contextlib.suppress(FileNotFoundError):
                os.chown(name, uid, gid, dir_fd=descriptor, follow_symlinks=False)
