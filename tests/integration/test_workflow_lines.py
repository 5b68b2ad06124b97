"""Every `run:` line of the GitHub workflows that needs no GPU is run, in a copy of the repository.

Only `gh` is a stand-in, and `qvlfp8` in the step of the GPU, which is given the other engine. What GitHub
fills in is given by the tests; ``ONLY``, the workflow's own input, makes a night of one cell.
"""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from qvlfp8.project import Project
from tests.unit.workflows import ROOT, lines

NOT_RUN = {
    "ci/tests/1": "it is what CI runs, this test among the rest",
    "nightly/image/Build the image": "it takes gigabytes of CUDA packages; test_images.py builds images",
}
"""Lines that are not run here, and why. A new line has to be run or to stand here."""

RUN = {
    "ci/lint/1",
    "ci/unit/1",
    "action/qvlfp8/0",
    "nightly/plan/plan",
    "nightly/checkpoints/Run what needs no GPU",
    "nightly/image/Run its cells",
    "nightly/merge/last",
    "nightly/merge/Merge",
    "nightly/merge/diff",
    "nightly/merge/Make the site",
    "nightly/issue/Open the issue, or add to it",
}

ALL = {line.where: line for line in lines()}

CELL = "lm-fp8-portable/modelopt-0.47.0/seeing-untied/vllm-0.26.0"

GH = """\
#!/bin/sh
echo "$@" >>"$GH_LOG"
case "$1 $2" in
  "api repos/owner/name/pages") echo "$GH_SITE" ;;
  "issue list") cat "$GH_OPEN" ;;
esac
"""


@dataclass
class Copy:
    """A copy of the repository, in which lines are run as GitHub's runner does."""

    root: Path
    path: str
    log: Path
    open_issues: Path
    site: str = ""
    ran: set[str] = field(default_factory=set)

    def run(self, where: str, **env: str) -> tuple[int, dict[str, str]]:
        """Run a line with its environment; its exit code, and its outputs."""
        line = ALL[where]
        assert where in RUN
        filled = {name for name, value in line.env.items() if "${{" in value}
        assert filled <= env.keys(), f"{where} has {filled}"
        output = self.root / "output"
        output.write_text("")
        (self.root / "github-path").touch()
        # The jobs of ci do not use the action.
        added = (self.root / "github-path").read_text().split() if where.startswith("nightly/") else []
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", line.text],
            cwd=self.root, timeout=1500, check=False,
            env={
                **_plain_environment(),
                "PATH": ":".join([*reversed(added), self.path]),
                "GITHUB_OUTPUT": str(output), "GITHUB_PATH": str(self.root / "github-path"),
                "GITHUB_REPOSITORY": "owner/name",
                "GH_LOG": str(self.log), "GH_SITE": self.site, "GH_OPEN": str(self.open_issues),
                **{name: value for name, value in line.env.items() if "${{" not in value},
                **env,
            },
        )  # fmt: skip
        self.ran.add(where)
        told = (text.partition("=") for text in output.read_text().splitlines())
        return done.returncode, {name: value for name, _, value in told}


def _plain_environment() -> dict[str, str]:
    """This one without what nox, pytest and Python's environment have put into it."""
    dropped = ("NOX", "VIRTUAL_ENV", "PYTEST", "PYTHON", "UV_PROJECT", "QVLFP8")
    return {name: value for name, value in os.environ.items() if not name.startswith(dropped)}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory, shipped: Project) -> Copy:
    """The repository as git has it and as it is changed here, set up by the workflows' own action."""
    home = tmp_path_factory.mktemp("workflows")
    root = home / "copy"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    (root / "store").mkdir()
    (root / "store" / "environments").symlink_to(shipped.store.environments)
    (home / "bin").mkdir()
    (home / "bin" / "gh").write_text(GH)
    (home / "bin" / "gh").chmod(0o755)
    # Not the test session's own Python, which has no pip.
    path = [part for part in os.environ["PATH"].split(":") if Path(part) != Path(sys.prefix) / "bin"]
    (home / "open").touch()
    copy = Copy(root, ":".join([str(home / "bin"), *path]), home / "gh.log", home / "open")
    assert copy.run("action/qvlfp8/0") == (0, {})
    return copy


@pytest.fixture
def served(copy: Copy) -> Iterator[Path]:
    """The published site: a folder, empty at first, behind a server."""
    folder = copy.root.parent / "published"
    folder.mkdir(exist_ok=True)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    copy.site = f"http://127.0.0.1:{server.server_port}/"
    yield folder
    server.shutdown()
    server.server_close()


def test_every_line_is_run_or_listed_with_the_reason_why_not() -> None:
    assert not RUN & NOT_RUN.keys()
    assert RUN | NOT_RUN.keys() == ALL.keys()
    assert ALL["ci/tests/1"].text == "bash .ci/run"


def test_ci_lints_and_runs_the_fast_tests(copy: Copy) -> None:
    assert copy.run("ci/lint/1") == (0, {})
    # They have been run by now; here it matters that the line finds them.
    assert copy.run("ci/unit/1", PYTEST_ADDOPTS="--collect-only -qq") == (0, {})


