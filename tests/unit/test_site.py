"""The site says what records say: words, ranges, marks, pages; the same bytes for the same records."""

from __future__ import annotations

import errno
import json
import multiprocessing
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import jsonschema
import pytest

from qvlfp8.cells import STAGES, Cell, Stage
from qvlfp8.commands.schema import schema_text
from qvlfp8.errors import StoreWriteError, UsageError
from qvlfp8.known_findings import KNOWN
from qvlfp8.project import Project
from qvlfp8.report.table import Cause, CellView, StageView
from qvlfp8.results import Status
from qvlfp8.scoring import Bounds
from qvlfp8.site import chart, compatibility, publishing, rendering
from qvlfp8.site.badges import COLOURS, badge_of
from qvlfp8.site.cell_page import cell_text
from qvlfp8.site.cell_view import make_page, show_row
from qvlfp8.site.chart_html import Figures
from qvlfp8.site.data import Site, SiteCell, gather
from qvlfp8.site.exam_view import ExamShown
from qvlfp8.site.files import Shares, site_files
from qvlfp8.site.matrix_view import lay_out
from qvlfp8.site.measured import values_of
from qvlfp8.site.outcome import Outcome, ended_at, executed, furthest, outcome
from qvlfp8.site.publishing import publish
from qvlfp8.site.pyodide import PyodideError
from qvlfp8.site.untrusted import excerpt, line, without_paths
from qvlfp8.site.words import Ended, as_text, spans, versions_in_words
from qvlfp8.worker.vllm_patches import PATCHES
from tests.unit.factory import open_project
from tests.unit.test_cli import fails, qvlfp8
from tests.unit.test_generated import SEEING, Vllm, execute, measured

ROOT = Path(__file__).parents[2]
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\x1b[31m\u202e"

pytestmark = pytest.mark.usefixtures("fast_disk")


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cell, ...]:
    return open_project(tmp_path_factory.mktemp("p"), SEEING).matrix.cells


def view(cell: Cell, found: Mapping[str, Status], *causes: tuple[Stage, str]) -> CellView:
    """A cell whose stages ended so; what is not named was not run."""
    return CellView(
        cell=cell,
        stages=tuple(
            StageView(
                stage=stage,
                status=found.get(stage, "not run"),
                causes=tuple(Cause(id=name) for at, name in causes if at == stage),
            )
            for stage in STAGES
        ),
    )


MADE: dict[str, Status] = {"resolve": "pass", "quantize": "pass", "inspect": "pass"}
RUN: dict[str, Status] = {
    "load": "pass",
    "text": "pass",
    "image": "pass",
    "fidelity": "pass",
    "speed": "pass",
}


@pytest.mark.parametrize(
    ("found", "causes", "word", "passed", "at"),
    [
        ({**MADE, "preflight": "pass", **RUN}, [], "sees", "speed", "speed"),
        ({"resolve": "pass", **RUN}, [], "sees", "speed", "speed"),
        # Stale ones are answered for by the run; a run that is stale itself is not.
        ({**MADE, "preflight": "stale", **RUN}, [], "sees", "speed", "speed"),
        ({**MADE, **dict.fromkeys(RUN, "stale")}, [], "stale", "inspect", "load"),
        (
            {**MADE, **RUN, "image": "fail", "fidelity": "fail"},
            [("image", "blind"), ("fidelity", "diverges")], "blind", "text", "image",
        ),
        # It sees something, wrongly.
        ({**MADE, **RUN, "image": "fail"}, [("image", "sees-wrongly")], "fails", "text", "image"),
        # What inspect finds wrong ends nothing.
        ({**MADE, "inspect": "fail", **RUN, "image": "fail"}, [("image", "blind")], "blind", "text", "image"),
        ({**MADE, "inspect": "fail", "preflight": "fail"}, [], "fails", "quantize", "preflight"),
        ({**MADE, "preflight": "fail", "load": "fail"}, [], "fails", "inspect", "load"),
        ({"resolve": "fail", "quantize": "blocked"}, [], "fails", None, "resolve"),
        ({**MADE, "preflight": "error"}, [], "error", "inspect", "preflight"),
        ({"resolve": "pass"}, [], "never", "resolve", "quantize"),
        ({**MADE}, [], "never", "inspect", "preflight"),
        ({**MADE, "preflight": "blocked"}, [], "blocked", "inspect", "preflight"),
    ],
)  # fmt: skip
def test_a_cell_has_one_word_and_how_far_it_came(
    cells: tuple[Cell, ...],
    found: dict[str, Status],
    causes: list[tuple[Stage, str]],
    word: str,
    passed: str | None,
    at: str,
) -> None:
    shown = view(cells[0], found, *causes)
    assert (outcome(shown), furthest(shown), ended_at(shown)) == (word, passed, at)
    assert executed(shown) is (found != {"resolve": "pass"})


