"""Options that choose cells, as `qvlfp8 matrix` has them; one test a cell and stage from the records."""

from __future__ import annotations

from pathlib import Path

import pytest

from qvlfp8.project import Project

ROOT = Path(__file__).parents[2]


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of `qvlfp8 matrix` that say which cells and where their records are."""
    group = parser.getgroup("qvlfp8")
    group.addoption("--all", action="store_true", help="assert every cell, not just the default slice")
    group.addoption("--only", action="append", default=[], metavar="GLOB", help="assert only these cells")
    group.addoption("--matrix", type=Path, default=ROOT / "matrix.yaml", help="the matrix file")
    group.addoption("--store", type=Path, default=None, help="where the records are")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A checkpoint's own stages, which its cells share, are asserted once, under the checkpoint's id."""
    if "surprise" not in metafunc.fixturenames:
        return
    config = metafunc.config
    project = Project.open(config.getoption("--matrix"), config.getoption("--store"))
    cells = project.cells(only=config.getoption("--only"), everything=config.getoption("--all"))
    surprises: dict[str, str | None] = {}
    for view in project.views(project.plan(cells, project.locks(cells)), project.executed):
        for stage, surprise in project.surprises(view):
            subject = view.cell.subject(stage)
            surprises[f"{subject}-{stage}"] = surprise
    metafunc.parametrize("surprise", [pytest.param(text, id=name) for name, text in surprises.items()])
