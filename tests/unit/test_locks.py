from __future__ import annotations

from pathlib import Path

import pytest

from qvlfp8 import locking, locks
from qvlfp8.errors import LockError
from qvlfp8.matrix import read_matrix
from tests.unit.factory import MATRIX, open_project

ROOT = Path(__file__).parents[2]
TARGETS: tuple[locks.Target, ...] = ("bundle", "cuda")


def test_every_shipped_lock_belongs_to_its_environment_and_pins_what_its_line_says() -> None:
    matrix = read_matrix(ROOT / "matrix.yaml")
    for environment, target in locking.of_matrix(matrix).values():
        lock = locks.find_lock(matrix, environment, target)
        assert (lock.unresolved is not None) == matrix.expects_unresolved(environment)
        if lock.unresolved is not None:
            continue
        pinned = lock.versions()
        name, _, version = environment.requirement.replace("[hf]", "").partition("==")
        assert pinned[name] == version
        assert environment.transformers in {None, pinned["transformers"]}
        if target == "cpu":
            assert pinned["torch"] == matrix.file.locks.torch
            assert not {"torchvision", "ray", "triton"} - set(environment.keep) & pinned.keys()


def test_no_shipped_lock_is_without_its_environment() -> None:
    matrix = read_matrix(ROOT / "matrix.yaml")
    expected = {locks.path_of(matrix, *asked) for asked in locking.of_matrix(matrix).values()}
    assert set((ROOT / "containers" / "locks").glob("*.txt")) == expected


def test_a_lock_names_no_place() -> None:
    for path in (ROOT / "containers" / "locks").glob("*.txt"):
        text = path.read_text()
        assert "://" not in text
        assert "--find-links" not in text


def test_a_changed_line_makes_exactly_that_lock_out_of_date(tmp_path: Path) -> None:
    project = open_project(tmp_path)
    project.matrix.path.write_text(MATRIX.replace("{vllm: 0.13.0,", "{vllm: 0.13.0, requires: [six],"))
    matrix = read_matrix(project.matrix.path)
    assert [e.id for e in matrix.environments if locks.problem(matrix, e)] == ["vllm-0.13.0"]
    with pytest.raises(LockError, match="out of date") as caught:
        locks.read_lock(matrix, matrix.file.serve[1])
    assert caught.value.mend == "nox -s lock -- vllm-0.13.0"


@pytest.mark.parametrize("old", ['python: "3.11"', "torch: 2.13.0+cpu", 'exclude_newer: "2026', "serve: {}"])
def test_everything_that_can_change_the_answer_is_in_the_digest(tmp_path: Path, old: str) -> None:
    new = {
        "python": 'python: "3.12"',
        "torch:": "torch: 2.14.0+cpu",
        "exclud": 'exclude_newer: "2025',
        "serve:": "serve: {exclude: [ray]}",
    }[old[:6]]
    project = open_project(tmp_path)
    project.matrix.path.write_text(MATRIX.replace(old, new, 1))
    matrix = read_matrix(project.matrix.path)
    assert locks.problem(matrix, matrix.file.serve[0])


def test_a_missing_lock_says_how_to_make_it(tmp_path: Path) -> None:
    project = open_project(tmp_path)
    locks.path_of(project.matrix, project.matrix.file.serve[0]).unlink()
    with pytest.raises(LockError, match=r"no lock for vllm-0\.10\.2"):
        project.locks(project.matrix.cells)


def test_records_of_a_bundle_stand_for_the_same_vllm_torch_and_transformers() -> None:
    """Evidence of a GPU host is made in the bundle's lock and shown for the environment."""
    matrix = read_matrix(ROOT / "matrix.yaml")
    bundled = [
        environment
        for environment, target in locking.of_matrix(matrix).values()
        if target == "bundle" and environment.kind == "serve"
    ]
    assert bundled
    for environment in bundled:
        one, other = (locks.read_lock(matrix, environment, target).versions() for target in TARGETS)
        for package in ("vllm", "torch", "transformers"):
            assert one[package] == other[package], (environment.id, package)
