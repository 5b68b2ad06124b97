"""``qvlfp8 findings`` and ``qvlfp8 diagnose`` from outside: what they print, and their exit codes."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import pytest

from qvlfp8.commands import diagnose as diagnosing
from qvlfp8.known_findings import KNOWN
from qvlfp8.observed import notes, observed
from qvlfp8.project import Project
from qvlfp8.signs import SIGNS
from tests.unit.factory import open_project
from tests.unit.test_cli import ROOT, fails, qvlfp8

STRAY = "KeyError: 'blocks.0.attn.k_proj.k_scale'\n"


def test_all_findings_are_listed() -> None:
    lines = qvlfp8("findings").stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [[name, kind.severity] for name, kind in KNOWN.items()]
    listed = json.loads(qvlfp8("findings", "--json").stdout)["findings"]
    assert [finding["id"] for finding in listed] == list(KNOWN)


def test_one_finding_says_where_the_records_show_it() -> None:
    done = qvlfp8("findings", "blind")
    assert done.returncode == 0, done.stderr
    for part in (KNOWN["blind"].meaning, KNOWN["blind"].mend, *SIGNS["blind"].links, "vLLM 0.10.2: image"):
        assert part in done.stdout
    records = json.loads(qvlfp8("findings", "blind", "--json").stdout)["records"]
    assert 0 < records["shown"] < records["read"]


def test_without_records_that_is_said(tmp_path: Path) -> None:
    assert "there is no matrix.yaml here" in qvlfp8("findings", "blind", cwd=tmp_path).stdout
    open_project(tmp_path)
    assert "no record here shows it (0 current ones" in qvlfp8("findings", "blind", cwd=tmp_path).stdout


def test_an_unknown_finding_is_2() -> None:
    fails(qvlfp8("findings", "vision-exclusion"), 2, "'vision-exclusion'", "vision-exclusion-ignored")


def test_links_are_of_upstream() -> None:
    for kind in SIGNS.values():
        assert all(link.startswith("https://github.com/vllm-project/") for link in kind.links)


def test_a_log_is_diagnosed(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_bytes(b"\xff\x00\n" + STRAY.encode())
    done = qvlfp8("diagnose", str(log), cwd=ROOT)
    assert done.returncode == 0
    for part in (
        "stray-vision-kv-scale (fail)",
        KNOWN["stray-vision-kv-scale"].mend,
        "command  qvlfp8 repair IN OUT",
        "line 2",
        STRAY.strip(),
    ):
        assert part in done.stdout
    said = json.loads(qvlfp8("diagnose", str(log), "--json").stdout)
    assert (said["known"], said["findings"][0]["lines"][0]["line"]) == (True, 2)


def test_the_page_of_findings_is_current() -> None:
    printed = qvlfp8("findings", "--markdown").stdout
    committed = (Path(__file__).parents[2] / "docs" / "findings.md").read_text()
    assert printed == committed, "run `qvlfp8 findings --markdown > docs/findings.md`"


@pytest.fixture(scope="module")
def committed() -> set[str]:
    """The ids of all findings that a committed record shows."""
    project = Project.open(ROOT / "matrix.yaml")
    shown = {name for *_, found in observed(project, committed_only=True) for name in found}
    return shown | {finding.id for record in project.evidence.kept.records() for finding in record.findings}


def test_whatever_a_committed_record_shows_has_a_meaning_and_a_place(committed: set[str]) -> None:
    assert committed - set(KNOWN) == set()
    page = (ROOT / "docs" / "findings.md").read_text()
    sections = {part.partition("`")[0]: part for part in page.split("\n## `")[1:]}
    assert set(sections) == set(KNOWN)
    assert committed == {name for name, text in sections.items() if "**Seen in**" in text}


def test_whatever_a_worker_refuses_with_has_a_meaning() -> None:
    """But for the plants of the oracle, which no checkpoint has."""
    sources = [path.read_text() for path in (ROOT / "qvlfp8" / "worker").glob("*.py")]
    ids = {name for text in sources for name in re.findall(r'\bRefused\(\s*"([a-z-]+)"', text)}
    assert "recipe-not-expressible" in ids
    assert ids - set(KNOWN) == {"unknown-plant", "unknown-fault"}


def test_a_mend_of_a_scale_of_one_says_which_modelopt_writes_others() -> None:
    """By the records: of calibrated scales only older releases' are one."""
    project = Project.open(ROOT / "matrix.yaml")
    subjects = {
        record.subject
        for _, record in project.evidence.records()
        if record.stage == "generate" and "kv-scale-one" in notes("load", record)
    }
    calibrated = {subject.split("/")[1] for subject in subjects if "-kv-cast/" not in subject}
    assert calibrated - {"seeing-untied"} == {"modelopt-0.37.0", "modelopt-0.41.0"}
    told = KNOWN["kv-scale-one"].mend
    assert all(part in told for part in ("-kv-cast", "0.37 and 0.41", "ModelOpt 0.44"))


def test_an_unknown_log_is_1(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("torch.OutOfMemoryError: CUDA out of memory.")
    done = qvlfp8("diagnose", str(log))
    assert done.returncode == 1
    assert "unknown" in done.stdout
    assert "the machine" in done.stdout
    assert "CUDA out of memory" in done.stdout


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    fails(qvlfp8("diagnose", str(tmp_path / "none")), 1, "no such file", "mend:")
    fails(qvlfp8("diagnose", str(tmp_path)), 1, "is a directory", "mend:")


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosing, "MOST_BYTES", 100)
    log = tmp_path / "log.txt"
    log.write_text(STRAY + "x\n" * 200)
    done = qvlfp8("diagnose", str(log))
    assert done.returncode == 1
    assert done.stdout.startswith("only the last")
    assert io.StringIO(done.stdout).readline().strip().endswith("from there")


def test_only_the_end_of_a_long_pipe_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosing, "MOST_BYTES", 100)
    reader, writer = os.pipe()
    os.write(writer, b"a" * 900 + b"b" * 100)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        assert diagnosing._end(stream) == (b"b" * 100, False)
