"""The command line from outside: exit codes, one clear sentence, and no traceback for a user's mistake."""

from __future__ import annotations

import contextlib
import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from qvlfp8 import reference
from qvlfp8.cli import main
from qvlfp8.commands.schema import schema_text
from qvlfp8.errors import EXIT_CODES
from qvlfp8.store import Store
from tests.unit.factory import MATRIX, open_project, write_project

ROOT = Path(__file__).parents[2]


def qvlfp8(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command line in this process, which is ten times faster than starting one."""
    out, errors = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            code = main(list(arguments))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), errors.getvalue())


def fails(done: subprocess.CompletedProcess[str], code: int, *says: str) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    for part in says:
        assert part in done.stderr


def test_help_names_every_command() -> None:
    done = qvlfp8("--help")
    assert done.returncode == 0
    for command in ("matrix", "plan", "table", "quantize", "lock", "schema"):
        assert re.search(rf"^\s+{command}\b", done.stdout, flags=re.MULTILINE)
    assert qvlfp8().stdout == done.stdout


def test_the_program_starts_and_passes_its_exit_code_on() -> None:
    started = subprocess.run(
        [sys.executable, "-m", "qvlfp8", "--version"], capture_output=True, text=True, check=True
    )
    assert started.stdout.startswith("qvlfp8 ")
    assert (
        subprocess.run([sys.executable, "-m", "qvlfp8", "nope"], capture_output=True, check=False).returncode
        == 2
    )


def test_wrong_usage_is_2() -> None:
    fails(qvlfp8("plan", "--nonsense"), 2, "--nonsense")
    fails(qvlfp8("plan", "--only", "nothing-*"), 2, "'nothing-*' names no cell", "mend:")
    fails(qvlfp8("quantize", "nope", "--model", ".", "--out", "/x"), 2, "no recipe 'nope'", "lm-fp8")
    fails(qvlfp8("quantize", "lm-fp8", "--model", "./no such", "--out", "/x"), 2, "no such folder")
    fails(qvlfp8("quantize", "lm-fp8", "--model", ".", "--out", "tests"), 2, "exists already")
    fails(qvlfp8("lock", "vllm-9"), 2, "no environment 'vllm-9'")


def test_wrong_options_of_a_data_set_are_2(tmp_path: Path) -> None:
    reference.write_random(tmp_path / "model", seed=0, tied=True)
    command = ("quantize", "lm-fp8", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"))
    fails(qvlfp8(*command, "--samples", "8"), 2, "--samples", "--dataset")
    fails(qvlfp8(*command, "--dataset", f"coco:{tmp_path}"), 2, "captions_train2017.json", "mend:")
    fails(qvlfp8(*command, "--dataset", "hub:a/b", "--columns", "words=a"), 2, "'words=a' is no mapping")


def test_a_data_set_and_a_model_can_be_had_from_the_project_itself(tmp_path: Path) -> None:
    for kind in ("model", "coco"):
        done = qvlfp8("reference", kind, str(tmp_path / kind))
        assert done.returncode == 0, done.stderr
        fails(qvlfp8("reference", kind, str(tmp_path / kind)), 2, "exists already")
    assert (tmp_path / "model" / "config.json").exists()


def test_a_folder_without_a_config_is_3(tmp_path: Path) -> None:
    fails(
        qvlfp8("quantize", "lm-fp8", "--model", str(tmp_path), "--out", "/x"),
        3,
        "config.json",
        "mend:",
    )


def test_a_model_of_no_known_family_is_4(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    reference.write_random(folder, seed=0, tied=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llava"}))
    fails(
        qvlfp8("quantize", "lm-fp8", "--model", str(folder), "--out", "/x"),
        4,
        "'llava' is not one of qwen2_vl, qwen2_5_vl, qwen3_vl",
    )


def test_a_bad_matrix_file_is_5(tmp_path: Path) -> None:
    write_project(tmp_path, MATRIX.replace("models:", "modles:", 1))
    fails(
        qvlfp8("plan", cwd=tmp_path),
        5,
        "matrix.yaml:8: modles: unknown key",
        "did you mean 'models'",
    )
    fails(qvlfp8("plan", cwd=tmp_path / "recipes"), 5, "matrix.yaml: no such file")


def test_a_lock_that_does_not_belong_is_6(tmp_path: Path) -> None:
    write_project(tmp_path)
    fails(qvlfp8("plan", cwd=tmp_path), 6, "no lock for", "nox -s lock")
    fails(qvlfp8("lock", "--check", cwd=tmp_path), 6, "no lock for")
    open_project(tmp_path)
    assert qvlfp8("lock", "--check", cwd=tmp_path).returncode == 0


def test_a_path_that_cannot_be_is_said(tmp_path: Path) -> None:
    open_project(tmp_path)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    fails(qvlfp8("table", "--store", str(loop), cwd=tmp_path), 2, "loop", "mend:")
    fails(qvlfp8("matrix", "--store", "x" * 300, cwd=tmp_path), 13, "x" * 20, "mend:")
    (tmp_path / "file").touch()
    fails(qvlfp8("matrix", "--store", "file", cwd=tmp_path), 13, "file", "mend:")
    fails(qvlfp8("quantize", "lm-fp8", "--model", ".", "--out", "x" * 300), 2, "not a usable path")
    fails(qvlfp8("quantize", "lm-fp8", "--model", "", "--out", "x"), 2, "--model is empty")


def test_an_empty_slice_is_not_green(tmp_path: Path) -> None:
    open_project(tmp_path, MATRIX.replace(", default: true", ""))
    for command in ("matrix", "plan", "table"):
        fails(qvlfp8(command, cwd=tmp_path), 2, "no cell is in the default slice", "--all")


def test_a_store_in_use_is_12(tmp_path: Path) -> None:
    project = open_project(tmp_path)
    with Store(project.store.root).locked():
        fails(qvlfp8("matrix", cwd=tmp_path), 12, "in use by another run")


def test_a_store_that_cannot_be_made_is_13(tmp_path: Path) -> None:
    open_project(tmp_path)
    fails(qvlfp8("matrix", "--store", "/proc/nowhere", cwd=tmp_path), 13, "/proc/nowhere", "--store")


def test_plan_lists_cells_steps_and_what_is_left_out() -> None:
    done = qvlfp8("plan", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    stages = {step["stage"] for step in plan["steps"].values()}
    assert stages == {"build", "model", "quantize", "inspect", "preflight", "generate"}
    assert {item["reason"] for item in plan["left_out"]} == {"not in the default slice (--all)"}
    assert all(digest in plan["steps"] for cell in plan["cells"] for digest in cell["steps"])
    everything = json.loads(qvlfp8("plan", "--json", "--all").stdout)
    assert len(everything["cells"]) == len(plan["cells"]) + len(plan["left_out"])
    text = qvlfp8("plan", "--only", "lm-fp8/*/vllm-0.33.0")
    assert re.search(r"^lm-fp8/.*/vllm-0.33.0  build.* · preflight", text.stdout, flags=re.MULTILINE)


@pytest.mark.parametrize("name", ["matrix", "recipe", "record", "github-plan", "site"])
def test_the_published_schema_is_what_the_code_makes(name: str) -> None:
    published = ROOT / "schema" / f"{name}.schema.json"
    assert published.read_text() == schema_text(name), f"qvlfp8 schema {name} > {published}"  # type: ignore[arg-type]


def test_the_shipped_files_fit_the_published_schemas() -> None:
    def schema(name: str) -> jsonschema.Draft202012Validator:
        return jsonschema.Draft202012Validator(
            json.loads((ROOT / "schema" / f"{name}.schema.json").read_text())
        )

    schema("matrix").validate(yaml.safe_load((ROOT / "matrix.yaml").read_text()))
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        schema("recipe").validate(yaml.safe_load(recipe.read_text()))
    with pytest.raises(jsonschema.ValidationError):
        schema("matrix").validate({"cells": []})


def test_the_readme_lists_the_exit_codes_that_there_are() -> None:
    readme = (ROOT / "README.md").read_text()
    rows = dict(re.findall(r"^\| (\d+) \| (.*) \|$", readme, flags=re.MULTILINE))
    assert rows == {str(code): meaning for code, meaning in EXIT_CODES.items()}


def test_ci_runs_the_readmes_test_command() -> None:
    command = (ROOT / ".ci" / "run").read_text().splitlines()[-1]
    assert command.endswith("nox -s tests")
    assert f"```sh\n{command}\n```" in (ROOT / "README.md").read_text()


def test_plan_counts_the_cells_that_were_not_asked_for() -> None:
    done = qvlfp8("plan", "--only", "vlm-fp8/modelopt-0.47.0/seeing-untied/vllm-0.26.0")
    assert "cells not named by --only" in done.stdout.splitlines()[-1]
    assert len(done.stdout.splitlines()) == 2


def test_plan_says_why_cells_that_were_asked_for_are_left_out() -> None:
    done = qvlfp8("plan", "--only", "lm-*/modelopt-0.47.0/seeing-untied/vllm-0.32.0-cpu")
    left_out = [line for line in done.stdout.splitlines() if line.startswith("- ")]
    assert [line.split("/")[0] for line in left_out] == ["- lm-nvfp4-kv-fp8", "- lm-nvfp4"]
    assert all(line.endswith("left out: vLLM's CPU build has no kernel for NVFP4") for line in left_out)
