"""The same steps in engine `venv` and in engine `docker`: the same verdicts, values and checkpoints.

Slow: real ModelOpt and real vLLM code are imported, and images are built where they are not. What engine
`venv` makes of a cell of the default slice was made by `nox -s matrix` and is not made again.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from docker import DockerClient

from qvlfp8 import checkpoint, reference
from qvlfp8.engine.docker_leftovers import KIND, STEP
from qvlfp8.errors import EXIT_INTERRUPTED
from qvlfp8.project import Project
from qvlfp8.reference.coco import write_coco
from qvlfp8.results import Record
from tests.integration.conftest import Sandbox

CELL = "lm-fp8/modelopt-0.47.0/seeing-untied/vllm-0.26.0"
STAGES = ("model", "quantize", "inspect", "preflight")

Says = Callable[[tuple[int, str, str], int, Sequence[str]], None]

pytestmark = pytest.mark.usefixtures("docker_with_base")


def records(root: Path, store: Path) -> dict[str, Record]:
    """The cell's records by stage."""
    project = Project.open(root / "matrix.yaml", store)
    cells = project.cells(only=(CELL,))
    plan = project.plan(cells, project.locks(cells))
    found: dict[str, Record] = {}
    for step in plan.of_cell(cells[0]):
        record = project.store.record(step.stage, step.digest)
        if record is not None and step.stage not in {"build", "generate"}:
            found[step.stage] = record
    return found


def without_times(measured: Any) -> Any:
    """What was measured, less what took how long."""
    if isinstance(measured, dict):
        return {key: without_times(value) for key, value in measured.items() if "seconds" not in key}
    return measured


def test_both_engines_make_the_same_records(sandbox: Sandbox, says: Says) -> None:
    docker = sandbox.root / "docker"
    sandbox.take(CELL, *STAGES)
    says(sandbox.run("matrix", "--only", CELL, "--engine", "docker", "--store", str(docker)), 0, ())

    theirs = records(sandbox.root, docker)
    assert set(STAGES) == set(theirs)
    made = records(sandbox.root, sandbox.store.root)
    assert set(STAGES) == set(made)
    for stage, ours in made.items():
        for field in ("status", "findings", "fault", "made", "read", "inputs", "digest"):
            assert getattr(theirs[stage], field) == getattr(ours, field), (stage, field)
        assert without_times(theirs[stage].measured) == without_times(ours.measured)
        assert (ours.environment["engine"], theirs[stage].environment["engine"]) == ("venv", "docker")
    for stage in ("quantize", "preflight"):
        assert theirs[stage].environment["image"].startswith("sha256:")
        assert len(theirs[stage].environment["manifest"]) == 64
        assert "--engine docker" in theirs[stage].repeat

    # What one engine has done, the other need not do.
    ended = sandbox.run("matrix", "--only", CELL, "--engine", "docker")
    says(ended, 0, ())
    assert "steps to do" not in ended[2]
    assert records(sandbox.root, sandbox.store.root)["quantize"].environment["engine"] == "venv"


def spoilt_coco(folder: Path) -> Path:
    """Twelve pictures with captions, one of them broken."""
    write_coco(folder, pictures=12, seed=0)
    picture = folder / "train2017" / "000000000001.png"
    picture.write_bytes(picture.read_bytes()[:500])
    return folder


def in_hub_cache(hub: Path) -> str:
    """A model of the hub's cache, whose snapshot is links; returns its id."""
    folder = hub / "models--some--model"
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "0a"
    reference.write_trained(blobs, tied=True)
    snapshot.mkdir(parents=True)
    for number, blob in enumerate(sorted(blobs.iterdir())):
        (snapshot / blob.name).symlink_to(f"../../blobs/{number}")
        blob.rename(blobs / str(number))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0a")
    return "some/model"


def test_ones_own_model_and_data_set_are_shown_to_the_container_and_give_the_same_checkpoint(
    sandbox: Sandbox, docker_client: DockerClient
) -> None:
    """The model is one of the hub's cache: links into it, which the container sees and cannot write."""
    hub, coco = sandbox.root / "hub", spoilt_coco(sandbox.root / "coco")
    model = in_hub_cache(hub)
    made, calibration = {}, {}
    mounts: list[dict[str, Any]] = []
    for engine in ("docker", "venv"):
        out = sandbox.root / engine
        process = sandbox.start(
            "quantize", "lm-fp8-image-calib", "--model", model, "--out", str(out), "--engine", engine,
            "--dataset", f"coco:{coco}", "--samples", "11",
            HF_HUB_CACHE=str(hub),
        )  # fmt: skip
        if engine == "docker":
            mounts = mounts_of_step(docker_client, sandbox.root, process)
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        record = Record.model_validate_json((out / "qvlfp8-record.json").read_text())
        assert (record.status, record.environment["engine"]) == ("pass", engine)
        assert f"--dataset coco:{coco}" in record.repeat
        assert record.inputs["dataset"]["digest"]
        (out / "qvlfp8-record.json").unlink()
        made[engine] = checkpoint.folder_digest(out)
        calibration[engine] = record.measured["quantize"]["calibration"]

    shown = {mount["Destination"]: (mount["Source"], mount["RW"]) for mount in mounts}
    for read in (coco / "train2017", coco / "annotations" / "captions_train2017.json"):
        assert shown[str(read)] == (str(read), False)
    assert not [place for place in shown if Path(place) in (coco, *coco.parents)], "more than it reads"
    of_hub = [writable for source, writable in shown.values() if Path(source).is_relative_to(hub)]
    assert of_hub
    assert not any(of_hub)
    assert made["docker"] == made["venv"]
    assert calibration["docker"] == calibration["venv"]
    assert (calibration["docker"]["samples"], calibration["docker"]["images"]) == (11, 11)
    assert calibration["docker"]["dataset"]["skipped"] == {"broken picture": 1}


def mounts_of_steps(client: DockerClient, root: Path) -> list[list[dict[str, Any]]]:
    """The mounts of each container in which a step runs for a sandbox."""
    found = client.containers.list(filters={"label": f"{KIND}={STEP}"}, sparse=True)
    mounts = [container.attrs["Mounts"] for container in found]
    return [one for one in mounts if any(Path(mount["Source"]).is_relative_to(root) for mount in one)]


def mounts_of_step(client: DockerClient, root: Path, process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """Those of the one step that the process runs, once it runs it."""
    while not (found := mounts_of_steps(client, root)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    (mounts,) = found
    return mounts


def test_an_interrupt_leaves_no_container_and_no_output(
    sandbox: Sandbox, docker_client: DockerClient
) -> None:
    model = sandbox.root / "model"
    reference.write_trained(model, tied=True)
    out = sandbox.root / "made"
    process = sandbox.start(
        "quantize", "lm-fp8", "--model", str(model), "--out", str(out), "--engine", "docker"
    )
    mounts_of_step(docker_client, sandbox.root, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_INTERRUPTED, errors
    assert not mounts_of_steps(docker_client, sandbox.root)
    assert not [path for path in sandbox.root.iterdir() if path.name.startswith(("made", ".qvlfp8-"))]