def test_what_a_gpu_was_not_there_for_loads(cells: tuple[Cell, ...]) -> None:
    stages = [StageView(stage=stage, status="pass") for stage in STAGES[:4]]
    stages += [StageView(stage=stage, status="not run", device="cuda") for stage in STAGES[4:]]
    shown = CellView(cell=cells[0], stages=tuple(stages))
    assert (outcome(shown), furthest(shown), ended_at(shown)) == ("loads", "preflight", "preflight")


def test_ranges_are_in_words() -> None:
    order = ["0.10.0", "0.10.2", "0.11.0", "0.12.0", "0.13.0", "0.20.2", "0.32.0-cpu"]
    assert versions_in_words(["0.12.0", "0.10.2", "0.11.0"], order) == "0.10.2 to 0.12.0"
    assert versions_in_words(["0.10.0", "0.10.2"], order) == "0.10.0 and 0.10.2"
    assert versions_in_words(order, order) == "0.10.0 to 0.32.0-cpu"
    assert versions_in_words(["0.10.0", "0.11.0", "0.12.0", "0.13.0", "0.32.0-cpu"], order) == (
        "0.10.0, 0.11.0 to 0.13.0 and 0.32.0-cpu"
    )
    row = [
        Ended(version="0.10.0", outcome="fails", at="load"),
        Ended(version="0.10.2", outcome="blind", at="image"),
        Ended(version="0.11.0", outcome="never"),
        Ended(version="0.12.0", outcome="blind", at="image"),
        Ended(version="0.13.0", outcome="sees", at="speed"),
        Ended(version="0.20.2", outcome="fails", at="text"),
    ]
    assert as_text(spans(row)) == (
        "sees in 0.13.0; blind in 0.10.2 and 0.12.0; fails at load in 0.10.0; fails at text in 0.20.2; "
        "not run in 0.11.0"
    )


NAMED = ("0.10.0", "0.11.0", "0.12.0")


def test_a_chart_has_its_bounds_and_every_number() -> None:
    def row(column: str, mean: float | None) -> chart.Fidelity:
        p99 = None if mean is None else 3 * mean
        return chart.Fidelity(column=column, mean_kl=mean, p99_kl=p99, top1=0.9, not_finite=7)

    drawn = chart.draw([row("0.10.0", 1.5), row("0.11.0", 0.0), row("0.12.0", None)], Bounds())
    assert drawn is not None
    at = {(p.text.split(":")[0], p.kind): p.y for p in drawn.points}
    assert set(at) == {("0.10.0", "mean"), ("0.10.0", "p99"), ("0.11.0", "mean"), ("0.11.0", "p99")}
    p99, mean = drawn.bounds
    # Upwards is more: what diverges stands above its bound, what does not below it.
    assert at["0.10.0", "mean"] < mean.at < at["0.11.0", "mean"]
    assert p99.at < mean.at
    assert all(drawn.top <= y <= drawn.bottom for y in at.values())
    assert [name in said for name, said in zip(NAMED, drawn.summaries, strict=True)] == [True] * 3
    assert chart.draw([row("0.12.0", None)], Bounds()) is None

    figures = Figures(drawn)
    for here, name in enumerate(NAMED):
        # What marks a column marks that one alone: its label, its points, its row of the table.
        html = figures.of(here)
        assert re.findall(r'class="tick strong"[^>]*>([^<]+)', html) == [name]
        assert set(re.findall(r'is-here" [^>]*><title>([0-9.]+):', html)) == {name} - {"0.12.0"}
        assert re.findall(r'<tr class="is-here"><th scope="row">([^<]+)', html) == [name]
        assert len(re.findall("<rect", html)) == 1
        assert drawn.summaries[here] in html


def test_text_of_a_log_is_made_harmless() -> None:
    shown = excerpt("\n".join(["old", *(f"line {n}" for n in range(60)), f"50%\r100% {HOSTILE}", "x" * 9000]))
    assert shown.startswith("…\nline 22\n")
    assert "50%" not in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "\\x1b[31m\\u202e" in shown
    assert len(shown.splitlines()[-1]) < 500
    said = (
        "in /home/somebody/a b/work.d/.qvlfp8/steps/quantize/ab/checkpoint: and '/x/environments/vllm-1/lib'"
    )
    assert without_paths(said) == (
        "in /home/somebody/a b.qvlfp8/steps/quantize/ab/checkpoint: and '.qvlfp8/environments/vllm-1/lib'"
    )
    assert line("a\n b\u0000") == "a b\\x00"


