"""Which tests share what is dear to start: with pytest-xdist they run in one process, one after the other.

xdist's own ``--dist loadgroup`` writes the group into the test's id, which pytest 9.2 no longer lets it:
tests are then spread as if they had none, and nothing says so. Here the group follows from the id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from qvlfp8.project import Project
from tests.integration.loader import ROOT

DOCKER = "docker"
"""The daemon: what one test leaves in it, and takes away, another would see."""

TOGETHER = {
    "test_docker_engine": DOCKER,
    "test_docker_records": DOCKER,
    "test_ray_inside_docker": DOCKER,
    "test_secrets": DOCKER,
    "test_images": DOCKER,
    # A fixture of the module takes a minute.
    "test_calibration": "calibration",
    "test_families": "families",
    # A copy of the repository, with an environment of its own.
    "test_workflow_lines": "workflows",
    # A cluster, whose processes take seconds to start.
    "test_ray": "ray",
    # A browser each, with Python in it.
    "test_checker": "checker",
    "test_site": "site",
}
"""Module -> group of its tests."""

LONG = (
    "test_what_was_mended_sees",
    "test_a_run_with_the_plugin_sees_and_a_blind_one_is_refused",
    "test_ctrl_c_ends_everything_at_once_and_a_rerun_continues",
    "test_a_killed_worker_is_an_error_and_the_next_run_finishes",
    "test_llm_compressor_quantizes_and_a_pattern_that_no_longer_matches_is_refused",
    "test_two_runs_in_one_store_do_not_mix",
)
"""Tests in no group that start a vLLM, or build an environment: before the others that are in none."""

ENVIRONMENTS = {environment.id for environment in Project.open(ROOT / "matrix.yaml").matrix.file.serve}
"""Each is a group: tests that have nothing but one of them for a parameter ask its host."""


def group_of(test: str) -> str:
    """The group of a test, by its id; of a test without one its id."""
    module, _, name = test.partition("::")
    parameter = name.partition("[")[2].removesuffix("]")
    return TOGETHER.get(Path(module).stem, parameter if parameter in ENVIRONMENTS else test)


def in_order(tests: Sequence[str]) -> list[str]:
    """Ids group by group, what takes longest first, so that every process is busy to the end."""
    size = Counter(map(group_of, tests))

    def place(test: str) -> tuple[bool, int, int, str]:
        group = group_of(test)
        name = group.rpartition("::")[2]
        return group != DOCKER, -size[group], LONG.index(name) if name in LONG else len(LONG), group

    return sorted(tests, key=place)


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
    """Hands out whole groups, in the order of their first tests."""

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
