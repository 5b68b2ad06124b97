"""The bill of materials of an image: CycloneDX, from what is installed, checked against the lock."""

from __future__ import annotations

import datetime
import uuid
from typing import TYPE_CHECKING

from packaging.version import Version
from pydantic import BaseModel

from qvlfp8.errors import BuildError
from qvlfp8.images.archive import EPOCH
from qvlfp8.images.image import Made
from qvlfp8.locks import Lock

if TYPE_CHECKING:
    from cyclonedx.model.component import Component


class Package(BaseModel):
    """An installed Python package. Sizes are in bytes, of what its wheel holds and of its bytecode."""

    name: str
    version: str
    licence: str
    layer: int
    bytes: int
    compiled_bytes: int


class DebianPackage(BaseModel):
    """A package of the base."""

    name: str
    version: str
    architecture: str


class Installed(BaseModel):
    """What containers/layers.py found in the environment that it sorted."""

    python: str
    layers: int
    packages: tuple[Package, ...]
    debian: tuple[DebianPackage, ...]

    def by_layer(self) -> list[str]:
        """What each layer of the environment holds, as `docker history` shows it."""
        held: list[list[str]] = [[] for _ in range(self.layers)]
        for package in self.packages:
            held[package.layer].append(f"{package.name} {package.version}")
        return [", ".join(names) or "-" for names in held]


def check(installed: Installed, lock: Lock) -> None:
    """Refuse an environment that is not what the lock says.

    Raises:
        BuildError: a package is missing, of another version, or not in the lock.
    """
    pinned = lock.versions()
    found = {package.name: package.version for package in installed.packages}
    wrong = [f"{name} {pinned[name]} is not installed" for name in sorted(pinned.keys() - found.keys())]
    wrong += [f"{name} {found[name]} is not in the lock" for name in sorted(found.keys() - pinned.keys())]
    wrong += [
        f"{name} is {found[name]}, not {pinned[name]}"
        for name in sorted(found.keys() & pinned.keys())
        if not _same(found[name], pinned[name])
    ]
    if wrong:
        raise BuildError(
            f"what is installed is not what {lock.path.name} pins: {'; '.join(wrong)}",
            mend="nox -s lock, and build again",
        )


def _same(found: str, pinned: str) -> bool:
    """A package built from source adds a local part, such as vLLM's ``+empty``, where the lock has none."""
    one, other = Version(found), Version(pinned)
    return one == other or (other.local is None and Version(one.public) == other)


def write(made: Made, installed: Installed, name: str) -> str:
    """The bill of materials as CycloneDX JSON; the same for the same image, anywhere and any time."""
    from cyclonedx.model import Property
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6

    image = Component(
        name=name.partition(":")[0],
        version=made.lock[:12],
        type=ComponentType.CONTAINER,
        bom_ref="image",
        properties=[Property(name=key, value=value) for key, value in sorted(made.labels().items())],
    )
    components = [*map(_python, installed.packages), *map(_debian, installed.debian)]
    bom = Bom(
        components=components,
        metadata=BomMetaData(component=image, timestamp=datetime.datetime.fromtimestamp(EPOCH, datetime.UTC)),
        serial_number=uuid.uuid5(
            uuid.NAMESPACE_URL, f"{made.environment}:{made.lock}:{made.base}:{made.build}"
        ),
    )
    bom.register_dependency(image, components)
    return JsonV1Dot6(bom).output_as_string(indent=1) + "\n"


def _python(package: Package) -> Component:
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model.component import Component
    from packageurl import PackageURL

    url = PackageURL(type="pypi", name=package.name, version=package.version)
    return Component(
        name=package.name,
        version=package.version,
        purl=url,
        bom_ref=str(url),
        licenses=[LicenseFactory().make_from_string(package.licence)] if package.licence else [],
    )


def _debian(package: DebianPackage) -> Component:
    from cyclonedx.model.component import Component
    from packageurl import PackageURL

    url = PackageURL(
        type="deb",
        namespace="debian",
        name=package.name,
        version=package.version,
        qualifiers={"arch": package.architecture},
    )
    return Component(name=package.name, version=package.version, purl=url, bom_ref=str(url))