# --- of a project with records ----------------------------------------------------------------------


class _Tags(HTMLParser):
    """What a page is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[dict[str, str | None]] = []
        self.handlers: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {"script", "style"}:
            self.scripts.append(dict(attrs))
        for name, value in attrs:
            if name.startswith("on") or name == "style":
                self.handlers.append(f"{tag} {name}")
            if name in {"href", "src"} and value is not None:
                self.links.append(value)
            if name == "id" and value is not None:
                self.ids.append(value)


def pages(files: Mapping[str, bytes]) -> Iterator[tuple[str, _Tags]]:
    for path, content in files.items():
        if path.endswith(".html"):
            tags = _Tags()
            tags.feed(content.decode())
            yield path, tags


def files_of(site: Site) -> dict[str, bytes]:
    return dict(site_files(site, ExamShown(), schema=schema_text("site")))


@pytest.fixture
def hostile(tmp_path: Path, small_models: None) -> Project:
    """A CPU cell whose answers, log and finding are hostile, and one for a GPU that was not run."""
    project = open_project(tmp_path, SEEING)
    told = measured(said=HOSTILE, swapped=HOSTILE) | {"log_marks": [f"fallback {HOSTILE}"]}
    execute(project, Vllm(told))
    for log in project.store.root.glob("steps/*/*/log.txt"):
        log.write_text(f"{project.store.root}/steps/quantize/x {HOSTILE}\n")
    return project


def test_hostile_text_stays_text(hostile: Project) -> None:
    files = files_of(gather(hostile))
    shown = "".join(content.decode() for path, content in files.items() if path.startswith("cells/"))
    assert "&lt;script&gt;alert(1)" in shown
    for path, tags in pages(files):
        assert tags.handlers == [], path
        assert all((script.get("src") or "").endswith("assets/matrix.js") for script in tags.scripts), path
        assert not any(link.startswith("javascript:") for link in tags.links)
    for path, content in files.items():
        assert str(hostile.store.root) not in content.decode(), path
        assert "\x1b" not in content.decode(), path
    ET.fromstring(files["feed.xml"])  # noqa: S314 (our own, and that it parses is what is asked)


def test_every_link_leads_somewhere(hostile: Project) -> None:
    files = files_of(gather(hostile))
    made = {path: tags.ids for path, tags in pages(files)}
    for path, tags in pages(files):
        assert len(tags.ids) == len(set(tags.ids)), path
        for link in tags.links:
            target, _, part = link.partition("#")
            if link.startswith("https://") or target.endswith("check.html"):
                continue
            folder = path.rpartition("/")[0]
            whole = str(Path("/", folder, target).resolve()).removeprefix("/") if target else path
            assert whole in files or whole.startswith("pictures/"), (path, link)
            if part and "=" not in part:
                assert part in made[whole], (path, link)


def test_a_policy_stands_before_everything_that_is_loaded(hostile: Project) -> None:
    for path, content in files_of(gather(hostile)).items():
        if path.endswith(".html"):
            text = content.decode()
            policy = text.index('http-equiv="Content-Security-Policy"')
            assert policy < text.index("<link")
            assert "default-src &#39;none&#39;" in text
            assert "unsafe" not in text[policy : text.index(">", policy)]


def test_the_same_records_give_the_same_bytes(hostile: Project, tmp_path: Path) -> None:
    first = files_of(gather(hostile))
    again = files_of(gather(Project.open(hostile.matrix.path)))
    assert first == again
    assert list(first) == list(again)


def test_marks_filters_and_pages_say_what_was_executed(hostile: Project) -> None:
    site = gather(hostile)
    matrix = lay_out(site)
    assert matrix.columns == ("0.10.2", "0.32.0-cpu")
    assert matrix.cells == len(site.cells) == 4
    by_word = {one.outcome: one.cells for one in matrix.legend}
    assert sum(by_word.values()) == 4
    ran = site.by_id["lm-fp8/modelopt-0.41.0/seeing/vllm-0.32.0-cpu"]
    assert (ran.outcome, ran.hardware, ran.page) == (
        "blind", ("CPU",), "cells/lm-fp8~modelopt-0.41.0~seeing~vllm-0.32.0-cpu.html",
    )  # fmt: skip
    loaded = site.by_id["lm-fp8/modelopt-0.41.0/seeing/vllm-0.10.2"]
    assert (loaded.outcome, loaded.furthest) == ("loads", "preflight")
    row = matrix.groups[0].rows[0]
    assert row.words == "loads in 0.10.2; blind in 0.32.0-cpu"
    choices = {one.name: [(c.value, c.cells) for c in one.choices] for one in matrix.filters}
    assert choices["by"] == [("ModelOpt 0.41.0", 2), ("ModelOpt 0.47.0", 2)]
    assert choices["gpu"] == [("CPU", 2)]
    assert dict(choices["finding"])["blind"] == 2
    page = files_of(site)[ran.page or ""].decode()
    for part in ("fallback", "nox -s matrix -- --again", "records/generate-", "colour"):
        assert part in page


def test_what_was_measured_is_laid_out(cells: tuple[Cell, ...]) -> None:
    casts = [{"tensor": f"t{n}", "from": "BF16", "to": "F8", "parameter": None} for n in range(20)]
    found = {
        value.name: value
        for value in values_of(
            "preflight",
            {
                "casts": casts,
                "modules": {"vision": [0, 27], "language_model": [21, 21]},
                "fp8_modules": {"vision": 3, "vision_total": 22},
                "exclusions": ["lm_head", "visual*"],
                "never_loaded": [f"visual.blocks.{n}.{part}" for n in range(5) for part in "abc"],
                "exception": {"type": "KeyError", "message": HOSTILE, "tensor": None},
                "deep": {"a": {"b": {"c": {"d": [1, {}]}}}},
                "mixed": [1, [2]],
                "answers": [1],
                "truncated": [],
                "empty": {"a": None},
                "changed": 0.5,
                "parameters": 1234567,
            },
        )
    }
    texts = {name: value.text for name, value in found.items() if value.text}
    assert texts == {
        "excluded from quantization": "lm_head, visual*", "empty": "nothing", "parameters": "1,234,567",
        "answers that change with the picture": "50.0%",
    }  # fmt: skip
    parts = {name: {p.name: p.text for p in value.parts} for name, value in found.items() if value.parts}
    assert parts["linear layers quantized"] == {"vision": "0 of 27", "language model": "21 of 21"}
    assert parts["modules of vLLM's model in FP8"] == {"vision": "3 of 22"}
    assert set(parts["exception"]) == {"type", "message"}
    assert "\x1b" not in parts["exception"]["message"]
    table = found["tensors that vLLM took in another type"].table
    assert table is not None
    assert (table.columns, table.rows[1], table.left_out) == (
        ("tensor", "from", "to"), ("t1", "BF16", "F8"), 8,
    )  # fmt: skip
    assert found["parameters that got no tensor"].items == tuple(f"visual.blocks.{{0-4}}.{p}" for p in "abc")
    # Only what is too deep for that is JSON.
    assert {name for name, value in found.items() if value.raw} == {"mixed"}
    (deep,) = found["deep"].parts[0].parts
    assert json.loads(deep.parts[0].raw) == {"d": [1, {}]}
    order = [value.wide for value in found.values()]
    assert order == sorted(order)


class _Unfolded(HTMLParser):
    """The text of a page outside of what is folded away, of logs and of commands."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.depth += tag in {"details", "pre"}

    def handle_endtag(self, tag: str) -> None:
        self.depth -= tag in {"details", "pre"}

    def handle_data(self, data: str) -> None:
        self.text += "" if self.depth else data


