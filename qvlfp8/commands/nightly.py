"""``qvlfp8 nightly-issue``."""

from __future__ import annotations

from pathlib import Path

from qvlfp8.errors import UsageError
from qvlfp8.nightly import compose, read_diff
from qvlfp8.store import writing


def write_issue(diff: Path, out: Path, *, run: str) -> None:
    """Write ``title.txt`` and ``body.md`` into the folder ``out``, for `gh issue`.

    Raises:
        UsageError: ``diff`` is not what `qvlfp8 diff --json` prints, or nothing regressed.
        StoreWriteError: the disk refuses.
    """
    try:
        text = diff.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{diff}: cannot be read: {error.strerror}", mend="name the output of `diff`"
        ) from None
    issue = compose(read_diff(text), run=run)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        (out / "title.txt").write_text(issue.title + "\n", encoding="utf-8")
        (out / "body.md").write_text(issue.body, encoding="utf-8")
    print(issue.title)
