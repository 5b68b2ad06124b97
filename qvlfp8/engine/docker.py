"""Engine ``docker``: environments are images, and every batch runs in a hardened container of its own.

The container's paths are those of this machine, so that a worker is told the same as in engine ``venv``.
Steps that need no environment run as they do there: with qvlfp8's own Python, as a process.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qvlfp8 import images as own_images
from qvlfp8.engine import Announce, Batch, Exit, launch
from qvlfp8.engine import docker_leftovers as leftovers
from qvlfp8.engine import docker_plan as plan
from qvlfp8.engine.docker_daemon import facts_of, understood
from qvlfp8.engine.docker_folders import check_readable, given, hand_over, links_out, reachable
from qvlfp8.engine.process import Processes, Stopped
from qvlfp8.environments import Environment
from qvlfp8.errors import GpuRuntimeError, ImageError
from qvlfp8.hub import hub_cache
from qvlfp8.images import Image
from qvlfp8.images.daemon import connect
from qvlfp8.locks import Lock
from qvlfp8.source import PACKAGE
from qvlfp8.store import writing

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

_STOP_S = 10
"""From the polite signal to the one that kills."""

_ANSWER_S = 60.0
"""How long the daemon may take to say that a container has ended."""


class Images(Protocol):
    """Where images come from: :mod:`qvlfp8.images`."""

    def find(self, client: DockerClient, environment: Environment, lock: Lock) -> Image | None:
        """The environment's image, if it is there and current."""
        ...

    def build(
        self,
        environment: Environment,
        lock: Lock,
        *,
        log: Path,
        announce: Announce,
        processes: Processes | None = None,
    ) -> Image:
        """Make it, its commands run by ``processes``."""
        ...


