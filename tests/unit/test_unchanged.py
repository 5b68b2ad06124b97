"""A run with nothing to do shows what the last one did - unless anything at all that it reads is another."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qvlfp8.commands import matrix as commands
from qvlfp8.commands.matrix import run_matrix, show_table
from qvlfp8.project import Project
from qvlfp8.seen_files import Mark, mark_at
from tests.unit.factory import open_project
from tests.unit.test_run import FakeEngine

pytestmark = pytest.mark.usefixtures("fast_disk", "small_models")


class Runs:
    """`qvlfp8 matrix` in a project of one recipe; counts how often records were read and judged."""

    def __init__(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.project: Project = open_project(root)
        self.root = root
        self.read = 0
        self._capsys = capsys
        monkeypatch.setattr("qvlfp8.commands.matrix.make_engine", self._engine)

    def _engine(self, *_arguments: Any, **_options: Any) -> FakeEngine:
        self.read += 1
        return FakeEngine()

    def run(self, **changed: Any) -> tuple[str, str]:
        options: dict[str, Any] = {
            "only": [], "everything": False, "again": False, "jobs": 1, "engine": "venv", "verbose": False,
        }  # fmt: skip
        run_matrix(self.root / "matrix.yaml", None, **(options | changed))
        told = self._capsys.readouterr()
        return told.out, told.err

    def a_record(self) -> Path:
        return min((self.project.store.root / "steps" / "preflight").glob("*/record.json"))


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runs:
    """A project of which nothing was executed yet; its files count as old at once."""
    monkeypatch.setattr("qvlfp8.unchanged.SETTLED_NS", 0)
    return Runs(tmp_path, monkeypatch, capsys)


@pytest.fixture
def runs(fresh: Runs) -> Runs:
    """One that was run."""
    fresh.run()
    return fresh


def test_what_the_last_run_showed_is_shown_again_and_nothing_is_read(runs: Runs) -> None:
    assert runs.read == 1
    out, err = runs.run()
    assert runs.read == 1
    shutil.rmtree(runs.project.store.root / "tmp")
    (runs.project.store.root / "unchanged.json").unlink()
    assert runs.run() == (out, err)
    assert runs.read == 2
    assert "1 cells: 1 pass" in err
    assert "lm-fp8/modelopt-0.41.0/tiny" in out


def edit_matrix(runs: Runs) -> None:
    path = runs.root / "matrix.yaml"
    path.write_text(path.read_text() + "# another line\n")


def edit_recipe(runs: Runs) -> None:
    path = runs.root / "recipes" / "lm-fp8.yaml"
    path.write_text(path.read_text().replace("FP8 language", "FP9 language"))


def add_recipe(runs: Runs) -> None:
    shutil.copy(runs.root / "recipes" / "lm-fp8.yaml", runs.root / "recipes" / "other.yaml")


def touch_lock(runs: Runs) -> None:
    os.utime(runs.root / "containers" / "locks" / "vllm-0.10.2.cpu.txt", (1, 1))


def add_evidence(runs: Runs) -> None:
    folder = runs.root / "results" / "nvidia-h100" / "vllm-0.10.2"
    folder.mkdir(parents=True)
    (folder / "truth.json").write_text("{}")


def edit_record_with_its_old_time(runs: Runs) -> None:
    path = runs.a_record()
    before = path.stat()
    text = path.read_text()
    path.write_text(text.replace('"seconds": 1', '"seconds": 2', 1))
    assert path.read_text() != text
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_record(runs: Runs) -> None:
    path = runs.a_record()
    shutil.copy2(path, path.with_suffix(".half"))
    path.with_suffix(".half").replace(path)


def lose_entry(runs: Runs) -> None:
    shutil.rmtree(runs.a_record().parent)


def lose_record(runs: Runs) -> None:
    runs.a_record().unlink()


def edit_output(runs: Runs) -> None:
    (runs.project.store.root / "matrix.md").write_text("")


def lose_output(runs: Runs) -> None:
    (runs.project.store.root / "matrix.json").unlink()


def bend_what_is_kept(runs: Runs) -> None:
    (runs.project.store.root / "unchanged.json").write_text('{"of": 1}')


@pytest.mark.parametrize(
    "change",
    [
        edit_matrix, edit_recipe, add_recipe, touch_lock, add_evidence, edit_record_with_its_old_time,
        replace_record, lose_entry, lose_record, edit_output, lose_output, bend_what_is_kept,
    ],
)  # fmt: skip
def test_whatever_has_changed_all_is_read_and_judged_again(
    runs: Runs, change: Callable[[Runs], None]
) -> None:
    change(runs)
    runs.run()
    assert runs.read == 2
    assert (runs.project.store.root / "matrix.md").read_text()
    assert (runs.project.store.root / "matrix.json").exists()


def test_a_changed_file_of_the_package_counts(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    package = runs.root / "package"
    package.mkdir()
    monkeypatch.setattr("qvlfp8.unchanged.PACKAGE", package)
    runs.run()
    runs.run()
    assert runs.read == 2
    (package / "judge.py").write_text("")
    runs.run()
    assert runs.read == 3


@pytest.mark.parametrize(
    "asked",
    [{"everything": True}, {"only": ["*"]}, {"evidence": False}, {"engine": "docker"}, {"again": True}],
)
def test_whatever_else_is_asked_all_is_read(runs: Runs, asked: dict[str, Any]) -> None:
    runs.run(**asked)
    assert runs.read == 2


def test_another_width_or_another_machine_is_another_question(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "61")
    runs.run()
    assert runs.read == 2
    monkeypatch.setattr("qvlfp8.commands.matrix.devices", lambda: frozenset({"cpu", "cuda"}))
    runs.run()
    assert runs.read == 3


def test_evidence_behind_a_link_to_a_folder_counts(runs: Runs) -> None:
    folder = runs.root / "results" / "nvidia-h100"
    folder.mkdir(parents=True)
    (runs.root / "elsewhere").mkdir()
    (folder / "vllm-0.10.2").symlink_to(runs.root / "elsewhere")
    (folder / "around").symlink_to(runs.root / "results")
    runs.run()
    runs.run()
    assert runs.read == 2
    (runs.root / "elsewhere" / "truth.json").write_text("{}")
    runs.run()
    assert runs.read == 3


def test_where_no_colour_is_wanted_none_is_shown_again(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    coloured, _ = runs.run()
    assert runs.read == 2
    monkeypatch.setenv("NO_COLOR", "1")
    shown, _ = runs.run()
    assert runs.read == 3
    assert len(shown) < len(coloured)
    (runs.project.store.root / "unchanged.json").unlink()
    assert runs.run()[0] == shown


def test_what_is_too_new_to_be_told_apart_is_not_relied_on(
    fresh: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qvlfp8.unchanged.SETTLED_NS", 3600 * 10**9)
    fresh.run()
    fresh.run()
    assert fresh.read == 2


def test_a_file_that_was_changed_while_it_was_read_is_not_relied_on(
    fresh: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def engine(*_arguments: Any, **_options: Any) -> FakeEngine:
        edit_matrix(fresh)
        fresh.read += 1
        return FakeEngine()

    monkeypatch.setattr("qvlfp8.commands.matrix.make_engine", engine)
    fresh.run()
    fresh.run()
    assert fresh.read == 2


def test_what_was_not_as_expected_is_told_each_time(fresh: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fresh.root / "matrix.yaml"
    expected = '- {cells: "lm-fp8/*", shows: {preflight: not-generative}, reason: it is to be seen}'
    path.write_text(path.read_text().replace("expectations: []", f"expectations:\n  {expected}"))
    for _ in range(2):
        with pytest.raises(Exception, match="ended otherwise"):
            fresh.run()
    assert fresh.read == 2


def test_links_that_lead_around_are_followed_once(fresh: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them leads to all of them: followed to the kernel's limit, they would have no end."""
    results = fresh.root / "results"
    results.mkdir()
    for name in ("one", "other"):
        (results / name).symlink_to(results)
    looked_at = 0

    def counted(path: str) -> Mark | None:
        nonlocal looked_at
        looked_at += 1
        assert looked_at < 50_000
        return mark_at(path)

    monkeypatch.setattr("qvlfp8.unchanged.mark_at", counted)
    fresh.run()
    fresh.run()
    assert fresh.read == 1


