"""What images there are, which of them are up to date, for which cells; and removing those that are not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qvlfp8.errors import LockError
from qvlfp8.images import base as bases
from qvlfp8.images import context, daemon
from qvlfp8.images.building import UNFINISHED, wanted
from qvlfp8.images.image import KIND, Image, Made, named_at, reference, tags
from qvlfp8.locking import of_matrix
from qvlfp8.locks import read_lock
from qvlfp8.matrix import Matrix

if TYPE_CHECKING:
    from docker import DockerClient


@dataclass(frozen=True, kw_only=True)
class Listed:
    """An image of ours in the daemon.

    Args:
        image: the image; a base has neither environment nor lock.
        name: its name and tag, or its id if it has none.
        current: it is what a build would make now, or the base that one would be made on.
        cells: how many cells of matrix.yaml need it.
    """

    image: Image
    name: str
    current: bool
    cells: int


def list_images(client: DockerClient, matrix: Matrix) -> list[Listed]:
    """Every image of ours, environments first, the newest of each first."""
    made = _wanted(client, matrix)
    found = []
    for entry in client.api.images(filters={"label": [f"{KIND}=image"]}):
        is_made = Made.read(entry["Labels"])
        if is_made is None or not _ours(entry, reference(is_made), UNFINISHED):
            continue
        image = Image.read(daemon.inspect(client, entry["Id"]))
        found.append(
            Listed(
                image=image,
                name=_name(entry),
                current=reference(is_made) in tags(entry) and any(is_made.serves(one) for one in made),
                cells=_cells(matrix, image.environment),
            )
        )
    found.sort(key=lambda one: one.image.created, reverse=True)
    found.sort(key=lambda one: one.image.environment)
    return found + list(_bases(client, found))


def _wanted(client: DockerClient, matrix: Matrix) -> list[Made]:
    """What every environment's image would be made from; an environment without a lock has none."""
    made = []
    for environment, target in of_matrix(matrix).values():
        if target == "bundle":
            continue
        try:
            lock = read_lock(matrix, environment, target)
        except LockError:
            continue
        made.append(wanted(environment, lock, bases.choose(client, context.python_of(lock), None)))
    return made


def _cells(matrix: Matrix, environment: str) -> int:
    return sum(environment in {cell.quantize.id, cell.serve.id} for cell in matrix.cells)


def _bases(client: DockerClient, found: Sequence[Listed]) -> Iterable[Listed]:
    for entry in client.api.images(filters={"label": [f"{KIND}=base"]}):
        if not _ours(entry, bases.LOCAL):
            continue
        inspected = daemon.inspect(client, entry["Id"])
        image = Image(
            id=entry["Id"], environment="", lock="", manifest="", size=inspected["Size"],
            created=named_at(inspected),
        )  # fmt: skip
        needed = inspected["RootFS"]["Layers"][0] in _first_layers(client, found)
        yield Listed(image=image, name=_name(entry), current=bool(tags(entry)) or needed, cells=0)


def _first_layers(client: DockerClient, found: Sequence[Listed]) -> Iterable[str]:
    return (daemon.inspect(client, one.image.id)["RootFS"]["Layers"][0] for one in found)


def _name(entry: Mapping[str, Any]) -> str:
    return next(iter(tags(entry)), str(entry["Id"]))


def _ours(entry: Mapping[str, Any], *names: str) -> bool:
    """Whether an image has no name but ours: what somebody builds on one of ours has its labels, too."""
    return all(tag.startswith(names) for tag in tags(entry))


def prune(client: DockerClient, listed: Iterable[Listed]) -> tuple[list[Listed], list[Listed]]:
    """Remove images that are not current; returns those removed, and those that a container still uses."""
    from docker.errors import APIError, ImageNotFound

    removed, used = [], []
    for one in listed:
        if one.current:
            continue
        try:
            # By name, so that an id with another name, which somebody else gave it, stays.
            client.api.remove_image(one.name)
            removed.append(one)
        except ImageNotFound:
            continue
        except APIError as error:
            if error.status_code != 409:
                raise
            used.append(one)
    return removed, used