class DockerEngine:
    """Images of a Docker daemon; a container a batch."""

    name = "docker"

    def __init__(
        self,
        *,
        announce: Announce,
        client: DockerClient | None = None,
        images: Images = own_images,
        limits: plan.Limits | None = None,
        package: Path = PACKAGE,
        held: Callable[[], Sequence[int]] = tuple,
    ) -> None:
        """Find the daemon, and remove what earlier engines left in it.

        Args:
            announce: shows what is run.
            client: of the daemon [default: the one that the caller's environment names].
            images: where images come from.
            limits: of every container [default: nearly all of the machine].
            package: qvlfp8's own source, which containers read.
            held: as for :class:`~qvlfp8.engine.process.Processes`.

        Raises:
            DaemonError: no daemon answers.
            DaemonPermissionError: it is not for this user.
        """
        self._client = client or connect()
        self._images = images
        self._facts = facts_of(self._client)
        self._limits = limits or plan.Limits.of(self._facts)
        self._user = plan.User.of(self._facts, os.getuid(), os.getgid())
        self._package = package
        self._announce = announce
        self._processes = Processes(announce, held=held)
        self._guard = threading.Lock()
        self._gpu = threading.Lock()
        self._running: set[Container] = set()
        self._used: dict[str, Image] = {}
        self._stopped = False
        if self._facts.unlimited:
            what = " and ".join(self._facts.unlimited)
            announce(f"# this daemon cannot limit {what}: a step may take all that this machine has")
        for name in leftovers.reap(self._client):
            announce(f"docker rm --force {name}")

    def built(self, environment: Environment, lock: Lock) -> bool:
        """Whether the environment's image is there, and current."""
        return self._find(environment, lock) is not None

    def build(self, environment: Environment, lock: Lock, log: Path) -> dict[str, Any]:
        """Make the environment's image.

        Raises:
            QvlError: the reason, by class.
        """
        started = time.monotonic()
        image = self._images.build(
            environment, lock, log=log, announce=self._announce, processes=self._processes
        )
        self._used[lock.digest] = image
        return {
            "packages": len(lock.versions()),
            "seconds": round(time.monotonic() - started, 1),
            "image": image.id,
            "bytes": image.size,
        }

    def facts(self, environment: tuple[Environment, Lock] | None) -> dict[str, str]:
        """The engine's name; for an environment the image last used, and the digest of the files in it."""
        if environment is None:
            return {"engine": self.name}
        image = self._used.get(environment[1].digest)
        if image is None:
            return {"engine": self.name}
        return {"engine": self.name, "image": image.id, "manifest": image.manifest}

    def run(
        self,
        environment: tuple[Environment, Lock] | None,
        batch: Batch,
        log: Path,
        on_event: Callable[[dict[str, Any]], None],
    ) -> Exit:
        """Run a batch; the limit for the whole container is its start and every job's own limit.

        Raises:
            Stopped: :meth:`stop` was called before or during the run.
            QvlError: the daemon refused or went away, or an input is not readable for the step.
        """
        if environment is None:
            variables = {**launch.kept_variables(), **launch.variables(batch, offline=True)}
            return launch.run_here(self._processes, batch, log, on_event, environment=variables)
        outs = {job.id: job.out for job in batch.jobs}
        container = self._container(environment, batch, launch.write_spec(batch, log))
        gpu = self._gpu if container.gpus else contextlib.nullcontext()

        def on_own_event(event: dict[str, Any]) -> None:
            if event["event"] == "end" and self._user.gives:
                hand_over(outs[event["job"]], os.getuid(), os.getgid())
            on_event(event)

        with (
            gpu,
            launch.scrubbed(batch, log),
            given(outs.values(), self._user),
            reachable(container.binds, self._user) as binds,
        ):
            container = dataclasses.replace(container, binds=binds)
            return self._run(container, log, launch.reader(batch, on_own_event), launch.time_limit_s(batch))

    def stop(self) -> None:
        """End every container and process that this engine has running, and start no more."""
        with self._guard:
            self._stopped = True
            running = tuple(self._running)
        self._processes.stop()
        for container in running:
            self._end(container, politely=False)

    def _find(self, environment: Environment, lock: Lock) -> Image | None:
        with understood():
            return self._images.find(self._client, environment, lock)

    def _container(self, where: tuple[Environment, Lock], batch: Batch, spec: Path) -> plan.Container:
        environment, lock = where
        image = self._find(environment, lock)
        if image is None:
            raise ImageError(
                f"{environment.id}: its image is gone", mend=f"`qvlfp8 build {environment.id}`, and run again"
            )
        if lock.released and self._facts.podman:
            raise GpuRuntimeError(
                "Podman's compatible API leaves out the GPUs that a container asks for",
                mend="use Docker with the NVIDIA Container Toolkit, or engine venv",
            )
        spec.chmod(0o644)
        self._used[lock.digest] = image
        # What is not there is for the worker to say, as it does without walls.
        reads = [path for job in batch.jobs for path in job.reads if path.exists()]
        check_readable([self._package, spec, *reads], self._user)
        limit = launch.time_limit_s(batch)
        return plan.Container(
            image=image.id,
            command=plan.limited(launch.command(plan.PYTHON, spec, self._package), limit),
            guard=plan.guard(self._package),
            variables={**launch.variables(batch, offline=True), "HF_HUB_CACHE": str(hub_cache())},
            binds=plan.binds(
                [self._package, spec, *reads], (job.out for job in batch.jobs), links_out(reads)
            ),
            user=self._user,
            limits=self._limits,
            labels={
                leftovers.KIND: leftovers.STEP,
                leftovers.OWNER: leftovers.owner(),
                leftovers.DEADLINE: plan.deadline(time.time(), limit),
                "qvlfp8.environment": environment.id,
            },
            remapped=self._facts.remapped,
            gpus=plan.gpus(os.environ.get("CUDA_VISIBLE_DEVICES")) if lock.released else (),
        )

    def _run(
        self, settings: plan.Container, log: Path, on_line: Callable[[str], None], limit_s: float
    ) -> Exit:
        self._announce(settings.command_line())
        timed_out = threading.Event()
        with understood(), self._created(settings) as container:

            def expire() -> None:
                timed_out.set()
                self._end(container, politely=True)

            timer = threading.Timer(limit_s, expire)
            timer.daemon = True
            # Attached before it starts, nothing that it says is missed.
            said = container.attach(stdout=True, stderr=True, stream=True, demux=True)
            alive = container.attach_socket(params={"stdin": 1, "stream": 1})
            try:
                self._start(container)
                timer.start()
                _pump(said, log, on_line)
            finally:
                timer.cancel()
                alive._response.close()  # type: ignore[union-attr]
                # Its own close() leaves the socket open where the daemon has closed it first.
                said._response.close()  # type: ignore[attr-defined]
            # The stream has ended, and so has the container; if only the stream has, time ends both.
            container.wait(timeout=limit_s + _STOP_S + _ANSWER_S)
            container.reload()
            state = container.attrs["State"]
        if self._stopped:
            raise Stopped
        code = plan.code_of(int(state["ExitCode"]))
        return Exit(
            code=code,
            timed_out=timed_out.is_set() or code == plan.TIMED_OUT,
            out_of_memory=bool(state["OOMKilled"]),
        )

    @contextlib.contextmanager
    def _created(self, settings: plan.Container) -> Iterator[Container]:
        """A container that is removed whatever happens; a start that fails leaves one, too."""
        from docker.types import DeviceRequest, Mount

        mounts = [
            Mount(str(bind.path), str(bind.source), type="bind", read_only=not bind.writable)
            for bind in settings.binds
        ]
        requests = []
        if settings.gpus:
            which = {"count": -1} if settings.gpus == ("all",) else {"device_ids": list(settings.gpus)}
            requests = [DeviceRequest(capabilities=[["gpu"]], **which)]
        container = self._client.containers.create(
            **settings.arguments(), mounts=mounts, device_requests=requests
        )
        try:
            yield container
        finally:
            with self._guard:
                self._running.discard(container)
            leftovers.remove(container)

    def _start(self, container: Container) -> None:
        with self._guard:
            if self._stopped:
                raise Stopped
            container.start()
            self._running.add(container)

    def _end(self, container: Container, *, politely: bool) -> None:
        """End a container, if it still runs; that it is gone shows where it is waited for."""
        import requests
        from docker.errors import DockerException

        with contextlib.suppress(DockerException, requests.exceptions.RequestException):
            if politely:
                container.stop(timeout=_STOP_S)
            else:
                container.kill()


def _pump(
    said: Iterator[tuple[bytes | None, bytes | None]], log: Path, on_line: Callable[[str], None]
) -> None:
    """Write a container's errors to the log as they come, and hand on its output line by line.

    There is a log even of one that says nothing, as there is of a process.
    """
    with writing(log):
        log.touch()
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    rest = ""
    for out, error in said:
        if error:
            with writing(log), log.open("ab") as stream:
                stream.write(error)
        if out:
            *lines, rest = (rest + decoder.decode(out)).split("\n")
            for line in lines:
                on_line(line + "\n")