def of_committed_records(*ids: str) -> dict[str, str]:
    """Pages of cells as the committed records make them, by id."""
    project = Project.open(ROOT / "matrix.yaml", ROOT / "no-store")
    site = gather(project)
    found = {}
    for group in lay_out(site).groups:
        for row in group.rows:
            shown = show_row(site, [cell for cell in row.cells if cell is not None])
            for cell in shown.pages:
                if cell.cell.id in ids:
                    page = make_page(site, cell, shown, ExamShown())
                    found[cell.cell.id] = cell_text(page)
    return found


BLIND = "lm-fp8/modelopt-0.41.0/seeing-untied/vllm-0.10.2"
SEES = "lm-fp8/modelopt-0.41.0/seeing-untied/vllm-0.26.0"
NAIVE = "vlm-fp8-naive/modelopt-0.41.0/seeing-untied/vllm-0.24.0"
ON_CPU = "lm-fp8/modelopt-0.47.0/seeing-untied/vllm-0.32.0-cpu"


@pytest.fixture(scope="module")
def committed() -> dict[str, str]:
    found = of_committed_records(BLIND, SEES, NAIVE, ON_CPU)
    assert len(found) == 4
    return found


def test_no_page_shows_json(committed: dict[str, str]) -> None:
    for name, text in committed.items():
        told = _Unfolded()
        told.feed(text)
        assert not re.search(r"[{\[]['\"]|None\b|\bnull\b", told.text), name


