"""Which tests share what is dear to start: with pytest-xdist they run in one process, one after the other.

xdist's own ``--dist loadgroup`` writes the group into the test's id, which pytest 9.2 no longer lets it:
tests are then spread as if they had none, and nothing says so. Here the group follows from the id.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from qvlfp8.project import Project
from tests.integration.loader import ROOT

DOCKER = "docker"
"""The daemon: what one test leaves in it, and takes away, another would see."""

TOGETHER = {
    "test_docker_engine": DOCKER,
    "test_docker_records": DOCKER,
    "test_secrets": DOCKER,
    "test_images": DOCKER,
    # A fixture of the module takes a minute.
    "test_calibration": "calibration",
    "test_families": "families",
}
"""Module -> group of its tests."""

ENVIRONMENTS = {environment.id for environment in Project.open(ROOT / "matrix.yaml").matrix.file.serve}
"""Each is a group: tests that have nothing but one of them for a parameter ask its host."""


def group_of(test: str) -> str:
    """The group of a test, by its id; of a test without one its id."""
    module, _, name = test.partition("::")
    parameter = name.partition("[")[2].removesuffix("]")
    return TOGETHER.get(Path(module).stem, parameter if parameter in ENVIRONMENTS else test)


def check(item: pytest.Item) -> None:
    """See that a test is in the group of what it uses.

    Raises:
        UsageError: it is not, and would start it once more, or disturb those that are.
    """
    group = group_of(item.nodeid)
    uses = getattr(item, "fixturenames", ())
    if ("docker_client" in uses) > (group == DOCKER) or ("hosts" in uses) > (group in ENVIRONMENTS):
        raise pytest.UsageError(f"{item.nodeid}: is not in the group of what it uses ({__file__})")


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Hands out whole groups, the largest first."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
