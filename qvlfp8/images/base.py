"""The base of every image: Debian with Python, its headers and a compiler.

Made here with mmdebstrap, bit for bit the same from the same Debian packages, and loaded with an id that
follows from its content; or, where a registry can be reached, one that ``containers/base.lock`` names.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qvlfp8 import digest
from qvlfp8.engine import Announce
from qvlfp8.engine.process import Processes
from qvlfp8.errors import BuildError, FileFormatError, ImageError
from qvlfp8.images.archive import EPOCH, Configuration, write
from qvlfp8.images.image import KIND, tags
from qvlfp8.source import PACKAGE
from qvlfp8.store import writing

if TYPE_CHECKING:
    from docker import DockerClient

CONTAINERS = PACKAGE.parent / "containers"
BASE_LOCK = CONTAINERS / "base.lock"
LOCAL = "qvlfp8-base"
"""The name of a base made here; its tag is Debian's release."""

_PYTHON = "qvlfp8.python"
_RELEASE, _RELEASE_PYTHON = "bookworm", "3.11"
_PACKAGES = ("python3", "python3-dev", "gcc", "g++", "libc6-dev", "libnuma1", "ca-certificates")
"""Triton and torch compile at run time, for which they need headers and compilers; vLLM's CPU build
needs libnuma."""

_LINE = re.compile(r"^(?P<python>3\.\d+) (?P<name>[^@\s]+)@(?P<digest>sha256:[0-9a-f]{64})$")


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base: the name to build on, and its digest, which an image's label keeps."""

    name: str
    digest: str
    named: bool = False
    """By the user."""


def choose(client: DockerClient, python: str, named: str | None) -> Base:
    """The base for a lock: the one named, else the one made here, else the one of base.lock.

    Args:
        python: of the lock, such as ``3.11``.

    Raises:
        ImageError: the one named is for another architecture, or there is none for this Python.
        FileFormatError: base.lock is not valid.
    """
    from docker.errors import ImageNotFound

    if named is not None:
        try:
            image = client.images.get(named)
        except ImageNotFound:
            # BuildKit fetches it; without a digest in it, the name is all there is to know it by.
            return Base(name=named, digest=named, named=True)
        check_architecture(named, str(image.attrs["Architecture"]))
        return Base(name=named, digest=str(image.id), named=True)
    # One label to filter by: Podman finds nothing by two.
    for entry in client.api.images(filters={"label": [f"{KIND}=base"]}):
        for tag in tags(entry):
            if tag.startswith(f"{LOCAL}:") and entry["Labels"].get(_PYTHON) == python:
                return Base(name=tag, digest=str(entry["Id"]))
    pinned = read_lock()
    if python not in pinned:
        raise ImageError(
            f"there is no base with Python {python}",
            mend=f"add one to {BASE_LOCK}, or name one (--base)",
        )
    return Base(name=pinned[python], digest=pinned[python])


def this_architecture() -> str:
    """This machine's architecture, as Docker names it."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def check_architecture(name: str, architecture: str) -> None:
    """Refuse an image that this machine cannot run.

    Raises:
        ImageError: it is for another architecture.
    """
    here = this_architecture()
    if architecture != here:
        raise ImageError(
            f"{name} is for {architecture}, and this machine is {here}", mend="name a base for this machine"
        )


def read_lock(path: Path = BASE_LOCK) -> dict[str, str]:
    """Python -> ``name@digest``.

    Raises:
        FileFormatError: a line is not ``PYTHON NAME@sha256:DIGEST``, or the file is not there.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise FileFormatError(f"{path} is missing", mend="run from a clone of the repository") from None
    found = {}
    for number, line in enumerate(lines, start=1):
        if not line or line.startswith("#"):
            continue
        match = _LINE.match(line)
        if match is None:
            raise FileFormatError(
                f"{path}:{number}: not `PYTHON NAME@sha256:DIGEST`: {line}", mend="qvlfp8 base --refresh"
            )
        found[match["python"]] = f"{match['name']}@{match['digest']}"
    return found


def refresh(client: DockerClient, path: Path = BASE_LOCK) -> list[str]:
    """Ask the registry for today's digests and write them; returns the lines that changed.

    Raises:
        ImageError: the registry does not answer, or has not got the name.
    """
    from docker.errors import APIError

    text = path.read_text(encoding="utf-8")
    changed = []
    for python, pinned in read_lock(path).items():
        name = pinned.partition("@")[0]
        try:
            found = f"{name}@{client.images.get_registry_data(name).id}"
        except APIError as error:
            raise ImageError(
                f"the registry does not say what {name} is: {error.explanation or error}",
                mend="run this where the registry can be reached; `nox -s base` needs none",
            ) from None
        if found != pinned:
            text = text.replace(f"{python} {pinned}\n", f"{python} {found}\n")
            changed.append(f"{python} {found}")
    path.write_text(text, encoding="utf-8")
    return changed


def make(folder: Path, *, announce: Announce) -> Path:
    """Make the base's file system as a tar in a folder, bit for bit the same each time.

    Raises:
        BuildError: mmdebstrap is not there, or fails; its own words are in ``mmdebstrap.log`` there.
    """
    if shutil.which("mmdebstrap") is None:
        raise BuildError(
            "mmdebstrap is not installed",
            mend="apt-get install mmdebstrap, or build on a base that a registry has (--base)",
        )
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    target, log = folder / "base.tar", folder / "mmdebstrap.log"
    log.unlink(missing_ok=True)
    command = [
        "mmdebstrap", "--variant=minbase", "--format=tar", f"--include={','.join(_PACKAGES)}",
        '--aptopt=Acquire::Retries "5"',
        *(f"--dpkgopt=path-exclude={path}" for path in (
            "/usr/share/man/*", "/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*")),
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        # They are copies of this machine's; whoever runs a container gives it its own.
        '--customize-hook=rm "$1/etc/hostname" "$1/etc/resolv.conf"',
        _RELEASE, str(target),
    ]  # fmt: skip
    variables = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH)}
    ended = Processes(announce).run(command, environment=variables, log=log)
    if ended.code != 0:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-3:]
        raise BuildError(f"mmdebstrap ended with {ended.code}: {' '.join(last)}", mend=f"see {log}")
    return target


def packages(tar: Path) -> dict[str, str]:
    """Debian package -> version, of what is installed in a base's file system."""
    with tarfile.open(tar) as archive:
        status = archive.extractfile("./var/lib/dpkg/status")
        text = status.read().decode() if status else ""
    entries = re.findall(r"^Package: (\S+)$(?:.*\n)*?^Version: (\S+)$", text, flags=re.MULTILINE)
    return dict(sorted(entries))


def load(client: DockerClient, tar: Path) -> str:
    """Load a base's file system; returns the image's id, which follows from the content alone."""
    layer = f"sha256:{digest.of_file(tar)}"
    made = Configuration(
        layers=(layer,),
        architecture=this_architecture(),
        made_by=(f"mmdebstrap {_RELEASE}",),
        settings={
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"],
            "Cmd": ["/bin/bash"],
            "Labels": {KIND: "base", _PYTHON: _RELEASE_PYTHON},
        },
    )
    archive = tar.with_name("base.docker.tar")
    try:
        write(made, archive, tar)
        with archive.open("rb") as stream:
            client.images.load(stream)
    finally:
        archive.unlink(missing_ok=True)
    client.images.get(made.id).tag(LOCAL, _RELEASE)
    return made.id
