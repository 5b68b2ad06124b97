"""`qvlfp8 expect update` makes matrix.yaml say what records say, and keeps every other byte."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from qvlfp8.cells import Cell, Stage
from qvlfp8.cli import main
from qvlfp8.expect import surprise
from qvlfp8.expect_edit import edited
from qvlfp8.expect_update import New, amend
from qvlfp8.matrix import Matrix, parse_matrix, read_matrix
from qvlfp8.project import Project
from qvlfp8.report.table import Cause, StageView
from qvlfp8.yamlfile import Document
from tests.unit.factory import MATRIX
from tests.unit.test_run import GOOD_PREFLIGHT, Bench, FakeEngine, passes

ROOT = Path(__file__).parents[2]
REASON = "it does: so, “there” # it is"

pytestmark = pytest.mark.usefixtures("fast_disk", "small_models")

Place = tuple[str, Stage]


class Real:
    """The project's own matrix.yaml, and records that show exactly what it expects."""

    def __init__(self) -> None:
        self.path = ROOT / "matrix.yaml"
        self.matrix = read_matrix(self.path)
        self.document = Document.read(self.path)
        self.shown: dict[Place, tuple[str, ...]] = {}
        self.cells: dict[str, Cell] = {}
        for cell in self.matrix.cells:
            for stage in cell.stages:
                subject = cell.subject(stage)
                self.cells.setdefault(subject, cell)
                expected = self.matrix.expected(cell, stage)
                self.shown[subject, stage] = tuple(e.shows[stage] for e in expected)

    def amended(self, shown: Mapping[Place, tuple[str, ...]], glob: str | None = None) -> str:
        """The text after an update from records that show this instead."""
        seen = [(self.cells[name], view_of(stage, found)) for (name, stage), found in shown.items()]
        amendment = amend(self.matrix, seen, New(reason=REASON, cells=glob))
        return edited(self.document, self.matrix.file.expectations, amendment)

    def parsed(self, text: str) -> Matrix:
        return parse_matrix(Document(self.path, text))

    def touched(self, text: str) -> tuple[list[str], list[str]]:
        """Lines that went, and lines that came."""
        lines = list(difflib.ndiff(self.document.text.splitlines(), text.splitlines()))
        return [x[2:] for x in lines if x[0] == "-"], [x[2:] for x in lines if x[0] == "+"]


def view_of(stage: Stage, found: tuple[str, ...]) -> StageView:
    return StageView(
        stage=stage, status="fail" if found else "pass", causes=tuple(Cause(id=finding) for finding in found)
    )


def surprises(real: Real, text: str, shown: Mapping[Place, tuple[str, ...]]) -> list[str]:
    matrix = parse_matrix(Document(real.path, text))
    texts = (
        surprise(cell, view_of(stage, found), matrix.expected(cell, stage), blocked_as_expected=False)
        for (name, stage), found in shown.items()
        for cell in (real.cells[name],)
    )
    return [text for text in texts if text]


@pytest.fixture(scope="module")
def real() -> Real:
    return Real()


def places(real: Real, match: Callable[[Cell, Stage], bool]) -> list[Place]:
    """Cells (or checkpoints) and stages; what a match is asked of is the cell."""
    return [(name, stage) for name, stage in real.shown if match(real.cells[name], stage)]


def test_as_expected_nothing_changes(real: Real) -> None:
    assert real.amended(real.shown) == real.document.text


def test_a_finding_that_is_gone_everywhere_takes_its_entry_along(real: Real) -> None:
    hit = places(real, lambda cell, stage: "packages-incompatible" in real.shown[cell.subject(stage), stage])
    shown = real.shown | dict.fromkeys(hit, ())
    text = real.amended(shown)
    went, came = real.touched(text)
    assert not came
    assert len(went) == 3
    assert "packages-incompatible" in went[1]
    assert surprises(real, text, shown) == []


