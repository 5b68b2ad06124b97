"""Seeing what this process opens, writes and runs: Python's own audit events, for a while."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PATHS = frozenset(
    {"open", "os.listdir", "os.scandir", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link"}
)
_NEVER = ("pickle.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.", "exec")
_HARMLESS = (sys.prefix, sys.base_prefix, "/usr/lib", "/usr/share", "/etc/localtime", "/dev/null")

_watches: list[tuple[int, tuple[str, ...], list[str]]] = []
_installed = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    # A hook cannot be removed, and is called for everything: the quick way out comes first.
    if not _watches or (event not in _PATHS and not event.startswith(_NEVER)):
        return
    for thread, allowed, seen in _watches:
        if thread == threading.get_ident():
            _look(event, arguments, allowed, seen)


def _look(event: str, arguments: tuple[Any, ...], allowed: tuple[str, ...], seen: list[str]) -> None:
    if event not in _PATHS:
        if event != "exec":  # the body of a module that is imported from the package
            seen.append(f"{event} {arguments!r}")
        return
    path = arguments[0]
    if isinstance(path, int) or path is None:
        return
    real = os.path.realpath(os.fsdecode(path))
    if not any(real == folder or real.startswith(f"{folder}/") for folder in allowed):
        seen.append(f"{event} {real}")


@contextmanager
def watched(source: Path, out: Path) -> Iterator[list[str]]:
    """Note what this thread does with files outside both folders, and what it unpickles or runs.

    Where links lead counts. Python's own files and this project's count as inside, and so does
    the temporary folder beside ``out`` in which it is made.
    """
    global _installed  # noqa: PLW0603  (an audit hook stays for good)
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    project = str(Path(__file__).parents[2])
    parent = os.path.realpath(out.parent)
    of_the_parent = {f"os.mkdir {parent}", f"open {parent}"}
    made = str(out.parent / f".{out.name}")
    allowed = tuple(os.path.realpath(path) for path in (source, out, project, *_HARMLESS))
    seen: list[str] = []
    _watches.append((threading.get_ident(), allowed, seen))
    try:
        yield seen
    finally:
        _watches.pop()
        seen[:] = [event for event in seen if event not in of_the_parent and f" {made}" not in event]
