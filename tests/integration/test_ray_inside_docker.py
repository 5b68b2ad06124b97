"""Engine ray whose steps run in containers of the node's own daemon: the same verdicts as without either.

What is run is a cell of the survival session's project, on a cluster that the command starts by itself.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from docker import DockerClient

from qvlfp8.engine.docker_leftovers import KIND, STEP
from tests.integration.ray_cluster import LIMIT_S
from tests.survive.journal import Journal
from tests.survive.kept import Entry, Key, but_builds, entries, said
from tests.survive.nodes import variables
from tests.survive.project import Drill, make

pytestmark = pytest.mark.filterwarnings("default")
CELL = "good/modelopt-0.47.0/seeing/vllm-0.26.0"
OF_THE_ENGINE = {"environment", "repeat"}
"""What a record says of the engine."""


def run(drill: Drill, store: Path, engine: str, *options: str) -> Mapping[Key, Entry]:
    """Run the cell; what is on record then."""
    ended = subprocess.run(
        [*drill.command(store, engine=engine), "--only", CELL, *options],
        # Ray puts the driver's folder before what its workers import.
        cwd=drill.root, env={**drill.variables(), **variables(drill, drill.root / "node")},
        capture_output=True, text=True, check=False, timeout=LIMIT_S,
    )  # fmt: skip
    found, broken = entries(store)
    assert not broken
    assert ended.returncode == 1, ended.stdout + ended.stderr  # it is blind, and nothing expects it
    return but_builds(found)


def test_the_verdicts_are_those_without_a_cluster_or_containers(
    tmp_path: Path, docker_client: DockerClient, image: str
) -> None:
    drill = make(tmp_path / "drill", image=image)
    shared = f"file://{tmp_path / 'shared'}"
    options = ("--inside", "docker", "--shared", shared, "--retries", "0")
    with contextlib.closing(Journal(drill.pipe)):
        inside = run(drill, tmp_path / "inside", "ray", *options)
        alone = run(drill, tmp_path / "alone", "venv")
    assert {stage for stage, _ in inside} == {"model", "quantize", "inspect", "preflight"}
    assert inside.keys() == alone.keys()
    for key in inside:
        ours, theirs = said(inside[key].record), said(alone[key].record)
        assert {name for name in ours if ours[name] != theirs[name]} <= OF_THE_ENGINE
    environments = {stage: entry.record.environment for (stage, _), entry in inside.items()}
    assert all("ray" in environment for environment in environments.values())
    assert environments["quantize"]["image"] == environments["preflight"]["image"] == image
    assert {path.parts[-2] for path in tmp_path.glob("shared/steps/*/*")} == environments.keys()
    assert not docker_client.containers.list(all=True, filters={"label": f"{KIND}={STEP}"}, sparse=True)
