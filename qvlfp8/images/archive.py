"""Docker archives with a configuration of our own, so that the same layers have the same id everywhere.

An image's id is the digest of its configuration. What builds or imports an image writes the time of day into
it; here the configuration has nothing in it that is not in the layers, the labels and the settings.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from docker import DockerClient

EPOCH = 1764547200
"""The time of everything in an image, in seconds: 2025-12-01. containers/layers.py has the same."""

_CREATED = datetime.datetime.fromtimestamp(EPOCH, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """An image's configuration. ``layers`` are the digests of the unpacked layers, the lowest first."""

    layers: tuple[str, ...]
    made_by: tuple[str, ...]
    settings: Mapping[str, Any]
    architecture: str

    def encoded(self) -> bytes:
        """The file whose digest is the image's id."""
        content = {
            "architecture": self.architecture,
            "os": "linux",
            "created": _CREATED,
            "config": dict(self.settings),
            "rootfs": {"type": "layers", "diff_ids": list(self.layers)},
            "history": [{"created": _CREATED, "created_by": by} for by in self.made_by],
        }
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()

    @property
    def id(self) -> str:
        """The image's id."""
        return f"sha256:{hashlib.sha256(self.encoded()).hexdigest()}"


def write(configuration: Configuration, target: Path, layer: Path | None = None) -> None:
    """Write an archive that `docker load` takes; the image gets no name by it.

    Args:
        layer: the topmost layer as a tar, if the daemon has not got it; it must have all others.
    """
    encoded = configuration.encoded()
    files = [f"{number}.tar" for number in range(len(configuration.layers))]
    file = f"{configuration.id.removeprefix('sha256:')}.json"
    manifest = [{"Config": file, "RepoTags": None, "Layers": files}]
    with tarfile.open(target, "w") as archive:
        for path, content in ((file, encoded), ("manifest.json", json.dumps(manifest).encode())):
            _add(archive, path, len(content), io.BytesIO(content))
        if layer is not None:
            with layer.open("rb") as stream:
                _add(archive, files[-1], layer.stat().st_size, stream)


def _add(archive: tarfile.TarFile, path: str, size: int, content: Any) -> None:
    entry = tarfile.TarInfo(path)
    entry.size, entry.mtime, entry.mode = size, EPOCH, 0o644
    archive.addfile(entry, content)


def settle(
    client: DockerClient, built: Mapping[str, Any], name: str, *, made_by: Sequence[str], scratch: Path
) -> str:
    """Give a built image the id that follows from what is in it, and a name; returns the id.

    Args:
        made_by: what `docker history` shows for its topmost layers, the lowest of them first.

    A daemon that keeps images otherwise (containerd's store) does not take layers by name alone; there the
    image stays as it was built.
    """
    from docker.errors import APIError, ImageNotFound

    kept = {"Env", "Cmd", "User", "WorkingDir", "Labels"}
    settings = {key: value for key, value in built["Config"].items() if key in kept and value}
    layers = tuple(built["RootFS"]["Layers"])
    configuration = Configuration(
        layers=layers,
        made_by=(*("base" for _ in layers[len(made_by) :]), *made_by),
        settings=settings,
        architecture=built["Architecture"],
    )
    archive = scratch / "configuration.tar"
    write(configuration, archive)
    found = configuration.id
    try:
        with archive.open("rb") as stream:
            client.images.load(stream)
        client.images.get(found)
    except (APIError, ImageNotFound):
        found = str(built["Id"])
    # The daemon remembers when an image was named, and not when one was loaded by its name.
    client.images.get(found).tag(name)
    return found
