"""Real limits of this machine for tests: a group of processes with so much memory, small disks.

Each needs root and says in one line why a test is skipped without it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def memory_group(nbytes: int) -> Iterator[Path]:
    """A control group whose processes may use so much memory: the file that takes a process's id."""
    if os.geteuid() != 0:
        pytest.skip("a real limit of memory needs root")
    version_2 = (_V2 / "cgroup.controllers").exists()
    group = (_V2 if version_2 else _V1) / f"qvlfp8-test-{uuid.uuid4().hex}"
    try:
        group.mkdir()
        limit = group / ("memory.max" if version_2 else "memory.limit_in_bytes")
        limit.write_text(str(nbytes))
    except OSError as error:
        pytest.skip(f"a real limit of memory needs control groups that can be written: {error}")
    try:
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """A disk in memory at ``folder``, such as ``size=12m`` or ``ro``."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The same folder over itself, as a disk that cannot be written."""
    _mount("--bind", str(folder), str(folder))
    try:
        _mount("-o", "remount,bind,ro", str(folder))
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def resize(folder: Path, size: str) -> None:
    """Make a disk in memory larger or smaller."""
    _mount("-o", f"remount,size={size}", str(folder))


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a small disk needs the right to mount: {done.stderr.strip()}")
