"""Engine `docker` against a real daemon: what a step cannot do, and how each of its ends is told.

The steps are those of a hostile worker in a small image of this machine's own Python.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docker import DockerClient

from qvlfp8.engine import Announce, Batch, Exit, Job
from qvlfp8.engine.docker import DockerEngine
from qvlfp8.engine.docker_folders import hand_over
from qvlfp8.engine.docker_leftovers import KIND, STEP
from qvlfp8.engine.docker_plan import STEP_USER, Limits
from qvlfp8.engine.guard import NOBODY_WAITS
from qvlfp8.engine.process import Processes, Stopped
from qvlfp8.environments import Environment, QuantizeEnvironment
from qvlfp8.errors import DaemonError, GpuRuntimeError, ImageError, UsageError
from qvlfp8.fault_errors import fault_of
from qvlfp8.images import Image
from qvlfp8.images.daemon import SOCKET, connect
from qvlfp8.judge import judge
from qvlfp8.locks import Lock
from qvlfp8.source import PACKAGE
from tests.integration import hostile, small_image

ROOT = Path(__file__).parents[2]
ENVIRONMENT = QuantizeEnvironment(modelopt="0.0.1", transformers="0.0.1")
LIMITS = Limits(memory=256 << 20, pids=64, shared_memory=16 << 20)


class OneImage:
    """Has one image for whatever is asked for."""

    def __init__(self, found: str | None) -> None:
        self._found = found

    def find(self, client: DockerClient, environment: Environment, lock: Lock) -> Image | None:
        if self._found is None:
            return None
        return Image(
            id=self._found, environment=environment.id, lock=lock.digest, manifest="ab" * 32, size=1,
            created="2026-11-22T00:00:00Z",
        )  # fmt: skip

    def build(
        self,
        environment: Environment,
        lock: Lock,
        *,
        log: Path,
        announce: Announce,
        processes: Processes | None = None,
    ) -> Image:
        raise NotImplementedError


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """qvlfp8 with no worker but the hostile one."""
    package = tmp_path / "source" / "qvlfp8"
    (package / "worker").mkdir(parents=True)
    (package / "engine").mkdir()
    for name in (
        "__init__.py", "engine/guard.py", "worker/__init__.py", "worker/__main__.py", "worker/protocol.py",
    ):  # fmt: skip
        shutil.copy(PACKAGE / name, package / name)
    shutil.copy(hostile.__file__, package / "worker" / "hostile.py")
    return package


class Yard:
    """Runs the hostile worker's deeds in containers."""

    def __init__(self, root: Path, client: DockerClient, image: str, package: Path) -> None:
        self.root = root
        self.client = client
        self.said: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.log = root / "log.txt"
        self.lock = Lock(path=root / "lock.txt", digest="cd" * 32)
        self.engine = DockerEngine(
            announce=self.said.append, client=client, images=OneImage(image), limits=LIMITS, package=package
        )

    def start_another(self) -> None:
        """Another engine on the same daemon."""
        DockerEngine(announce=self.said.append, client=self.client)

    def job(self, do: str, *reads: Path, **params: Any) -> Job:
        out = self.root / f"out-{do}"
        out.mkdir()
        return Job(id=do, params={"do": do, **params}, out=out, reads=reads)

    def run(self, *jobs: Job, limit: float = 60.0) -> Exit:
        batch = Batch(worker="hostile", jobs=jobs, time_limit_s=limit, threads=1)
        return self.engine.run((ENVIRONMENT, self.lock), batch, self.log, self.events.append)

    def measured(self, do: str, *reads: Path, **params: Any) -> dict[str, Any]:
        """Run one deed, and what it measured."""
        job = self.job(do, *reads, **params)
        ended = self.run(job)
        assert ended == Exit(code=0), self.log.read_text()
        measured: dict[str, Any] = json.loads((job.out / "result.json").read_text())["measured"]
        return measured

    def left(self) -> list[str]:
        """The ids of the steps' containers in the daemon."""
        found = self.client.containers.list(all=True, filters={"label": f"{KIND}={STEP}"}, sparse=True)
        return [str(container.id) for container in found]


@pytest.fixture
def yard(tmp_path: Path, docker_client: DockerClient, image: str, package: Path) -> Iterator[Yard]:
    yard = Yard(tmp_path, docker_client, image, package)
    before = set(yard.left())
    yield yard
    assert set(yard.left()) <= before