def test_a_mend_stands_near_the_headline_of_what_fails(committed: dict[str, str]) -> None:
    for name, command in (
        (BLIND, "qvlfp8 repair IN OUT"),
        (NAIVE, "qvlfp8 repair IN OUT --without-kv-cache"),
    ):
        text = committed[name]
        head = text[text.index("<h1>") : text.index('<ol class="track"')]
        assert f"<code>{command}</code>" in head
    head = committed[BLIND][: committed[BLIND].index('<ol class="track"')]
    assert KNOWN["vision-exclusion-ignored"].mend.split('"')[0] in head
    assert 'findings/vision-exclusion-ignored.html"' in head
    assert "How to mend it" not in committed[SEES]


def test_a_run_says_its_kv_cache_and_what_was_changed_in_vllm(committed: dict[str, str]) -> None:
    assert "as the model computes (auto); asked for: auto" in committed[BLIND]
    assert "FP8 (fp8_e4m3); asked for: auto" in committed[SEES]
    for name in (BLIND, SEES):
        assert "vLLM imports itself a second time in a subprocess" in committed[name]
    # Committed records of loaders have the names of patches alone; why there is each, the site knows.
    preflight = committed[BLIND][
        committed[BLIND].index('id="preflight"') : committed[BLIND].index('id="load"')
    ]
    assert "cpu-platform" in preflight
    assert all(patch.why in unescape(preflight) for patch in PATCHES if f">{patch.id}<" in preflight)


def test_a_chart_is_explained(committed: dict[str, str]) -> None:
    head = committed[SEES][committed[SEES].index('id="chart"') : committed[SEES].index("<figure")]
    assert all(part in head for part in ("A column is a vLLM version", "Lower is better", "dashed"))


def test_why_a_cell_of_the_cpu_build_is_not_run_is_said_where_one_looks(committed: dict[str, str]) -> None:
    head = committed[ON_CPU][: committed[ON_CPU].index('<ol class="track"')]
    assert "runs are not committed: <code>nox -s matrix</code> makes them.</p>" in head
    # Once, and not again at each stage that the run would answer.
    assert committed[ON_CPU].count("runs are not committed") == 2


