"""Real ModelOpt and real vLLM code: a project of its own for each test, on environments built once.

The environments and checkpoints are those of the store that `nox -s matrix` filled (`nox -s tests` does
so first); a test's own store borrows the environments, so that what it breaks stays its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from docker import DockerClient
from xdist.remote import Producer

from qvlfp8.commands.images import make_base
from qvlfp8.errors import QvlError
from qvlfp8.host import default_jobs, this_host
from qvlfp8.images import base as bases
from qvlfp8.images.daemon import connect
from qvlfp8.project import Project
from qvlfp8.store import Store
from tests.integration import small_image
from tests.integration.grouping import GroupScheduling, check, in_order
from tests.integration.loader import Hosts

ROOT = Path(__file__).parents[2]


def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: as many tests at once as a run of the matrix has workers; each may have a vLLM.

    One more where there is memory for it: those of the Docker daemon and of a browser wait for these.
    """
    host = this_host()
    jobs = default_jobs(host)
    return default_jobs(host.model_copy(update={"cpus": jobs + 1}))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> GroupScheduling:
    """With `-n`: group by group."""
    return GroupScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without `-n`, too, tests of one group run in a row, so that what they share starts once."""
    for item in items:
        check(item)
    place = {test: number for number, test in enumerate(in_order([item.nodeid for item in items]))}
    items.sort(key=lambda item: place[item.nodeid])


@pytest.fixture(scope="session")
def shipped() -> Project:
    """The repository's own project, its default slice executed."""
    return Project.open(ROOT / "matrix.yaml")


@pytest.fixture(scope="session")
def hosts(shipped: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """vLLM's loader in each serve environment that is built."""
    hosts = Hosts(shipped, tmp_path_factory.mktemp("hosts"))
    yield hosts
    hosts.close()


@dataclass(frozen=True)
class Sandbox:
    """A copy of the repository's matrix, recipes and locks, with an empty store that borrows environments."""

    root: Path
    shipped: Project

    @property
    def store(self) -> Store:
        return Store(self.root / ".qvlfp8")

    def project(self) -> Project:
        return Project.open(self.root / "matrix.yaml")

    def take(self, cell: str, *stages: str) -> None:
        """Copy what `nox -s matrix` has executed of a cell: a test of what comes after need not repeat it."""
        cells = self.shipped.cells(only=(cell,))
        plan = self.shipped.plan(cells, self.shipped.locks(cells))
        for step in plan.of_cell(cells[0]):
            if step.stage in stages:
                source = self.shipped.store.entry(step.stage, step.digest)
                assert (source / "record.json").is_file(), "run `nox -s matrix` first"
                # Copies: a test may spoil them.
                shutil.copytree(source, self.store.entry(step.stage, step.digest))

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start the command line here."""
        return subprocess.Popen(
            [sys.executable, "-m", "qvlfp8", *arguments],
            cwd=self.root, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment},
        )  # fmt: skip

    def run(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """Run the command line here: exit code, output, errors."""
        process = self.start(*arguments, **environment)
        out, errors = process.communicate(timeout=900)
        return process.returncode, out, errors


@pytest.fixture(scope="session")
def docker_client() -> Iterator[DockerClient]:
    """The Docker daemon; without one the test is skipped, or fails where there has to be one."""
    try:
        client = connect()
    except QvlError as error:
        if os.environ.get("QVLFP8_TESTS_NEED_DOCKER"):
            raise
        pytest.skip(f"container tests need a Docker daemon: {error.problem}")
    yield client
    client.close()


@pytest.fixture(scope="module")
def image(docker_client: DockerClient) -> Iterator[str]:
    """The id of a small image, with nothing but a Python."""
    found = small_image.load(docker_client, "qvlfp8-test-small")
    yield found
    docker_client.images.remove(found, force=True)


@pytest.fixture(scope="session")
def docker_with_base(docker_client: DockerClient) -> DockerClient:
    """The daemon, with a base to build images on: it is made if there is none."""
    if not docker_client.images.list(name=bases.LOCAL):
        make_base(ROOT / "matrix.yaml", None, refresh=False)
    return docker_client


@pytest.fixture
def sandbox(tmp_path: Path, shipped: Project) -> Sandbox:
    """A fresh sandbox."""
    root = tmp_path / "project"
    root.mkdir()
    shutil.copy(ROOT / "matrix.yaml", root)
    shutil.copytree(ROOT / "recipes", root / "recipes")
    shutil.copytree(ROOT / "containers" / "locks", root / "containers" / "locks")
    (root / ".qvlfp8").mkdir()
    (root / ".qvlfp8" / "environments").symlink_to(shipped.store.environments)
    return Sandbox(root, shipped)


@pytest.fixture
def says() -> Callable[[tuple[int, str, str], int, Sequence[str]], None]:
    """Assert how a command ended: its code, no traceback, and that its errors say each part."""

    def check(ended: tuple[int, str, str], code: int, parts: Sequence[str]) -> None:
        status, out, errors = ended
        assert status == code, out + errors
        assert "Traceback" not in errors
        for part in parts:
            assert part in errors

    return check