def test_a_step_is_nobody_and_sees_nothing_of_the_caller(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("SOMETHING_OF_MINE", "x")
    seen = yard.measured("look")
    assert seen["uid"] == (os.getuid() or STEP_USER)
    assert (seen["capabilities"], seen["no new privileges"]) == (True, "1")
    assert seen["interfaces"] == ["lo"]
    assert not {"HF_TOKEN", "SOMETHING_OF_MINE"} & set(seen["variables"])
    assert seen["threads"] == "1"


def test_a_step_has_no_network(yard: Yard) -> None:
    assert yard.measured("network") == {"connect": "ENETUNREACH"}


def test_a_step_writes_its_output_folder_and_tmp_only(yard: Yard, tmp_path: Path, package: Path) -> None:
    given, below = tmp_path / "given", tmp_path / "out-write" / "below"
    given.mkdir()
    (given / "model").write_text("weights")
    for path in (given, given / "model", package):
        path.chmod(0o777)  # what refuses is the mount, not the owner
    allowed = [str(tmp_path / "out-write" / "made"), "/tmp/made"]  # noqa: S108
    refused = ["/var/open/made", str(given / "model"), str(given / "made"), str(package / "made")]
    nowhere = ["/made", str(tmp_path / "outside"), str(below / "made")]
    tried = yard.measured("write", given, paths=[*allowed, *refused, *nowhere])
    assert {name: tried[name] for name in allowed} == dict.fromkeys(allowed, "done")
    assert {name: tried[name] for name in refused} == dict.fromkeys(refused, "EROFS")
    assert {tried[name] for name in nowhere} <= {"EROFS", "EACCES", "ENOENT"}
    assert (given / "model").read_text() == "weights"
    made = tmp_path / "out-write" / "made"
    assert (made.read_text(), made.stat().st_uid, made.stat().st_gid) == ("x", os.getuid(), os.getgid())


def test_a_step_does_not_read_another_users_file(yard: Yard, tmp_path: Path) -> None:
    given, mine = tmp_path / "given", tmp_path / "mine"
    for folder in (given, mine):
        folder.mkdir()
        (folder / "open").write_text("x")
    (given / "below").mkdir(mode=0o700)
    (given / "below" / "closed").write_text("x")
    seen = {
        str(given / "open"): "done",
        small_image.SECRET: "EACCES",
        # Not named by the job, so not there; nor is anything else of this machine.
        str(mine / "open"): "ENOENT",
        str(ROOT / "README.md"): "ENOENT",
        "/var/run/docker.sock": "ENOENT",
    }
    if os.getuid() == 0:
        seen[str(given / "below" / "closed")] = "EACCES"
    assert yard.measured("read", given, paths=[*seen]) == seen


@pytest.mark.skipif(
    os.getuid() != 0, reason="a step of another user than root is the caller, who can read it"
)
def test_an_input_that_the_step_cannot_read_is_named_before_it_runs(yard: Yard, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    (given / "closed").touch(mode=0o600)
    with pytest.raises(UsageError, match=r"given/closed: not readable for user 10001") as refused:
        yard.run(yard.job("look", given))
    assert refused.value.mend == f"chmod -R o+rX {given}"


def test_links_out_of_an_input_lead_to_what_they_mean(yard: Yard, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots" / "1", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "0a").write_text("x")
    (blobs / "0b").write_text("x")
    (snapshot / "config.json").symlink_to("../../blobs/0a")
    (snapshot / "lost").symlink_to("../../blobs/0c")
    seen = {str(snapshot / "config.json"): "done", str(blobs / "0b"): "ENOENT"}
    assert yard.measured("read", snapshot, paths=[*seen]) == seen


@pytest.mark.skipif(os.getuid() != 0, reason="only root has files in /root")
def test_roots_home_is_a_place_like_any_other(yard: Yard) -> None:
    with tempfile.TemporaryDirectory(prefix=".qvlfp8-test-", dir="/root") as mine:
        given = Path(mine) / "below" / "given"
        given.mkdir(parents=True)
        (given / "model").write_text("x")
        seen = {
            str(given / "model"): "done",
            str(given / "made"): "ENOENT",
            str(Path(mine) / "other"): "ENOENT",
            "/root/.bashrc": "ENOENT",
        }
        assert yard.measured("read", given, paths=[*seen]) == seen
        (yard.root / "out-write").mkdir()
        refused = [str(given / "made"), "/root/made", str(Path(mine) / "made")]
        job = Job(
            id="w", params={"do": "write", "paths": refused}, out=yard.root / "out-write", reads=(given,)
        )
        assert yard.run(job) == Exit(code=0)
        tried = json.loads((job.out / "result.json").read_text())["measured"]
        assert set(tried.values()) <= {"EROFS", "EACCES"}


def test_a_fork_bomb_is_contained(yard: Yard) -> None:
    assert 0 < yard.measured("fork")["children"] < LIMITS.pids


def test_what_a_step_leaves_behind_is_looked_after(yard: Yard) -> None:
    assert yard.measured("orphan") == {"left": False}


def test_too_much_memory_is_told_from_a_kill(yard: Yard) -> None:
    ended = yard.run(yard.job("eat"))
    assert ended == Exit(code=-signal.SIGKILL, out_of_memory=True)
    verdict = judge("quantize", None, ended, 60.0)
    assert verdict.status == "error"
    assert verdict.fault is not None
    assert verdict.fault.kind == "out-of-memory"


def test_tmp_does_not_fill_the_machine(yard: Yard) -> None:
    assert yard.measured("fill") == {"filled": "ENOSPC"}


@pytest.mark.parametrize("code", [0, 3, -signal.SIGSEGV, -signal.SIGKILL])
def test_how_a_worker_ended(yard: Yard, code: int) -> None:
    assert yard.run(yard.job("end", code=code)) == Exit(code=code)


@pytest.mark.parametrize("deaf", [False, True])
def test_a_step_past_its_time_is_ended(yard: Yard, monkeypatch: pytest.MonkeyPatch, deaf: bool) -> None:
    monkeypatch.setattr("qvlfp8.engine.launch._START_LIMIT_S", 5.0)
    monkeypatch.setattr("qvlfp8.engine.docker._STOP_S", 1)
    ended = yard.run(yard.job("hang", deaf=deaf), limit=1.0)
    assert (ended.timed_out, ended.out_of_memory) == (True, False)
    assert ended.code == (-signal.SIGKILL if deaf else -signal.SIGTERM)


def test_events_and_log_come_while_it_runs(yard: Yard) -> None:
    job = yard.job("talk")

    def listen() -> None:
        while not (yard.log.exists() and "heard me? ü" in yard.log.read_text()):
            time.sleep(0.02)
        assert [event["event"] for event in yard.events] == ["ready", "start"]
        (job.out / "heard").touch()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    assert yard.run(job) == Exit(code=0)
    assert json.loads((job.out / "result.json").read_text())["measured"] == {"heard": True}
    assert [event["event"] for event in yard.events] == ["ready", "start", "end"]


def test_a_step_that_says_nothing_has_an_empty_log_as_without_a_container(yard: Yard) -> None:
    assert yard.run(yard.job("end", code=0)) == Exit(code=0)
    assert yard.log.read_bytes() == b""


def test_jobs_of_a_batch_are_handed_back_one_by_one(yard: Yard, tmp_path: Path) -> None:
    """A finished output is moved into the store while the next job runs, which may read it there."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    first = yard.job("look")
    second = yard.job("read", shelf, paths=[str(shelf / "first" / "result.json")])
    keep = yard.events.append

    def take(event: dict[str, Any]) -> None:
        keep(event)
        if event == {"event": "end", "job": "look"}:
            assert (first.out / "result.json").stat().st_uid == os.getuid()
            first.out.rename(shelf / "first")

    # The second job waits for the mover only as long as the event takes to be read.
    yard.events = type("Taking", (list,), {"append": lambda _self, event: take(event)})()
    assert yard.run(first, second) == Exit(code=0)
    assert (shelf / "first" / "log.txt").exists()
    assert json.loads((second.out / "result.json").read_text())["outcome"] == "done"


def test_stopping_ends_what_runs_and_starts_nothing_more(yard: Yard) -> None:
    job = yard.job("hang")

    def stop_when_it_runs() -> None:
        while not any(event["event"] == "start" for event in yard.events):
            time.sleep(0.02)
        yard.engine.stop()

    stopper = threading.Thread(target=stop_when_it_runs, daemon=True)
    stopper.start()
    with pytest.raises(Stopped):
        yard.run(job)
    assert job.out.stat().st_uid == os.getuid()
    with pytest.raises(Stopped):
        yard.run(yard.job("look"))


class Passage:
    """A way to the daemon's socket that can be closed: for its client, the daemon is gone then."""

    def __init__(self, path: Path) -> None:
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        self._open = [self._server]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(SOCKET)
                self._open += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    @staticmethod
    def _pass_on(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := one.recv(1 << 16):
                other.sendall(block)
            other.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@pytest.mark.skipif(not Path(SOCKET).is_socket(), reason="the daemon is not at its usual socket")
def test_a_daemon_that_goes_away_is_an_error_of_the_machine(
    yard: Yard, image: str, package: Path, tmp_path: Path
) -> None:
    with tempfile.TemporaryDirectory() as short:
        way = Path(short) / "docker.sock"
        passage = Passage(way)
        with contextlib.closing(connect({"DOCKER_HOST": f"unix://{way}"})) as client:
            before = set(yard.left())
            yard.engine = DockerEngine(
                announce=yard.said.append, client=client, images=OneImage(image), limits=LIMITS,
                package=package,
            )  # fmt: skip

            def close_when_it_runs() -> None:
                while not any(event["event"] == "start" for event in yard.events):
                    time.sleep(0.02)
                passage.close()

            threading.Thread(target=close_when_it_runs, daemon=True).start()
            started = time.monotonic()
            with pytest.raises(DaemonError) as gone:
                yard.run(yard.job("hang"))
    kind, mend = fault_of(gone.value).kind, gone.value.mend
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        # The SDK forgets the sockets that it could not connect; the error's frames and the engine hold them.
        del gone, client
        del yard.engine
        gc.collect()
    assert time.monotonic() - started < 60
    assert kind == "daemon-gone"
    assert mend
    for name in set(yard.left()) - before:
        yard.client.containers.get(name).remove(force=True)


def test_a_step_that_hangs_with_children_in_their_own_sessions_leaves_none(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qvlfp8.engine.launch._START_LIMIT_S", 5.0)
    monkeypatch.setattr("qvlfp8.engine.docker._STOP_S", 1)
    job = yard.job("hang", deaf=True, family=True)
    assert yard.run(job, limit=1.0).timed_out
    assert (job.out / "family").exists()
    named = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if (
                folder.name.isdigit()
                and str(yard.log.with_suffix("")).encode() in (folder / "cmdline").read_bytes()
            ):
                named.append(folder.name)
    assert named == []


def test_an_error_in_the_caller_leaves_no_container(yard: Yard) -> None:
    def refuse(event: dict[str, Any]) -> None:
        raise OSError(event["event"])

    yard.events = type("Refusing", (list,), {"append": lambda _self, event: refuse(event)})()
    with pytest.raises(OSError, match="ready"):
        yard.run(yard.job("hang"))


def test_a_gpu_without_nvidia_runtime(yard: Yard) -> None:
    if "nvidia" in yard.client.info()["Runtimes"] or Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has an NVIDIA runtime")
    yard.lock = Lock(path=yard.lock.path, digest=yard.lock.digest, target="cuda")
    with pytest.raises(GpuRuntimeError, match=r"could not select device driver|Podman's compatible API"):
        yard.run(yard.job("look"))


def test_an_image_that_is_gone(yard: Yard, docker_client: DockerClient) -> None:
    yard.engine = DockerEngine(announce=yard.said.append, client=docker_client, images=OneImage(None))
    assert not yard.engine.built(ENVIRONMENT, yard.lock)
    with pytest.raises(ImageError, match=r"modelopt-0\.0\.1"):
        yard.run(yard.job("look"))
    yard.engine = DockerEngine(
        announce=yard.said.append, client=docker_client, images=OneImage("sha256:" + "0" * 64)
    )
    with pytest.raises(ImageError, match=r"(?i)no such image"):
        yard.run(yard.job("read"))


def test_what_is_shown_can_be_typed(yard: Yard) -> None:
    yard.measured("look")
    (shown,) = yard.said
    if os.getuid() == 0:
        hand_over(yard.root / "out-look", STEP_USER, STEP_USER)
    again = subprocess.run(shown, shell=True, capture_output=True, text=True, check=False)  # noqa: S602
    assert again.returncode == 0, again.stderr
    assert [json.loads(line)["event"] for line in again.stdout.splitlines()] == ["ready", "start", "end"]


def test_a_dead_clients_container_ends_with_it_and_is_reaped(
    yard: Yard, image: str, package: Path, tmp_path: Path, docker_client: DockerClient
) -> None:
    out = tmp_path / "abandoned"
    out.mkdir()
    program = f"""
        from pathlib import Path
        import tests.integration.test_docker_engine as t
        from qvlfp8.images.daemon import connect
        engine = t.DockerEngine(
            announce=lambda _: None, client=connect(), images=t.OneImage({image!r}), limits=t.LIMITS,
            package=Path({str(package)!r}),
        )
        job = t.Job(id="hang", params={{"do": "hang"}}, out=Path({str(out)!r}))
        batch = t.Batch(worker="hostile", jobs=(job,), time_limit_s=300.0)
        lock = t.Lock(path=Path("x"), digest="cd" * 32)
        engine.run((t.ENVIRONMENT, lock), batch, Path({str(tmp_path / "dead.log")!r}),
                   lambda event: print(event["event"], flush=True))
        """
    before = set(yard.left())
    client = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert client.stdout is not None
    with client.stdout:
        assert client.stdout.readline() == "ready\n"
        assert client.stdout.readline() == "start\n"
        (name,) = set(yard.left()) - before
        yard.start_another()
        assert name in yard.left()  # its owner lives
        client.kill()
        client.wait()
    container = docker_client.containers.get(name)
    # Long before its time is up; not removed, since nobody is left to do so.
    assert container.wait(timeout=30)["StatusCode"] == NOBODY_WAITS
    yard.start_another()
    assert name not in yard.left()
    assert yard.said == [f"docker rm --force {container.name}"]