def test_a_version_that_mends_it_is_left_out_of_all_its_stages(real: Real) -> None:
    def mended(cell: Cell, stage: Stage) -> bool:
        return (
            cell.serve.vllm == "0.24.0"
            and "language-kv-scale-unsupported" in real.shown[cell.subject(stage), stage]
        )

    hit = [place for place in places(real, mended) if not place[0].startswith("vlm-fp8/")]
    shown = real.shown | {
        place: tuple(f for f in real.shown[place] if f != "language-kv-scale-unsupported") for place in hit
    }
    text = real.amended(shown)
    assert surprises(real, text, shown) == []
    went, came = real.touched(text)
    assert len(went) == 1, "the line of `without` alone"
    assert went[0].strip() == 'without: ["*-kv-cast/*", "lm-nvfp4-kv-fp8/modelopt-0.37.0/*"]'
    assert len(came) == 1
    assert came[0].startswith('    without: ["*-kv-cast/*", "lm-nvfp4-kv-fp8/modelopt-0.37.0/*", ')


def test_a_stage_that_no_longer_shows_it_is_taken_out_of_shows(real: Real) -> None:
    hit = places(real, lambda cell, stage: stage == "load" and cell.serve.vllm == "0.10.0")
    shown = real.shown | {
        place: tuple(f for f in real.shown[place] if f != "language-kv-scale-unsupported") for place in hit
    }
    went, came = real.touched(real.amended(shown))
    assert went == [
        "    shows: {preflight: language-kv-scale-unsupported, load: language-kv-scale-unsupported}"
    ]
    assert came == ["    shows: {preflight: language-kv-scale-unsupported}"]


def test_one_stage_of_one_cell_keeps_what_its_others_show(real: Real) -> None:
    """The entry covers several stages: what is left out of it for one goes beside it for the others."""
    name = next(n for n, stage in real.shown if stage == "image" and "blind" in real.shown[n, stage])
    shown = real.shown | {(name, "image"): ()}
    text = real.amended(shown)
    assert surprises(real, text, shown) == []
    came = real.touched(text)[1]
    assert any(name in line for line in came)


def test_a_new_finding_is_one_entry_with_its_reason(real: Real) -> None:
    hit = places(real, lambda cell, stage: stage in {"preflight", "load"} and cell.serve.id == "vllm-0.26.0")
    hit = [place for place in hit if place[0].startswith("vlm-fp8/") and "+" not in place[0]]
    cells = {name for name, stage in hit if stage == "load"}
    hit = [place for place in hit if place[0] in cells]
    shown = real.shown | {place: (*real.shown[place], "stray-vision-kv-scale") for place in hit}
    text = real.amended(shown)
    assert text.startswith(real.document.text)
    assert surprises(real, text, shown) == []
    added = real.parsed(text).file.expectations[-1]
    assert added.reason == REASON
    assert added.shows == dict.fromkeys(("preflight", "load"), "stray-vision-kv-scale")
    assert set(added.cells) == cells


def test_the_glob_is_written_where_it_says_the_same(real: Real) -> None:
    glob = "lm-fp8-portable/*/vllm-0.26.0"
    hit = places(real, lambda cell, stage: stage == "preflight" and cell.serve.id == "vllm-0.26.0")
    hit = [place for place in hit if place[0].startswith("lm-fp8-portable/")]
    shown = real.shown | {place: (*real.shown[place], "shape-mismatch") for place in hit}
    assert f'  - cells: "{glob}"\n' in real.amended(shown, glob)
    assert glob not in real.amended(real.shown | {hit[0]: (*real.shown[hit[0]], "shape-mismatch")}, glob)


