"""An image as its labels tell it: what is ours, what it was made from, and whether that is still so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KIND = "qvlfp8.kind"
"""``image``, ``base`` or (for a container) ``step``: what has it is ours, and nothing else is."""

_ENVIRONMENT = "qvlfp8.environment"
_LOCK = "qvlfp8.lock"
_BASE = "qvlfp8.base"
_BASE_NAMED = "qvlfp8.base.named"
_BUILD = "qvlfp8.build"
_MANIFEST = "qvlfp8.manifest"
_SBOM = "qvlfp8.sbom"
_TARGET = "qvlfp8.target"


@dataclass(frozen=True, kw_only=True)
class Made:
    """What an image is made from: if all of it is the same, so is the image.

    Args:
        environment: its id.
        lock: SHA-256 of the lock file.
        base: the base image, by digest.
        build: SHA-256 of what turns a lock and a base into an image.
        base_named: the user named the base, so that another default does not make the image out of date.
    """

    environment: str
    lock: str
    base: str
    build: str
    base_named: bool = False

    def labels(self) -> dict[str, str]:
        """The labels that say so."""
        return {
            KIND: "image",
            _ENVIRONMENT: self.environment,
            _LOCK: self.lock,
            _BASE: self.base,
            _BASE_NAMED: "yes" if self.base_named else "no",
            _BUILD: self.build,
        }

    @classmethod
    def read(cls, labels: Mapping[str, str]) -> Made | None:
        """What an image's labels say; None if it is not one of ours."""
        if labels.get(KIND) != "image":
            return None
        return cls(
            environment=labels.get(_ENVIRONMENT, ""),
            lock=labels.get(_LOCK, ""),
            base=labels.get(_BASE, ""),
            build=labels.get(_BUILD, ""),
            base_named=labels.get(_BASE_NAMED) == "yes",
        )

    def serves(self, wanted: Made) -> bool:
        """Whether an image made from this is what is wanted.

        One on a base that the user named serves where no base is named now.
        """
        same = (self.environment, self.lock, self.build) == (wanted.environment, wanted.lock, wanted.build)
        return same and (self.base == wanted.base or (self.base_named and not wanted.base_named))


@dataclass(frozen=True, kw_only=True)
class Image:
    """One environment as an image in the daemon.

    Args:
        id: the daemon's id of it.
        environment: the environment's id.
        lock: SHA-256 of the lock file that it was made from.
        target: what its lock is for, ``cpu`` or ``cuda``.
        manifest: SHA-256 of the list of its files (mode, SHA-256 and path of each).
        size: bytes, its base included.
        created: when this daemon got it, RFC 3339.
    """

    id: str
    environment: str
    lock: str
    manifest: str
    size: int
    created: str
    target: str = ""

    @classmethod
    def read(cls, inspected: Mapping[str, Any]) -> Image:
        """From what the daemon says of an image of ours."""
        labels = inspected["Config"]["Labels"]
        return cls(
            id=inspected["Id"],
            environment=labels[_ENVIRONMENT],
            lock=labels[_LOCK],
            manifest=labels[_MANIFEST],
            size=inspected["Size"],
            created=named_at(inspected),
            target=labels.get(_TARGET, ""),
        )


def tags(entry: Mapping[str, Any]) -> list[str]:
    """An image's names and tags, of what the daemon lists, without the ``localhost/`` that Podman adds."""
    named = (tag for tag in entry["RepoTags"] or () if tag != "<none>:<none>")
    return [tag.removeprefix("localhost/") for tag in named]


def named_at(inspected: Mapping[str, Any]) -> str:
    """When this daemon got an image: its own date is the same everywhere, so when it was named here."""
    named = (inspected.get("Metadata") or {}).get("LastTagTime") or ""
    return str(max(named, inspected["Created"]))


def labels_of(
    made: Made, *, target: str, manifest: str, sbom: str, versions: Mapping[str, str]
) -> dict[str, str]:
    """Every label of an image: ours, and those that the OCI has names for.

    Args:
        target: what its lock is for.
        manifest: SHA-256 of the list of its files.
        sbom: SHA-256 of its bill of materials.
        versions: package -> version, of the packages that the environment is about.
    """
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    return {
        **made.labels(),
        _TARGET: target,
        _MANIFEST: manifest,
        _SBOM: sbom,
        **{f"qvlfp8.version.{name}": version for name, version in versions.items()},
        "org.opencontainers.image.title": f"qvlfp8 {made.environment}",
        "org.opencontainers.image.description": f"Locked environment: {told}",
        "org.opencontainers.image.version": made.environment.partition("-")[2],
        "org.opencontainers.image.ref.name": reference(made),
        "org.opencontainers.image.base.digest": made.base.rpartition("@")[2],
    }


def reference(made: Made) -> str:
    """The name and tag that an image gets."""
    return f"qvlfp8/{made.environment.lower()}:{made.lock[:12]}"
