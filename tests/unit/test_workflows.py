"""The GitHub workflows hold what they promise: what may run where, with which rights, and by whose code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.workflows import ACTIONS, GITHUB, ROOT, WORKFLOWS, jobs, lines, read, steps

HOSTED = re.compile(r"^ubuntu-\d\d\.\d\d$")
BIN = Path(sys.executable).parent


def actionlint(folder: Path) -> subprocess.CompletedProcess[str]:
    # Its wheel and shellcheck's put their programs beside Python.
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.run(
        [BIN / "actionlint", "-no-color"],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository with the workflows alone."""
    shutil.copytree(GITHUB, tmp_path / "copy" / ".github")
    subprocess.run(["git", "init", "--quiet", tmp_path / "copy"], check=True)
    return tmp_path / "copy"


def test_actionlint_has_nothing_to_say(copy: Path) -> None:
    done = actionlint(copy)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("line", "spoilt", "said"),
    [
        ('run: qvlfp8 build --store store "$IMAGE"', "run: qvlfp8 build $IMAGE", "shellcheck"),
        ("needs: [plan, checkpoints]", "needs: [plan]", "checkpoints"),
        ("RUN: ${{ github.server_url }}", "RUN: ${{ github.server_uri }}", "server_uri"),
    ],
)
def test_actionlint_sees_what_is_wrong(copy: Path, line: str, spoilt: str, said: str) -> None:
    path = copy / ".github" / "workflows" / "nightly.yml"
    text = path.read_text()
    assert line in text
    path.write_text(text.replace(line, spoilt))
    done = actionlint(copy)
    assert done.returncode == 1
    assert said in done.stdout


def test_rights_are_given_to_jobs_alone_and_no_more_than_they_need() -> None:
    assert all(read(path)["permissions"] == {} for path in WORKFLOWS)
    wider = {
        where: job["permissions"] for where, job, _ in jobs() if job["permissions"] != {"contents": "read"}
    }
    assert wider == {
        "nightly/merge": {"contents": "read", "pages": "read"},
        "nightly/publish": {"pages": "write", "id-token": "write"},
        "nightly/issue": {"issues": "write"},
    }


def test_what_may_write_runs_no_code_of_the_repository() -> None:
    for where, job, _ in jobs():
        if "write" in job["permissions"].values():
            used = [step["uses"] for step in job["steps"] if "uses" in step]
            assert not any(use.startswith(("./", "actions/checkout")) for use in used), where
            assert job["if"].count("github.ref == 'refs/heads/main'") == 1, where
            assert "!inputs.only" in job["if"], where


def test_a_pull_request_gets_no_secret_and_no_machine_of_ours() -> None:
    for where, job, workflow in jobs():
        triggers = set(workflow["on"])
        assert triggers <= {"push", "pull_request", "schedule", "workflow_dispatch"}, where
        if "pull_request" in triggers:
            assert HOSTED.match(job["runs-on"]), where
            assert "${{ secrets" not in str(job), where
            assert "github.token" not in str(job), where
    own = [where for where, job, _ in jobs() if not HOSTED.match(job["runs-on"])]
    assert own == ["nightly/image"], "the one job on a self-hosted runner"
    assert set(read(GITHUB / "workflows" / "nightly.yml")["on"]) == {"schedule", "workflow_dispatch"}


def test_a_fork_has_no_nightly_run_unless_it_says_so() -> None:
    nightly = {where: job for where, job, _ in jobs() if where.startswith("nightly/")}
    assert nightly["nightly/plan"]["if"] == "vars.QVLFP8_NIGHTLY == 'true'"
    for where, job in nightly.items():
        if where == "nightly/plan":
            continue
        needs = [job["needs"]] if isinstance(job["needs"], str) else job["needs"]
        # `!cancelled()` runs after a skipped job, too: it needs what a skipped plan does not meet.
        held = "if" not in job or any(
            text in job["if"]
            for text in (
                "needs.plan.result == 'success'",
                "needs.merge.result == 'success'",
                "regressed == 'true'",
            )
        )
        assert held, where
        assert {"plan", "merge"} & set(needs), where


def test_every_job_ends_and_every_workflow_runs_once_at_a_time() -> None:
    for where, job, workflow in jobs():
        assert job["timeout-minutes"], where
        assert workflow["concurrency"]["group"], where
        assert workflow["defaults"]["run"]["shell"] == "bash", "which ends at the first command that fails"
    assert read(GITHUB / "workflows" / "nightly.yml")["concurrency"]["cancel-in-progress"] is False