@settings(
    max_examples=8, deadline=None, phases=(Phase.generate,),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(data=st.data())
def test_whatever_records_say_afterwards_they_are_no_surprise(real: Real, data: st.DataObject) -> None:
    failing = [place for place, found in real.shown.items() if found]
    gone = data.draw(st.lists(st.sampled_from(failing), unique=True, max_size=12))
    new = data.draw(st.lists(st.sampled_from(list(real.shown)), unique=True, max_size=6))
    shown = dict(real.shown)
    for place in gone:
        shown[place] = (
            tuple(data.draw(st.lists(st.sampled_from(shown[place]), unique=True))) if shown[place] else ()
        )
    for place in new:
        name = data.draw(st.sampled_from(["shape-mismatch", "cast-to-fp8", "quantized-otherwise"]))
        shown[place] = tuple(dict.fromkeys((*shown[place], name)))
    text = real.amended(shown)
    assert surprises(real, text, shown) == []
    comments = [line for line in real.document.text.splitlines() if line.lstrip().startswith("#")]
    assert [line for line in text.splitlines() if line.lstrip().startswith("#")] == comments
    head = real.document.text[: real.document.text.index("\nexpectations:")]
    assert text.startswith(head)


HERE = """\
# top
expectations: # of what
  # one
  - {cells: "*/vllm-0.10.2", shows: {preflight: not-generative}, reason: r} # behind

  # two
  - cells:
      - "lm-fp8/*"
    shows:
      inspect: weight-all-zero
    reason: >-
      folded
      text
# bottom
"""


def with_expectations(bench: Bench, text: str = HERE, newline: str = "\n") -> Path:
    path = bench.project.matrix.path
    path.write_bytes(MATRIX.replace("expectations: []\n", text).replace("\n", newline).encode())
    return path


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Everything passes but vLLM 0.13.0's loader, which matrix.yaml does not expect."""
    made = Bench(tmp_path)

    class Engine(FakeEngine):
        def run(self, environment: Any, batch: Any, log: Any, on_event: Any) -> Any:
            bad = environment and environment[0].id == "vllm-0.13.0"
            # Two batches run at once.
            return FakeEngine(broken if bad else passes).run(environment, batch, log, on_event)

    def broken(job: Any, batch: Any) -> Any:
        result = passes(job, batch)
        return result and result | {"measured": GOOD_PREFLIGHT | {"runner": "pooling"}}

    made.run(Engine())
    return made


def texts(path: Path) -> list[str]:
    project = Project.open(path)
    cells = project.matrix.cells
    views = project.views(project.plan(cells, project.locks(cells)))
    return [text for view in views for _, text in project.surprises(view) if text]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_printed_commands_correct_the_file_and_nothing_else(
    bench: Bench, capsys: pytest.CaptureFixture[str], newline: str
) -> None:
    path = with_expectations(bench, newline=newline)
    before = path.read_bytes()
    found = texts(path)
    assert found
    while found:
        command = found[0].rpartition("mend: if that is right: ")[2].strip()
        words = [REASON if word == "WHY IT SHOWS" else word for word in shlex.split(command)]
        assert words[:3] == ["qvlfp8", "expect", "update"]
        assert main([*words[1:], "--dry-run"]) == 0
        assert "nothing was written" in capsys.readouterr().out
        assert main(words[1:]) == 0, capsys.readouterr().err
        assert capsys.readouterr().out.startswith(f"--- {path}")
        left = texts(path)
        assert len(left) < len(found), command
        found = left
    after = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o644
    assert (b"\r\n" in after) == (newline == "\r\n")
    assert after.count(b"\n") == after.count(newline.encode())
    for kept in ("# top", "expectations: # of what", "  # one", "  # two", "# bottom"):
        assert kept.encode() in after
    assert before[: before.index(b"# top")] == after[: after.index(b"# top")]
    assert b"not-generative}" in after
    assert b"weight-all-zero" not in after
    assert not list(path.parent.glob(".matrix*"))


def test_all_at_once(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    path = with_expectations(bench)
    arguments = ["expect", "update", "--all", "--matrix", str(path)]
    assert main(arguments) == 2
    assert "not-generative at preflight: nobody expects that yet" in capsys.readouterr().err
    assert main([*arguments, "--reason", REASON, "--link", "https://example.org/1"]) == 0
    assert texts(path) == []
    expected = Project.open(path).matrix.file.expectations
    assert [(e.reason, e.link, e.flaky) for e in expected] == [(REASON, "https://example.org/1", False)]
    assert main(arguments) == 0
    assert "nothing to correct" in capsys.readouterr().out.splitlines()[-1]


def test_the_last_expectation_leaves_an_empty_list_and_the_first_fills_it(bench: Bench) -> None:
    text = 'expectations: # of what\n  - {cells: "*", shows: {inspect: weight-all-zero}, reason: r}'
    path = with_expectations(bench, text)
    assert main(["expect", "update", "--all", "--finding", "weight-all-zero", "--matrix", str(path)]) == 0
    assert path.read_text().endswith("expectations: [] # of what\n")
    assert main(["expect", "update", "--all", "--reason", "r", "--matrix", str(path)]) == 0
    assert texts(path) == []
    path = with_expectations(bench, "")
    assert main(["expect", "update", "--all", "--reason", "r", "--matrix", str(path)]) == 0
    assert texts(path) == []


def test_a_flaky_one_is_written_with_its_issue(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    path = with_expectations(bench, "expectations: []\n")
    arguments = ["expect", "update", "--all", "--reason", "r", "--matrix", str(path), "--flaky"]
    assert main(arguments) == 2
    assert "needs the issue" in capsys.readouterr().err
    assert main([*arguments, "--link", "https://example.org/issues/1"]) == 0
    assert Project.open(path).matrix.file.expectations[0].flaky
    assert texts(path) == []


def test_a_comment_with_a_colon_behind_the_key_stays(bench: Bench) -> None:
    text = 'expectations: # see a: b\n  - {cells: "*", shows: {inspect: weight-all-zero}, reason: r} # c: d\n'
    path = with_expectations(bench, text)
    assert main(["expect", "update", "--all", "--finding", "weight-all-zero", "--matrix", str(path)]) == 0
    assert path.read_text().endswith("expectations: [] # see a: b\n")
    path = with_expectations(bench, "expectations: # a: b\n  []\n")
    assert main(["expect", "update", "--all", "--reason", "r", "--matrix", str(path)]) == 0
    assert "expectations: # a: b\n" in path.read_text()
    assert texts(path) == []


def test_what_lies_beside_the_file_is_not_written(bench: Bench, tmp_path: Path) -> None:
    path = with_expectations(bench, "expectations: []\n")
    (tmp_path / "victim").write_text("mine")
    (path.parent / f".{path.name}.new").symlink_to(tmp_path / "victim")
    assert main(["expect", "update", "--all", "--reason", "r", "--matrix", str(path)]) == 0
    assert (tmp_path / "victim").read_text() == "mine"
    assert not path.is_symlink()


def test_flaky_takes_nothing_out(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    path = with_expectations(
        bench, 'expectations:\n  - {cells: "*", shows: {inspect: weight-all-zero}, reason: r}\n'
    )
    before = path.read_bytes()
    options = ["--finding", "weight-all-zero", "--reason", "r", "--link", "https://example.org/1", "--flaky"]
    assert main(["expect", "update", "--all", *options, "--matrix", str(path)]) == 2
    assert "would be taken out" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_an_entry_with_a_merge_key_is_refused(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    entry = (
        '  - {<<: {cells: "*"}, shows: {inspect: weight-all-zero, preflight: not-generative}, reason: r}\n'
    )
    path = with_expectations(bench, f"expectations:\n{entry}")
    before = path.read_bytes()
    assert main(["expect", "update", "--all", "--finding", "weight-all-zero", "--matrix", str(path)]) == 5
    assert "does not have cells itself" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--stage", "lod"], "no stage 'lod'"),
        (["none/*"], "names no cell"),
        (["--all", "--reason", "r", "--link", "http://x"], "link"),
    ],
)
def test_what_does_not_fit_changes_nothing(
    bench: Bench, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    path = with_expectations(bench)
    before = path.read_bytes()
    assert main(["expect", "update", *options, "--matrix", str(path)]) != 0
    assert says in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_list_in_one_line_is_not_cut(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    text = 'expectations: [{cells: "*", shows: {inspect: weight-all-zero}, reason: r}]\n'
    path = with_expectations(bench, text)
    assert main(["expect", "update", "--all", "--finding", "weight-all-zero", "--matrix", str(path)]) == 5
    assert "write one expectation a line" in capsys.readouterr().err
    assert path.read_text().endswith(text)