def test_a_night_from_its_plan_to_its_issue(copy: Copy, served: Path) -> None:
    code, told = copy.run("nightly/plan/plan", ONLY=CELL)
    (job,) = json.loads(told["jobs"])["include"]
    assert (code, job["image"], job["cells"]) == (0, "vllm-0.26.0.cuda", [CELL])

    assert copy.run("nightly/checkpoints/Run what needs no GPU", ONLY=CELL) == (0, {})
    steps = copy.root / "store" / "steps"
    assert {folder.name for folder in steps.iterdir()} >= {"model", "quantize", "inspect", "preflight"}

    _run_on_a_gpu(copy, job["cells"])
    # A single artifact is laid into parts/ itself.
    shutil.copytree(steps, copy.root / "parts" / "steps")
    shutil.rmtree(steps)
    assert copy.run("nightly/merge/last", GH_TOKEN="t") == (0, {"site": copy.site})  # noqa: S106
    assert copy.run("nightly/merge/Merge") == (0, {})
    assert {folder.name for folder in steps.iterdir()} >= {"model", "quantize", "inspect", "preflight"}
    assert copy.run("nightly/merge/diff", RUN="https://example.org/run") == (0, {}), "nothing to compare with"

    # With several, each has a folder of its own.
    (copy.root / "parts").rename(copy.root / "one")
    for name in ("store-checkpoints", f"store-{job['image']}"):
        shutil.copytree(copy.root / "one", copy.root / "parts" / name)
    shutil.rmtree(steps)
    assert copy.run("nightly/merge/Merge") == (0, {})
    _publish(copy, served)

    # The next night: what it did not settle is filled in, and what is worse is told.
    shutil.rmtree(copy.root / "last")
    shutil.rmtree(steps)
    _spoil(copy.root / "parts")
    assert copy.run("nightly/merge/last", GH_TOKEN="t")[0] == 0  # noqa: S106
    assert (copy.root / "last" / "steps").is_dir()
    assert copy.run("nightly/merge/Merge") == (0, {})
    assert {folder.name for folder in steps.iterdir()} >= {"model", "quantize", "inspect", "preflight"}
    assert copy.run("nightly/merge/diff", RUN="https://example.org/run") == (0, {"regressed": "true"})
    body = (copy.root / "issue" / "body.md").read_text()
    assert CELL in body
    assert "--only" in body, "the command that repeats it"
    assert "https://example.org/run" in body


@pytest.mark.parametrize(("number", "asked"), [("", "issue create"), ("7\n", "issue comment 7 ")])
def test_one_issue_is_open_at_a_time(copy: Copy, number: str, asked: str) -> None:
    (copy.root / "issue").mkdir(exist_ok=True)
    (copy.root / "issue" / "title.txt").write_text("A title; $(false) `x`\n")
    copy.open_issues.write_text(number)
    copy.log.write_text("")
    done = copy.run("nightly/issue/Open the issue, or add to it", GH_TOKEN="t", GH_REPO="o/n")  # noqa: S106
    assert done == (0, {})
    label, sought, sent = copy.log.read_text().splitlines()
    assert label.startswith("label create nightly-regression ")
    assert sought.startswith("issue list --label nightly-regression --state open ")
    assert sent.startswith(asked)
    assert sent.endswith(" --body-file issue/body.md")
    assert ("--title A title; $(false) `x`" in sent) == (not number)


def test_a_site_that_cannot_be_asked_ends_the_night(copy: Copy, served: Path) -> None:
    shutil.rmtree(copy.root / "last", ignore_errors=True)
    copy.site = "http://127.0.0.1:9/"
    assert copy.run("nightly/merge/last", GH_TOKEN="t")[0] != 0  # noqa: S106
    shutil.rmtree(copy.root / "last", ignore_errors=True)


def _run_on_a_gpu(copy: Copy, cells: list[str]) -> None:
    """The step of the GPU, with the engine that works here; without a GPU it finds nothing left to do."""
    real = copy.root / ".nox" / "matrix" / "bin"
    stand_in = copy.root.parent / "stand-in" / "qvlfp8"
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!/bin/bash\necho "$@" >"$0.log"\nexec {real}/qvlfp8 "${{@/#docker/venv}}"\n')
    stand_in.chmod(0o755)
    before = (copy.root / "github-path").read_text()
    (copy.root / "github-path").write_text(f"{before}{stand_in.parent}\n")
    assert copy.run("nightly/image/Run its cells", CELLS=" ".join(cells)) == (0, {})
    (copy.root / "github-path").write_text(before)
    asked = Path(f"{stand_in}.log").read_text().split()
    assert asked == [
        "matrix", "--engine", "docker", "--store", "store", "--without-evidence", f"--only={CELL}",
    ]  # fmt: skip


def _publish(copy: Copy, served: Path) -> None:
    assert copy.run("nightly/merge/Make the site", SITE=copy.site) == (0, {})
    shutil.copytree(copy.root / "site", served, dirs_exist_ok=True)
    assert (served / "index.html").is_file()


def _spoil(parts: Path) -> None:
    """Tonight vLLM's loader refuses the checkpoint, and nobody has inspected it."""
    for part in parts.iterdir():
        shutil.rmtree(part / "steps" / "inspect")
        (record,) = (part / "steps" / "preflight").glob("*/record.json")
        cause = {"id": "scale-never-loaded", "summary": "a scale was never loaded"}
        record.write_text(
            json.dumps(json.loads(record.read_text()) | {"status": "fail", "findings": [cause]})
        )