def test_no_expression_stands_in_a_script() -> None:
    assert not [line.where for line in lines() if "${{" in line.text]
    kept = [
        step["with"].get("persist-credentials") for _, step in steps() if "checkout@" in step.get("uses", "")
    ]
    assert kept
    assert not any(kept), "git's credentials are not left for what runs next"


# --- pinned actions -----------------------------------------------------------------------------------------

PINNED = re.compile(r"^[\w.-]+/[\w.-]+(/[\w.-]+)*@[0-9a-f]{40} # v\d+\.\d+\.\d+$")


def uses(folder: Path) -> list[str]:
    texts = [path.read_text() for path in sorted(folder.rglob("*.yml"))]
    return [m[1] for text in texts for m in re.finditer(r"uses:\s*(.*)", text) if not m[1].startswith("./")]


def test_every_action_is_pinned_by_a_commit_with_its_version_behind() -> None:
    found = uses(GITHUB)
    assert len(found) == sum("uses" in step and step["uses"][0] != "." for _, step in steps())
    for use in found:
        assert PINNED.match(use), use
    by_tag = {use.split("@")[0] + use.split("#")[1]: use for use in found}
    assert set(found) == set(by_tag.values()), "one version has one commit"


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """Bare repositories of every action that is used, with its tag: an annotated one for the first half."""
    root = tmp_path / "remote"
    names = sorted({(use.split("@")[0], use.split("# ")[1]) for use in uses(GITHUB)})
    for index, (action, tag) in enumerate(names):
        folder = root / action
        folder.mkdir(parents=True)
        git(folder, "init", "--quiet", "--bare")
        tree = git(folder, "write-tree")
        commit = git(folder, "commit-tree", tree, "-m", action)
        git(folder, "update-ref", "refs/heads/main", commit)
        annotated = ["-a", "-m", tag] if index < len(names) // 2 else []
        git(folder, "tag", *annotated, tag, commit)
    return root


def pin(folder: Path, remote: Path, *options: str) -> subprocess.CompletedProcess[str]:
    script = str(GITHUB / "pin_actions.py")
    command = [sys.executable, script, "--remote", str(remote), "--folder", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_script_fills_in_the_commits_of_the_tags(copy: Path, remote: Path) -> None:
    folder = copy / ".github"
    before = {path: path.read_text() for path in folder.rglob("*.yml")}
    for path, text in before.items():
        path.write_text(re.sub(r"@[0-9a-f]{40} ", f"@{'0' * 40} ", text))
    assert pin(folder, remote, "--check").returncode == 1
    assert "0" * 40 in (folder / "workflows" / "ci.yml").read_text(), "it only looks"
    done = pin(folder, remote)
    assert done.returncode == 0, done.stderr
    for use in uses(folder):
        action, commit, tag = re.match(r"(.*)@(\w+) # (.*)", use).groups()  # type: ignore[union-attr]
        assert commit == git(remote / action, "rev-parse", f"{tag}^{{commit}}")
    assert pin(folder, remote, "--check").returncode == 0
    for path, text in before.items():
        assert re.sub(r"@\w{40} ", "", path.read_text()) == re.sub(r"@\w{40} ", "", text), "and nothing else"
    done = actionlint(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("use", "said"),
    [
        ("actions/checkout@v7", "`uses: actions/checkout@v7` is not OWNER/REPO@COMMIT # TAG"),
        (f"actions/checkout@{'0' * 40} # v9.9.9", "actions/checkout: no tag v9.9.9"),
        (f"actions/none@{'0' * 40} # v1.0.0", "actions/none"),
    ],
)
def test_what_cannot_be_pinned_is_named_and_nothing_is_written(
    copy: Path, remote: Path, use: str, said: str
) -> None:
    path = copy / ".github" / "workflows" / "ci.yml"
    text = re.sub(r"uses: actions/checkout@.*", f"uses: {use}", path.read_text())
    path.write_text(text)
    done = pin(copy / ".github", remote)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert path.read_text() == text


def test_the_workflows_are_those_that_the_lines_are_listed_of() -> None:
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "nightly.yml"]
    assert [path.parent.name for path in ACTIONS] == ["qvlfp8"]
    assert not list((ROOT / ".github").rglob("*.yaml"))
