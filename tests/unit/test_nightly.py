"""The issue that a regression opens, made of what `qvlfp8 diff --json` printed; none of that is trusted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from qvlfp8.cli import main
from qvlfp8.errors import UsageError
from qvlfp8.nightly import MOST_BODY, MOST_TITLE, compose, read_diff

RUN = "https://example.org/runs/1"
CELL = "lm-fp8/modelopt-0.47.0/seeing-untied/vllm-0.26.0"


def change(**fields: str) -> dict[str, str]:
    return {
        "cell": CELL, "stage": "image", "before": "pass", "after": "fail",
        "because": "blind: it answers the same",
        "repeat": f"nox -s matrix -- --engine docker --again --only '{CELL}'",
    } | fields  # fmt: skip


def body_of(*changes: dict[str, str], **more: Any) -> str:
    return compose(read_diff(json.dumps({"version": 1, "regressed": changes, **more})), run=RUN).body


def test_the_issue_says_what_got_worse_where_and_how_to_repeat_it(tmp_path: Path) -> None:
    diff = tmp_path / "diff.json"
    diff.write_text(json.dumps({"regressed": [change()], "improved": [change(), change()], "new": ["x"]}))
    assert main(["nightly-issue", str(diff), "--run", RUN, "--out", str(tmp_path / "issue")]) == 0
    title = (tmp_path / "issue" / "title.txt").read_text()
    assert title == "Nightly run: 1 cell got worse in vllm-0.26.0 (image)\n"
    body = (tmp_path / "issue" / "body.md").read_text()
    assert f"[The nightly run]({RUN}) found 1 stage of 1 cell worse" in body
    assert "2 stages improved." in body
    assert f"- `{CELL}`, `image`: `pass` before, now `fail`\n" in body
    assert f"  ```text\n  nox -s matrix -- --engine docker --again --only '{CELL}'\n  ```" in body
    assert "  ```text\n  blind: it answers the same\n  ```" in body


def test_several_environments_are_counted_in_the_title() -> None:
    changes = [change(), change(stage="load"), change(cell=CELL.replace("0.26", "0.24"))]
    issue = compose(read_diff(json.dumps({"regressed": changes})), run=RUN)
    assert issue.title == "Nightly run: 2 cells got worse in 2 environments (image, load)"


@pytest.mark.parametrize(
    "said",
    [
        "```\n@everybody <script>",
        "`````\n# head",
        "a\n\n- item\n[x](http://y)",
        "\x1b[31m @somebody",
        "~~~\n@x",
    ],
)
def test_what_a_record_says_stays_inside_code(said: str) -> None:
    body = body_of(change(because=said, cell=said, before=said))
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
    body = body_of(*(change(because="x" * 5000) for _ in range(500)))
    assert MOST_BODY * 0.9 < len(body) < MOST_BODY + 200
    told = body.count("before, now")
    assert body.endswith(f"and {500 - told} more, in the run's artifact.\n")
    assert (
        len(compose(read_diff(json.dumps({"regressed": [change(stage="s" * 500)]})), run=RUN).title)
        == MOST_TITLE
    )


@pytest.mark.parametrize("text", ["", "[]", '{"regressed": [{"cell": 1}]}', '{"regressed": []}', "{}"])
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
