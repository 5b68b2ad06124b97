"""The issue that a regression opens, made of what `qvlfp8 diff --json` printed; none of that is trusted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from qvlfp8.cli import main
from qvlfp8.errors import UsageError
from qvlfp8.nightly import MOST_BODY, MOST_TITLE, Issue, compose, read_diff

RUN = "https://example.org/runs/1"
CELL = "lm-fp8/modelopt-0.47.0/seeing-untied/vllm-0.26.0"


def change(kind: str = "regressed", because: str = "blind: the same answer", **fields: Any) -> dict[str, Any]:
    return {
        "kind": kind, "subject": CELL, "stage": "image", "accelerator": None, "note": None,
        "before": {"status": "pass", "findings": [], "because": "", "stale": None},
        "after": {"status": "fail", "findings": ["blind"], "because": because, "stale": None},
        "repeat": f"nox -s matrix -- --engine docker --again --only '{CELL}'",
    } | fields  # fmt: skip


def printed(*changes: dict[str, Any], **counts: int) -> str:
    """As `qvlfp8 diff --json` prints it."""
    return json.dumps(
        {
            "version": 1, "before": "last", "after": "store", "notes": [], "unchanged": 5, "still_stale": 0,
            "counts": {"regressed": len(changes), "error": 0, **counts}, "changes": changes,
        }
    )  # fmt: skip


def issue_of(*changes: dict[str, Any]) -> Issue:
    return compose(read_diff(printed(*changes)), run=RUN)


def test_the_issue_says_what_got_worse_where_and_how_to_repeat_it(tmp_path: Path) -> None:
    diff = tmp_path / "diff.json"
    improved = change("improved", subject="other")
    diff.write_text(printed(improved, change(accelerator="NVIDIA H200"), improved=1))
    assert main(["nightly-issue", str(diff), "--run", RUN, "--out", str(tmp_path / "issue")]) == 0
    title = (tmp_path / "issue" / "title.txt").read_text()
    assert title == f"Nightly run: {CELL} got worse (image)\n"
    body = (tmp_path / "issue" / "body.md").read_text()
    assert f"[The nightly run]({RUN}) holds" in body
    assert "published: 1 regressed." in body
    assert "Besides: `1 improved`." in body
    assert f"- `{CELL}`, `image` on `NVIDIA H200`: `pass` before, now `fail (blind)`\n" in body
    assert f"  ```text\n  nox -s matrix -- --engine docker --again --only '{CELL}'\n  ```" in body
    assert "  ```text\n  blind: the same answer\n  ```" in body
    assert "other" not in body


def test_several_are_counted_in_the_title() -> None:
    issue = issue_of(change(), change(stage="load"), change(subject="b"))
    assert issue.title == "Nightly run: 2 cells or checkpoints got worse (image, load)"
    assert "published: 3 regressed." in issue.body
    assert "\n" not in issue_of(change(subject="a\n# head")).title


@pytest.mark.parametrize(
    "said",
    [
        "```\n@everybody <script>",
        "`````\n# head",
        "a\n\n- item\n[x](http://y)",
        "\x1b[31m @somebody",
        "~~~\n@x",
        "a ` @somebody",
    ],
)
def test_what_a_record_says_stays_inside_code(said: str) -> None:
    told = {"status": said, "findings": [said], "because": said}
    body = issue_of(change(subject=said, stage=said, accelerator=said, after=told, repeat=said)).body
    outside, fence = [], ""
    for line in body.splitlines():
        text = line.removeprefix("  ")
        if fence:
            fence = "" if text == fence else fence
        elif found := re.match(r"(`{3,})text$", text):
            fence = found[1]
        else:
            outside.append(re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", line))
    assert not fence, "every block ends"
    assert "\x1b" not in body
    left = "\n".join(outside).replace(RUN, "")
    assert not re.search(r"[@<#`]|script|item|everybody", left)


def test_a_long_diff_is_cut_and_says_so() -> None:
    body = issue_of(*(change(because="x" * 5000) for _ in range(500))).body
    assert MOST_BODY * 0.9 < len(body) < MOST_BODY + 200
    told = body.count("before, now")
    assert body.endswith(f"and {500 - told} more, in the run's artifact.\n")
    assert len(issue_of(change(stage="s" * 500)).title) == MOST_TITLE


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", printed(), printed(change("gone")), printed({"kind": "regressed"})]
)
def test_what_is_no_regression_makes_no_issue(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        compose(read_diff(text), run=RUN)
    (tmp_path / "diff.json").write_text(text)
    assert (
        main(["nightly-issue", str(tmp_path / "diff.json"), "--run", RUN, "--out", str(tmp_path / "o")]) == 2
    )
    assert (
        main(["nightly-issue", str(tmp_path / "none.json"), "--run", RUN, "--out", str(tmp_path / "o")]) == 2
    )
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "run",
    [
        "", "runs/1", "javascript:alert(1)", "https://example.org/1) [x](https://elsewhere.org",
        "https://example.org/1\n# head", "https://example.org/<b>", "https://example.org/a b", f"{RUN}\n",
    ],
)  # fmt: skip
def test_what_is_no_address_is_no_link_of_an_issue(run: str, tmp_path: Path) -> None:
    (tmp_path / "diff.json").write_text(printed(change()))
    asked = ["nightly-issue", str(tmp_path / "diff.json"), "--run", run, "--out", str(tmp_path / "o")]
    assert main(asked) == 2
    assert not (tmp_path / "o").exists()


def test_the_address_of_a_run_on_github_is_one() -> None:
    run = "https://github.example.org:8443/org/some_repo.x/actions/runs/1234567/attempts/2?pr=1#step:3:4"
    assert f"[The nightly run]({run}) holds" in compose(read_diff(printed(change())), run=run).body
