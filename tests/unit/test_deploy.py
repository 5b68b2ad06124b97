"""deploy/: the check of manifests finds what is wrong, and what is there says what is true of us."""

from __future__ import annotations

import copy
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from qvlfp8.cli import app

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
problems = runpy.run_path(str(DEPLOY / "check.py"))["problems"]

CRD: dict[str, Any] = {
    "spec": {
        "group": "example.org",
        "names": {"kind": "Thing"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "apiVersion": {"type": "string"},
                            "kind": {"type": "string"},
                            "metadata": {"type": "object"},
                            "spec": {
                                "type": "object",
                                "required": ["size"],
                                "properties": {
                                    "size": {"type": "integer", "minimum": 1},
                                    "limits": {
                                        "type": "object",
                                        "additionalProperties": {"x-kubernetes-int-or-string": True},
                                    },
                                    "free": {
                                        "type": "object",
                                        "properties": {"a": {"type": "string"}},
                                        "x-kubernetes-preserve-unknown-fields": True,
                                    },
                                },
                            },
                        },
                    }
                },
            }
        ],
    }
}
GOOD = {
    "apiVersion": "example.org/v1",
    "kind": "Thing",
    "metadata": {"generateName": "thing-"},
    "spec": {"size": 2, "limits": {"cpu": "2", "gpus": 1}, "free": {"b": 1}},
}


def test_a_right_manifest_has_no_problem() -> None:
    assert list(problems(GOOD, CRD)) == []


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("spec", "sise"), 1, "'sise' was unexpected"),
        (("spec", "size"), 0, "less than the minimum"),
        (("spec", "limits"), {"cpu": 1.5}, "is not of type"),
        (("spec",), {}, "'size' is a required property"),
        (("kind",), "Other", "it is a example.org Other"),
        (("apiVersion",), "example.org/v2", "serves no v2"),
    ],
)
def test_what_is_wrong_is_found(place: tuple[str, ...], value: Any, said: str) -> None:
    manifest = copy.deepcopy(GOOD)
    at: Any = manifest
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    assert said in "\n".join(problems(manifest, CRD))


def entrypoints() -> list[list[str]]:
    job = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())
    script = (DEPLOY / "slurm.sh").read_text().replace("\\\n", " ")
    (line,) = (line for line in script.splitlines() if " qvlfp8 matrix " in line)
    return [shlex.split(job["spec"]["entrypoint"]), shlex.split(line[line.index("qvlfp8 matrix") :])]


def test_the_commands_have_options_that_there_are() -> None:
    shown = CliRunner().invoke(app, ["matrix", "--help"], env={"COLUMNS": "200"}).output
    for command in entrypoints():
        assert command[:2] == ["qvlfp8", "matrix"]
        for option in (word for word in command if word.startswith("--")):
            assert re.search(rf"{option}\b", shown), option


def test_every_place_names_the_ray_that_is_locked() -> None:
    lock = (ROOT / "uv.lock").read_text()
    (version,) = re.findall(r'^name = "ray"\nversion = "([^"]+)"', lock, flags=re.MULTILINE)
    job = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == version
    assert f"rayproject/ray:{version}-py" in (DEPLOY / "Dockerfile").read_text()


def test_the_script_is_sound() -> None:
    # The wheel puts its program beside Python.
    shellcheck = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    assert shellcheck is not None
    command = [shellcheck, str(DEPLOY / "slurm.sh")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