def test_what_was_executed_under_another_worker_is_stale(
    hostile: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qvlfp8.source.of_worker", lambda name: f"another {name}")
    site = gather(Project.open(hostile.matrix.path))
    cell = site.by_id["lm-fp8/modelopt-0.41.0/seeing/vllm-0.32.0-cpu"]
    assert cell.outcome == "stale"
    assert cell.furthest == "resolve"
    stages = {stage.stage: stage for stage in cell.view.stages}
    assert stages["quantize"].status == stages["image"].status == "stale"
    assert "worker" in stages["image"].because
    page = files_of(site)[cell.page or ""].decode()
    assert stages["image"].because in page
    assert "pictures" not in page
    assert all(one["outcome"] != "blind" for one in json.loads(files_of(site)["api/v1/site.json"])["cells"])


def test_never_run_cells_are_there_and_have_no_page(tmp_path: Path) -> None:
    site = gather(open_project(tmp_path))
    files = files_of(site)
    assert {cell.outcome for cell in site.cells} == {"never"}
    assert not any(path.startswith(("cells/", "records/")) for path in files)
    index = files["index.html"].decode()
    assert index.count('<span class="mark never">not run</span></td>') == len(site.cells)
    assert '"message": "not run"' in files["badges/lm-fp8.json"].decode()
    assert "not run in 0.10.2 and 0.13.0" in files["COMPATIBILITY.md"].decode()
    # Those need a GPU.
    assert "not committed" not in index + files["COMPATIBILITY.md"].decode()
    told = ET.fromstring(files["feed.xml"])  # noqa: S314
    assert told.find("{http://www.w3.org/2005/Atom}entry") is None


def test_the_matrix_says_why_cells_of_the_cpu_build_are_not_run(tmp_path: Path) -> None:
    files = files_of(gather(open_project(tmp_path, SEEING)))
    said = "2 cells are not run because vLLM's CPU build needs no GPU: such runs are not committed, and "
    assert f"{said}`nox -s matrix`" in files["COMPATIBILITY.md"].decode()
    assert f"{said}<code>nox -s matrix</code>" in unescape(files["index.html"].decode())


def test_a_name_in_a_record_leads_out_of_no_folder(hostile: Project) -> None:
    for path in hostile.store.root.glob("steps/preflight/*/record.json"):
        record = json.loads(path.read_text())
        record["status"] = "fail"
        record["findings"] = [{"id": '../../../evil"><b>', "summary": HOSTILE}]
        path.write_text(json.dumps(record))
    files = files_of(gather(hostile))
    assert "findings/evil-b.html" in files
    assert all(".." not in path and re.fullmatch(r"[\w./~+-]+", path) for path in files)


# --- what comes out ---------------------------------------------------------------------------------


def test_the_api_fits_its_schema(hostile: Project) -> None:
    files = files_of(gather(hostile))
    schema = json.loads(files["api/v1/site.schema.json"])
    told = json.loads(files["api/v1/site.json"])
    jsonschema.Draft202012Validator(schema).validate(told)
    assert told["version"] == 1
    records = {stage["record"] for cell in told["cells"] for stage in cell["stages"]} - {None}
    assert records
    assert records <= set(files)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate({**told, "cells": [{"id": "x"}]})


def test_a_badge_is_well_formed(hostile: Project) -> None:
    files = files_of(gather(hostile))
    endpoint = json.loads(files["badges/lm-fp8.json"])
    assert set(endpoint) == {"schemaVersion", "label", "message", "color"}
    assert (endpoint["schemaVersion"], endpoint["label"]) == (1, "lm-fp8, ModelOpt 0.47.0")
    assert endpoint["message"] == "sees in none of 1 vLLM version run"
    drawn = ET.fromstring(files["badges/lm-fp8.svg"])  # noqa: S314
    assert drawn.attrib["aria-label"] == f"{endpoint['label']}: {endpoint['message']}"
    assert int(drawn.attrib["width"]) > 6 * len(drawn.attrib["aria-label"])


@pytest.mark.parametrize(
    ("older", "newest", "message", "colour"),
    [
        # By vLLM 0.10.2 and 0.32.0-cpu. What older checkpoints do says nothing of the newest.
        (("blind", "fails"), ("never", "sees"), "sees in vLLM 0.32.0-cpu", "latest"),
        (("sees", "sees"), ("sees", "fails"), "sees in vLLM 0.10.2", "others"),
        (("fails", "fails"), ("sees", "sees"), "sees in vLLM 0.10.2 and 0.32.0-cpu", "latest"),
        (("sees", "sees"), ("blind", "fails"), "sees in none of 2 vLLM versions run", "none"),
        # Of the newest nothing was run: the newest of those that were.
        (("never", "sees"), ("loads", "never"), "sees in vLLM 0.32.0-cpu", "latest"),
        (("loads", "never"), ("loads", "never"), "not run", "not run"),
    ],
)
def test_a_badge_is_of_the_newest_checkpoint_that_was_run(
    cells: tuple[Cell, ...],
    older: tuple[Outcome, ...],
    newest: tuple[Outcome, ...],
    message: str,
    colour: str,
) -> None:
    stages: dict[Outcome, dict[str, Status]] = {
        "sees": {**MADE, **RUN},
        "blind": {**MADE, **RUN, "image": "fail"},
        "fails": {**MADE, **RUN, "text": "fail"},
        "loads": {**MADE, "preflight": "pass"},
        "never": {},
    }
    columns = ["0.10.2", "0.32.0-cpu"]
    made = []
    for cell in cells:
        word = (older, newest)[cell.quantize.id == "modelopt-0.47.0"][
            columns.index(cell.serve.id.removeprefix("vllm-"))
        ]
        causes: list[tuple[Stage, str]] = [("image", "blind")] if word == "blind" else []
        shown = view(cell, stages[word], *causes)
        made.append(
            SiteCell(
                cell=cell, view=shown, outcome=outcome(shown), furthest=furthest(shown),
                executed=executed(shown), earlier=False, records={},
            )
        )  # fmt: skip
    badge = badge_of("lm-fp8", made, columns)
    assert (badge.message, badge.colour) == (message, COLOURS[colour])
    producer = "0.41.0" if newest == ("loads", "never") else "0.47.0"
    assert badge.label == ("lm-fp8" if colour == "not run" else f"lm-fp8, ModelOpt {producer}")


def test_the_feed_has_an_entry_a_day_and_vllm(hostile: Project) -> None:
    atom = "{http://www.w3.org/2005/Atom}"
    told = ET.fromstring(files_of(gather(hostile))["feed.xml"])  # noqa: S314
    titles = [entry.findtext(f"{atom}title") for entry in told.iter(f"{atom}entry")]
    assert sorted(titles) == ["vLLM 0.10.2 on CPU: 2 loads", "vLLM 0.32.0-cpu on CPU: 2 blind"]  # type: ignore[type-var]
    dates = [entry.findtext(f"{atom}updated") or "" for entry in told.iter(f"{atom}entry")]
    assert told.findtext(f"{atom}updated") == max(dates)
    ids = [entry.findtext(f"{atom}id") for entry in told.iter(f"{atom}entry")]
    assert len(set(ids)) == len(ids)


def no_runtime() -> Mapping[str, bytes]:
    raise PyodideError("no network here")


def test_a_folder_that_is_no_site_is_left_alone(tmp_path: Path) -> None:
    project = open_project(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    done = qvlfp8("publish", "--out", "mine", cwd=tmp_path)
    fails(done, 2, "mine", "--out")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    made = publish(project, tmp_path / "site", runtime=no_runtime)
    files = [path for path in (tmp_path / "site").rglob("*") if path.is_file()]
    assert (made.files, made.size) == (len(files), sum(path.stat().st_size for path in files))
    assert "no network here" in (made.without or "")
    assert (tmp_path / "site" / "check.html").is_file()
    (tmp_path / "site" / "cells-of-old").write_text("")
    publish(project, tmp_path / "site", runtime=no_runtime)
    assert not (tmp_path / "site" / "cells-of-old").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".site")] == []
    (tmp_path / "site" / ".git").write_text("gitdir: elsewhere")
    with pytest.raises(UsageError, match="a checkout of git"):
        publish(project, tmp_path / "site", runtime=no_runtime)
    assert (tmp_path / "site" / "index.html").is_file()


