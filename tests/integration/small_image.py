"""A small image with nothing but this machine's Python and `timeout`: made without a registry."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

from docker import DockerClient

_LEFT_OUT = (
    "site-packages",
    "dist-packages",
    "test",
    "idlelib",
    "tkinter",
    "ensurepip",
    "lib2to3",
    "__pycache__",
)
SECRET = "/etc/secret"  # noqa: S105  (a file's name)
"""A file in the image that only root may read."""


def load(client: DockerClient, tag: str) -> str:
    """Load the image; returns its id."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        _fill(tar)
    client.api.import_image_from_data(stream.getvalue(), repository=tag, tag="latest")
    image = client.images.get(f"{tag}:latest")
    assert image.id is not None
    return image.id


def _fill(tar: tarfile.TarFile) -> None:
    python = Path(sys.executable).resolve()
    standard = Path(sysconfig.get_paths()["stdlib"]).resolve()
    timeout = Path(shutil.which("timeout") or "/usr/bin/timeout").resolve()
    modules = [
        path
        for path in standard.rglob("*.*")
        if path.suffix in {".py", ".so"} and not set(_LEFT_OUT) & set(path.relative_to(standard).parts)
    ]
    extensions = [path for path in modules if path.suffix == ".so"]
    _add(tar, python, f"/opt/python/bin/{python.name}")
    for path in modules:
        if path.is_file():
            _add(tar, path, f"/opt/python/lib/{standard.name}/{path.relative_to(standard)}")
    _add(tar, timeout, "/usr/bin/timeout")
    for library in _libraries(python, timeout, *extensions):
        # The loader by its full name, the rest where every loader looks.
        _add(tar, Path(library), library if "/ld-" in library else f"/usr/lib/{Path(library).name}")
    link = tarfile.TarInfo("opt/env/bin/python")
    link.type, link.linkname = tarfile.SYMTYPE, f"/opt/python/bin/{python.name}"
    _add_parents(tar, Path(link.name))
    tar.addfile(link)
    secret = tarfile.TarInfo(SECRET.lstrip("/"))
    secret.mode, secret.size = 0o600, 6
    tar.addfile(secret, io.BytesIO(b"secret"))
    # As in any image; runc gives a tmpfs the mode of the folder that it covers.
    for name, mode in {
        "tmp": 0o1777,
        "var/open": 0o1777,
        "root": 0o700,
        "proc": 0o755,
        "sys": 0o755,
        "dev": 0o755,
    }.items():
        folder = tarfile.TarInfo(name)
        folder.type, folder.mode = tarfile.DIRTYPE, mode
        tar.addfile(folder)


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    info = tarfile.TarInfo(name.lstrip("/"))
    info.size, info.mode = path.stat().st_size, 0o755
    _add_parents(tar, Path(info.name))
    with path.open("rb") as stream:
        tar.addfile(info, stream)


def _add_parents(tar: tarfile.TarFile, path: Path) -> None:
    """A folder that a daemon makes by itself, not everybody may enter in some storage drivers."""
    there = set(tar.getnames())
    for parent in reversed(path.parents[:-1]):
        if str(parent) not in there:
            folder = tarfile.TarInfo(str(parent))
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)


def _libraries(*programs: Path) -> set[str]:
    said = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=False).stdout
    return set(re.findall(r"(?:=> |^\s+)(/\S+) \(0x", said, flags=re.MULTILINE))
