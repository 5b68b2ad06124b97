"""Integration tests that share something dear run in one process of pytest-xdist."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.grouping import LONG, group_of, in_order

ROOT = Path(__file__).parents[2]

CONFTEST = """
from tests.integration.grouping import GroupScheduling

def pytest_xdist_make_scheduler(config, log):
    return GroupScheduling(config, log)
"""

OF_ENVIRONMENTS = """
import pathlib
import pytest

@pytest.mark.parametrize("serve", ["vllm-0.13.0", "vllm-0.26.0"])
def test_it(serve, worker_id, request):
    here = pathlib.Path(__file__).parent
    (here / f"{serve} {request.module.__name__} {worker_id}").touch()
"""

OF_THE_DAEMON = """
import pathlib
import pytest

@pytest.mark.parametrize("number", range(4))
def test_it(number, worker_id):
    here = pathlib.Path(__file__).parent
    (here / f"docker {__name__} {number} {worker_id}").touch()
"""


@pytest.mark.parametrize(
    ("test", "group"),
    [
        ("tests/integration/test_forms.py::test_a_form[vllm-0.13.0]", "vllm-0.13.0"),
        ("tests/integration/test_plugin.py::test_all_else[vllm-0.32.0-cpu]", "vllm-0.32.0-cpu"),
        ("tests/integration/test_images.py::test_real_environments[vllm-0.26.0]", "docker"),
        ("tests/integration/test_docker_engine.py::test_a_fork_bomb_is_contained", "docker"),
    ],
)
def test_the_group_follows_from_the_id(test: str, group: str) -> None:
    assert group_of(test) == group


def test_what_is_in_no_group_is_by_itself() -> None:
    for test in (
        "tests/integration/test_faults.py::test_a",
        "t/test_plugin.py::test_b[vllm-0.10.2-variables0]",
    ):
        assert group_of(test) == test


def test_the_daemon_comes_first_then_the_largest_groups_then_what_is_long_by_itself() -> None:
    alone = [f"t/test_faults.py::{name}" for name in ("test_a", LONG[1], LONG[0])]
    of_vllm = [f"t/test_{module}.py::test_b[vllm-0.13.0]" for module in ("forms", "plugin", "repair")]
    of_docker = ["t/test_images.py::test_c", "t/test_docker_engine.py::test_d"]
    mixed = [alone[0], of_vllm[0], of_docker[0], alone[1], of_vllm[1], of_docker[1], alone[2], of_vllm[2]]
    assert in_order(mixed) == [*of_docker, *of_vllm, alone[2], alone[1], alone[0]]


def test_what_is_long_is_there() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "tests" / "integration").glob("test_*.py"))
    assert [name for name in LONG if f"def {name}(" not in sources] == []


def test_a_group_runs_in_one_process_and_groups_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for name in ("test_forms", "test_repair"):
        (tmp_path / f"{name}.py").write_text(OF_ENVIRONMENTS)
    for name in ("test_images", "test_docker_engine"):
        (tmp_path / f"{name}.py").write_text(OF_THE_DAEMON)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "xdist.plugin", str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    workers: dict[str, set[str]] = {}
    for file in tmp_path.glob("* test_* gw?"):
        words = file.name.split()
        workers.setdefault(words[0], set()).add(words[-1])
    assert workers.keys() == {"docker", "vllm-0.13.0", "vllm-0.26.0"}
    assert {group: len(found) for group, found in workers.items()} == dict.fromkeys(workers, 1)
    assert len(set.union(*workers.values())) == 2
