"""The containers of engine ``docker``'s steps, as the daemon has them: those of this session alone."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Mapping, Sequence

from docker import DockerClient
from docker.errors import APIError, NotFound

from qvlfp8.engine.docker_leftovers import KIND, OWNER, STEP
from qvlfp8.images.daemon import connect
from tests.integration import small_image
from tests.survive.kills import IN_CONTAINERS, Target
from tests.survive.surroundings import ThisMachine

_TAG = "qvlfp8-survive"


class Containers(ThisMachine):
    """Lists and kills them. Others may use the daemon as well: only what a driver of ours owns is touched."""

    habits = IN_CONTAINERS

    def __init__(self) -> None:
        """Make the image.

        Raises:
            DaemonError: no daemon answers.
        """
        self._client: DockerClient = connect()
        self._drivers: set[str] = set()
        self.image = small_image.load(self._client, _TAG)
        """Id of an image with nothing but a Python."""

    def own(self, driver: int) -> None:
        """As the daemon's labels name it."""
        self._drivers.add(str(driver))

    def others(self) -> Mapping[Target, Sequence[str]]:
        """The ids of containers that run."""
        running = self._list(everything=False)
        return {"container": running} if running else {}

    def kill(self, target: Target, which: str, dice: random.Random) -> bool:
        """Kill a container, and remove it as well or not."""
        try:
            if dice.random() < 0.3:
                self._client.api.remove_container(which, force=True)
            else:
                self._client.api.kill(which)
        except (NotFound, APIError):
            return False
        return True

    def hosts(self) -> set[str]:
        """A container's host is called by the begin of its id."""
        return {container[:12] for container in self._list(everything=False)}

    def left(self) -> list[str]:
        """Containers, ended or not."""
        return [f"container {container[:12]} was left" for container in self._list(everything=True)]

    def close(self) -> None:
        """Leave the daemon, and nothing in it."""
        with contextlib.suppress(APIError):
            self._client.images.remove(self.image, force=True)
        self._client.close()

    def _list(self, *, everything: bool) -> list[str]:
        found = self._client.api.containers(all=everything, filters={"label": f"{KIND}={STEP}"})
        return [str(entry["Id"]) for entry in found if self._is_ours(entry["Labels"])]

    def _is_ours(self, labels: dict[str, str]) -> bool:
        # As qvlfp8.engine.docker_leftovers.owner writes it: host, process id, start.
        _, _, process = labels.get(OWNER, "").partition(":")
        return process.partition(":")[0] in self._drivers
