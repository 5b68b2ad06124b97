"""The containers of engine ``docker``'s steps, as the daemon has them: those of this session alone."""

from __future__ import annotations

from docker import DockerClient
from docker.errors import APIError, NotFound

from qvlfp8.engine.docker_leftovers import KIND, OWNER, STEP
from qvlfp8.images.daemon import connect
from tests.integration import small_image

_TAG = "qvlfp8-survive"


class Containers:
    """Lists and kills them. Others may use the daemon as well: only what a driver of ours owns is touched."""

    def __init__(self) -> None:
        self._client: DockerClient = connect()
        self._drivers: set[str] = set()
        self.image = small_image.load(self._client, _TAG)
        """Id of an image with nothing but a Python."""

    def own(self, driver: int) -> None:
        """A driver of this session, by its process id."""
        self._drivers.add(str(driver))

    def running(self) -> list[str]:
        """The ids of those that run."""
        return self._list(everything=False)

    def left(self) -> list[str]:
        """The ids of all that are there."""
        return self._list(everything=True)

    def kill(self, container: str, *, remove: bool) -> bool:
        """Kill one, and remove it as well or not; False if it had ended."""
        try:
            if remove:
                self._client.api.remove_container(container, force=True)
            else:
                self._client.api.kill(container)
        except (NotFound, APIError):
            return False
        return True

    def _list(self, *, everything: bool) -> list[str]:
        found = self._client.api.containers(all=everything, filters={"label": f"{KIND}={STEP}"})
        return [str(entry["Id"]) for entry in found if self._is_ours(entry["Labels"])]

    def _is_ours(self, labels: dict[str, str]) -> bool:
        # As qvlfp8.engine.docker_leftovers.owner writes it: host, process id, start.
        _, _, process = labels.get(OWNER, "").partition(":")
        return process.partition(":")[0] in self._drivers