def test_the_folder_that_one_is_in_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = open_project(tmp_path)
    publish(project, tmp_path / "site", runtime=no_runtime)
    monkeypatch.chdir(tmp_path / "site")
    publish(project, Path(), runtime=no_runtime)
    assert (tmp_path / "site" / "index.html").is_file()


def test_the_old_site_is_there_again_if_the_new_one_does_not_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = open_project(tmp_path)
    publish(project, tmp_path / "site", runtime=no_runtime)
    (tmp_path / "site" / "of-old").write_text("")
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if not path.name.endswith("-before") and Path(target).name == "site":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish(project, tmp_path / "site", runtime=no_runtime)
    assert (tmp_path / "site" / "of-old").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".site")] == []


def test_without_a_store_the_committed_records_are_shown(tmp_path: Path) -> None:
    site = gather(Project.open(ROOT / "matrix.yaml", tmp_path / "none"))
    matrix = lay_out(site)
    assert matrix.cells == len(site.project.matrix.cells)
    seen = site.by_id["lm-fp8/modelopt-0.41.0/seeing-untied/vllm-0.26.0"]
    assert (seen.outcome, seen.hardware[0]) == ("sees", "NVIDIA H200")
    blind = site.by_id["lm-fp8/modelopt-0.41.0/seeing-untied/vllm-0.10.2"]
    assert (blind.outcome, blind.furthest) == ("blind", "text")
    assert [other.outcome for other in blind.elsewhere] == ["blind"]
    assert sum(map(len, _loaded_first(site))) <= 300_000
    only_there = site.by_id["lm-nvfp4-kv-fp8/modelopt-0.41.0/seeing-untied/vllm-0.26.0"]
    assert (only_there.outcome, only_there.hardware) == ("sees", ("NVIDIA H100 80GB HBM3",))
    assert only_there.baseline is not None
    assert only_there.baseline.host.accelerator == only_there.records["load"].host.accelerator
    seeing = {one.version: [cell.cell.recipe.id for cell in one.cells] for one in matrix.seeing}
    assert seeing["0.24.0"] == ["lm-fp8-nokv"]
    assert not {"0.10.0", "0.28.0"} & set(seeing)
    vllm = next(one for one in matrix.filters if one.name == "vllm")
    assert tuple(choice.value for choice in vllm.choices) == matrix.columns
    page = next(content for path, content in site_files(site, ExamShown()) if path == blind.page).decode()
    for part in ("NVIDIA H200", "580.", "blind", "mean divergence from BF16", "records/generate-"):
        assert part in page
    assert blind.earlier == ("† Earlier worker." in page)


