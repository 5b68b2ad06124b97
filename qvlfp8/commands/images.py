"""``qvlfp8 base``, ``qvlfp8 build`` and ``qvlfp8 images``."""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qvlfp8 import images
from qvlfp8.engine import Announce
from qvlfp8.engine.docker_daemon import understood
from qvlfp8.engine.process import Processes
from qvlfp8.environments import Environment
from qvlfp8.errors import DaemonError, DaemonPermissionError, QvlError, StoreWriteError, UsageError
from qvlfp8.images import base as bases
from qvlfp8.images import daemon
from qvlfp8.images.listing import Listed, list_images, prune
from qvlfp8.locking import Asked, choose
from qvlfp8.locks import Lock, find_lock, read_lock
from qvlfp8.project import Project
from qvlfp8.store import writing


def make_base(matrix: Path, store: Path | None, *, refresh: bool) -> None:
    """Make the base with mmdebstrap and load it, or ask the registry for base.lock's digests.

    Raises:
        QvlError: by class.
    """
    client = daemon.connect()
    if refresh:
        changed = bases.refresh(client)
        print("\n".join(changed) or f"{bases.BASE_LOCK} is up to date")
        return
    folder = Project.open(matrix, store).store.root / "base"
    started = time.monotonic()
    tar = bases.make(folder, announce=_show(Console(stderr=True)))
    try:
        with understood(), writing(folder):
            loaded = bases.load(client, tar)
            changes = _changes(folder / "packages.json", bases.packages(tar))
    finally:
        tar.unlink()
    print(f"✓ {bases.LOCAL}  {loaded}  {time.monotonic() - started:.0f} s")
    if changes:
        print(f"Debian packages that differ from the base made here before: {', '.join(changes)}")


def _changes(kept: Path, packages: dict[str, str]) -> list[str]:
    """Keep the list of a base's packages; what differs from the list that was kept before."""
    before = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else packages
    kept.write_text(json.dumps(packages, indent=1) + "\n", encoding="utf-8")
    names = sorted(name for name in {*before, *packages} if before.get(name) != packages.get(name))
    return [f"{name} {before.get(name, 'none')} -> {packages.get(name, 'none')}" for name in names]


def run_build(
    matrix: Path,
    store: Path | None,
    names: Sequence[str],
    *,
    base: str | None,
    everything: bool,
    no_cache: bool,
) -> None:
    """Build images; one that cannot be built does not stop the others.

    Raises:
        QvlError: the first that could not be built, by class.
    """
    project = Project.open(matrix, store)
    chosen = [(environment, read_lock(project.matrix, environment, target))
              for environment, target in _asked(project, names, everything=everything)]  # fmt: skip
    console = Console(stderr=True)
    failed: list[QvlError] = []
    processes = Processes(_show(console))
    try:
        for environment, lock in chosen:
            try:
                _build(project, environment, lock, processes, base=base, no_cache=no_cache)
            except (DaemonError, DaemonPermissionError, StoreWriteError):
                raise
            except QvlError as error:
                console.print(f"✗ {environment.id}: {error}", markup=False, highlight=False, soft_wrap=True)
                failed.append(error)
    finally:
        processes.stop()
    if failed:
        raise failed[0]


def _asked(project: Project, names: Sequence[str], *, everything: bool) -> list[Asked]:
    if names:
        chosen = choose(project.matrix, names)
        if bundled := [environment.id for environment, target in chosen if target == "bundle"]:
            raise UsageError(
                f"{bundled[0]}.bundle is for a host's own Python, and no image is made of it",
                mend=f"name {bundled[0]} or {bundled[0]}.cuda",
            )
        return chosen
    cells = project.cells(everything=everything)
    environments = {e.id: e for cell in cells for e in (cell.quantize, cell.serve)}
    locks = {name: find_lock(project.matrix, environment) for name, environment in environments.items()}
    return [(environment, "cpu") for name, environment in environments.items() if not locks[name].unresolved]


def _build(
    project: Project,
    environment: Environment,
    lock: Lock,
    processes: Processes,
    *,
    base: str | None,
    no_cache: bool,
) -> None:
    log = project.store.root / "images" / f"{lock.path.stem}-{lock.digest[:12]}" / "log.txt"
    with writing(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
    started = time.monotonic()
    image = images.build(
        environment, lock, log=log, announce=_show(Console(stderr=True)),
        base=base, no_cache=no_cache, processes=processes,
    )  # fmt: skip
    how = f"built in {time.monotonic() - started:.0f} s" if log.exists() else "up to date"
    print(f"✓ {lock.path.stem}  {image.id}  {image.size / 1e9:.2f} GB  {how}", flush=True)


def show_images(matrix: Path, store: Path | None, *, remove: bool, as_json: bool) -> None:
    """List our images, and with ``remove`` take away those that are out of date.

    Raises:
        QvlError: by class.
    """
    project = Project.open(matrix, store)
    client = daemon.connect()
    with understood():
        listed = list_images(client, project.matrix)
        removed, used = prune(client, listed) if remove else ([], [])
    for one in removed:
        print(f"removed {one.name}  {one.image.size / 1e9:.2f} GB", file=sys.stderr)
    for one in used:
        print(f"kept    {one.name}: a container uses it", file=sys.stderr)
    listed = [one for one in listed if one not in removed]
    if as_json:
        print(json.dumps([_json(one) for one in listed], indent=1))
    else:
        _print(listed)


def _json(one: Listed) -> dict[str, object]:
    return {**one.image.__dict__, "name": one.name, "current": one.current, "cells": one.cells}


def _print(listed: Sequence[Listed]) -> None:
    grid = Table(box=None, pad_edge=False)
    for column in ("image", "for", "id", "GB", "age", "cells", ""):
        grid.add_column(column, no_wrap=True, justify="right" if column in {"GB", "age", "cells"} else "left")
    for one in listed:
        state = "up to date" if one.current else "out of date"
        grid.add_row(
            one.name, one.image.target, one.image.id.removeprefix("sha256:")[:12],
            f"{one.image.size / 1e9:.2f}", _age(one.image.created), str(one.cells or ""),
            state if one.image.environment else "base",
        )  # fmt: skip
    Console(width=max(Console().width, Console(width=1000).measure(grid).maximum)).print(grid)
    if not listed:
        print("no images yet; `qvlfp8 build` makes them")


def _age(created: str) -> str:
    seconds = (datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(created)).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _show(console: Console) -> Announce:
    def show(command: str) -> None:
        console.print(f"$ {command}", markup=False, highlight=False, soft_wrap=True)

    return show
