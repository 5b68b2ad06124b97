"""The containers of engine ``docker``'s steps, as the daemon has them."""

from __future__ import annotations

from docker import DockerClient
from docker.errors import APIError, NotFound

from qvlfp8.engine.docker_leftovers import KIND, STEP
from qvlfp8.images.daemon import connect


class Containers:
    """Lists and kills them; those that were there before the session are somebody else's."""

    def __init__(self) -> None:
        self._client: DockerClient = connect()
        self._others = set(self._list(running=False))

    def running(self) -> list[str]:
        """The ids of those that run."""
        return [found for found in self._list(running=True) if found not in self._others]

    def left(self) -> list[str]:
        """The ids of all that are there."""
        return [found for found in self._list(running=False) if found not in self._others]

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

    def _list(self, *, running: bool) -> list[str]:
        found = self._client.api.containers(all=not running, filters={"label": f"{KIND}={STEP}"})
        return [str(entry["Id"]) for entry in found]