def test_a_thousand_executed_cells_are_at_most_300_kb(tmp_path: Path) -> None:
    serve = "\n".join(f"  - {{vllm: 0.{n}.0, transformers: 4.57.6}}" for n in range(10, 30))
    quantize = "\n".join(f"  - {{modelopt: 0.{n}.0, transformers: 4.57.6}}" for n in range(41, 51))
    matrix = re.sub(r"(?s)quantize:\n.*cells:", f"quantize:\n{quantize}\nserve:\n{serve}\ncells:", SEEING)
    recipes = ("lm-fp8", "lm-fp8-portable-image-calib", "vlm-fp8", "vlm-fp8-attn-kv-cast", "vlm-fp8-naive")
    site = gather(open_project(tmp_path, matrix, recipes))
    assert len(site.cells) == 1000
    made = [_as_if_run(cell) for cell in site.cells]
    files = _loaded_first(Site(project=site.project, plan=site.plan, cells=tuple(made)))
    assert 150_000 < sum(map(len, files)) <= 300_000


def _as_if_run(cell: SiteCell) -> SiteCell:
    found: dict[str, Status] = {**MADE, "preflight": "pass", **RUN, "image": "fail", "fidelity": "fail"}
    shown = view(cell.cell, found, ("image", "blind"), ("fidelity", "diverges"))
    return replace(
        cell, view=shown, outcome=outcome(shown), furthest=furthest(shown), executed=True, earlier=True
    )


def _loaded_first(site: Site) -> list[bytes]:
    page = next(content for path, content in site_files(site, ExamShown()) if path == "index.html")
    shared = {"assets/site.css", "assets/matrix.js", "assets/icon.svg"}
    return [page, *(content for path, content in rendering.assets() if path in shared)]


def test_the_template_engine_is_loaded_for_publishing_alone() -> None:
    modules = "qvlfp8.cli, qvlfp8.commands.explain, qvlfp8.commands.schema"
    code = f"import sys, {modules}; print('jinja2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_the_committed_table_in_words_is_made_of_the_committed_records(tmp_path: Path) -> None:
    project = Project.open(ROOT / "matrix.yaml", tmp_path)
    committed = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    mend = "qvlfp8 publish --store EMPTY --out SITE && cp SITE/COMPATIBILITY.md docs/compatibility.md"
    assert compatibility.page(lay_out(gather(project))) == committed, mend


def _written(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_several_processes_write_what_one_writes(hostile: Project, tmp_path: Path) -> None:
    for count in (1, 3):
        publish(hostile, tmp_path / str(count), runtime=no_runtime, count=count)
    one, three = _written(tmp_path / "1"), _written(tmp_path / "3")
    assert any(name.startswith("cells/") for name in one)
    assert any(name.startswith("records/") for name in one)
    assert one == three


@pytest.mark.parametrize("count", [1, 2])
def test_what_a_process_cannot_write_is_said_and_the_old_site_stays(
    hostile: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    publish(hostile, tmp_path / "site", runtime=no_runtime)
    before = _written(tmp_path / "site")

    def full(_shares: Shares, number: int) -> Iterator[tuple[str, bytes]]:
        yield f"cells/{number}.html", b""
        raise OSError(errno.ENOSPC, "No space left on device", "a page")

    monkeypatch.setattr(Shares, "files", full)
    with pytest.raises(StoreWriteError, match="a page: no space left"):
        publish(hostile, tmp_path / "site", runtime=no_runtime, count=count)
    assert _written(tmp_path / "site") == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".site")] == []


def test_the_early_half_is_of_whole_checkpoints_and_says_what_the_whole_site_says(hostile: Project) -> None:
    early: list[Site] = []
    site = gather(hostile, early.append)
    assert site == gather(hostile)
    (half,) = early
    checkpoints = {cell.cell.checkpoint for cell in half.cells}
    assert checkpoints
    assert half.cells == tuple(cell for cell in site.cells if cell.cell.checkpoint in checkpoints)
    assert len({cell.cell.checkpoint for cell in site.cells}) > len(checkpoints)


def test_an_interrupted_publish_ends_its_processes_and_leaves_the_old_site(
    hostile: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hostile, tmp_path / "site", runtime=no_runtime)
    before = _written(tmp_path / "site")

    def interrupted(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(publishing, "first_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish(hostile, tmp_path / "site", runtime=no_runtime, count=2)
    assert _written(tmp_path / "site") == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".site")] == []
    assert multiprocessing.active_children() == []