class Tables:
    """`qvlfp8 table` in the project of a run; counts how often records were read."""

    def __init__(
        self, runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.runs = runs
        self.read = 0
        self.meanwhile: Callable[[], None] = lambda: None
        self._capsys = capsys
        views = Project.views

        def counted(*arguments: Any, **options: Any) -> Any:
            self.read += 1
            found = views(*arguments, **options)
            self.meanwhile()
            return found

        monkeypatch.setattr(Project, "views", counted)

    def show(self, form: Any = "markdown", **changed: Any) -> str:
        options: dict[str, Any] = {"only": [], "everything": False}
        show_table(self.runs.root / "matrix.yaml", None, form=form, **(options | changed))
        return self._capsys.readouterr().out


@pytest.fixture
def tables(runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tables:
    capsys.readouterr()
    return Tables(runs, monkeypatch, capsys)


@pytest.mark.parametrize("form", ["terminal", "markdown", "json"])
def test_a_table_is_shown_again_without_reading(tables: Tables, form: str) -> None:
    first = tables.show(form)
    assert "lm-fp8" in first
    assert tables.show(form) == first
    assert tables.read == 1


@pytest.mark.parametrize("form", ["terminal", "markdown", "json"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_table_of_many_cells_says_what_it_would_say_of_few(
    tables: Tables, form: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tables.show(form, everything=True)
    monkeypatch.setattr(commands, "_MANY", 1)
    monkeypatch.setattr(commands, "processes", lambda: count)
    tables.runs.a_record().touch()
    assert tables.show(form, everything=True) == first
    # What another process reads is not counted here.
    assert tables.read == (2 if count == 2 else 3)


def test_what_else_is_asked_of_a_table_is_another_question(tables: Tables) -> None:
    shown = {tables.show(form) for form in ("terminal", "markdown", "json")}
    assert len(shown) == 3
    tables.show("markdown", everything=True)
    tables.show("markdown", only=["lm-fp8/*"])
    assert tables.read == 5
    tables.show("terminal")
    assert tables.read == 5


def test_a_table_of_a_changed_record_is_drawn_anew(tables: Tables) -> None:
    before = tables.show()
    path = tables.runs.a_record()
    path.write_text(path.read_text().replace('"status": "pass"', '"status": "fail"'))
    after = tables.show()
    assert tables.read == 2
    assert after != before
    path.unlink()
    assert tables.show() not in {before, after}


def test_what_was_recorded_while_a_table_was_drawn_is_seen_by_the_next(tables: Tables) -> None:
    path = tables.runs.a_record()

    def recorded() -> None:
        path.write_text(path.read_text().replace('"status": "pass"', '"status": "fail"'))

    tables.meanwhile = recorded
    before = tables.show()
    tables.meanwhile = lambda: None
    assert tables.show() != before
    assert tables.read == 2


def test_a_table_makes_no_store(fresh: Runs, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    shown = Tables(fresh, monkeypatch, capsys)
    assert shown.show() == shown.show()
    assert not fresh.project.store.root.exists()
