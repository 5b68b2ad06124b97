"""Pyodide, CPython for browsers: one pinned release of its npm package, fetched once and checked.

The package comes from the npm registry that is configured here (npm, where it is installed, knows its mirrors
and logins), is held against the digest below, and is kept in the user's cache.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import ssl
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from urllib.request import urlopen

from qvlfp8.errors import QvlError

__all__ = ["FILES", "INTEGRITY", "VERSION", "PyodideError", "fetch", "integrity", "runtime"]

VERSION = "0.29.5"
"""CPython 3.13. Releases from 314 on are ES modules alone, which do not load from disk."""

INTEGRITY = "sha512-TkYrUv9m8QmfImADKRmpwZulL48E0uUaBSO+dvRQKyAJc0qh9gu7jn8btyHPh3NZm1r2IH2YrJhIr7Q2B9urAw=="
"""npm's ``dist.integrity`` of the package of :data:`VERSION`."""

FILES = ("pyodide-lock.json", "pyodide.asm.js", "pyodide.asm.wasm", "pyodide.js", "python_stdlib.zip")
"""What of the package runs Python; the rest is types, maps and a console."""

SECONDS = 60.0
"""How long a registry may be silent."""

MAX_BYTES = 50_000_000
"""Most bytes of a package, packed or one file of it: this one has 5.6 MB and 8.6 MB."""


class PyodideError(QvlError):
    """Pyodide cannot be had: no network, or not what was pinned. The site can do without."""


def runtime(cache: Path | None = None, get: Callable[[], bytes] | None = None) -> Mapping[str, bytes]:
    """Give the files of the pinned release by name, from the cache or else from the registry.

    Args:
        cache: where packages are kept; None: the user's cache folder.
        get: what fetches the package; None: :func:`fetch`.

    Raises:
        PyodideError: it cannot be fetched, or is not the package that was pinned.
    """
    kept = (cache or _user_cache()) / f"pyodide-{VERSION}.tgz"
    packed = kept.read_bytes() if kept.is_file() else None
    if packed is None or integrity(packed) != INTEGRITY:
        packed = (get or fetch)()
        if (found := integrity(packed)) != INTEGRITY:
            raise PyodideError(
                f"pyodide {VERSION} from the npm registry is not what was pinned: its digest is {found}",
                mend="check the registry that npm is configured for",
            )
        _keep(kept, packed)
    return _unpacked(packed)


def fetch() -> bytes:
    """Fetch the package: by npm where it is installed, else from the registry that npm's variable names.

    Raises:
        PyodideError: neither can be reached.
    """
    why = []
    for way in (_by_npm, _by_https):
        try:
            return way()
        except (OSError, HTTPException, ValueError, subprocess.SubprocessError) as error:
            why.append(" ".join(str(error).split())[:200])
    raise PyodideError(
        f"pyodide {VERSION} cannot be fetched: {'; '.join(why)}",
        mend="check the network and npm's registry, or put the package into the cache",
    )


def _by_npm() -> bytes:
    if (npm := shutil.which("npm")) is None:
        raise FileNotFoundError("npm is not installed")
    with tempfile.TemporaryDirectory(prefix="qvlfp8-npm-") as folder:
        done = subprocess.run(
            [npm, "pack", f"pyodide@{VERSION}", "--silent", "--fetch-retries=1"],
            cwd=folder, capture_output=True, text=True, timeout=4 * SECONDS, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        found = sorted(Path(folder).glob("*.tgz"))
        if done.returncode or not found:
            raise OSError(f"npm pack: {(done.stderr or done.stdout).strip() or done.returncode}")
        return found[0].read_bytes()


def _by_https() -> bytes:
    # npm reads the variable in either case.
    named = [value for name, value in os.environ.items() if name.lower() == "npm_config_registry"]
    registry = (named or ["https://registry.npmjs.org"])[0].rstrip("/")
    url = f"{registry}/pyodide/-/pyodide-{VERSION}.tgz"
    if not url.startswith("https://"):
        raise ValueError(f"{url} is no https address")
    with urlopen(url, timeout=SECONDS, context=ssl.create_default_context()) as answer:  # noqa: S310
        packed: bytes = answer.read(MAX_BYTES)
    return packed


def integrity(packed: bytes) -> str:
    """Give a digest as npm writes it: ``sha512-`` and base64."""
    return "sha512-" + base64.b64encode(hashlib.sha512(packed).digest()).decode()


def _unpacked(packed: bytes) -> dict[str, bytes]:
    """The files, in memory: nothing is written where an archive says."""
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=BytesIO(packed), mode="r:gz") as archive:
        for name in FILES:
            stream = archive.extractfile(f"package/{name}")
            if stream is None:
                raise PyodideError(f"pyodide {VERSION}: {name} is no file")
            found[name] = stream.read(MAX_BYTES)
    return found


def _user_cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "qvlfp8"


def _keep(file: Path, content: bytes) -> None:
    """Keep the package whole or not at all; a cache that cannot be written is no reason to fail."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as stream:
            stream.write(content)
        Path(stream.name).replace(file)
    except OSError:
        return
