"""``qvlfp8 expect update``: make matrix.yaml expect what the records show."""

from __future__ import annotations

import difflib
import uuid
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from qvlfp8.cells import STAGES, Expectation, Stage, globs
from qvlfp8.errors import QvlError, UsageError
from qvlfp8.expect import unexpected
from qvlfp8.expect_edit import edited
from qvlfp8.expect_update import Amendment, New, amend
from qvlfp8.matrix import Matrix, parse_matrix
from qvlfp8.project import Project
from qvlfp8.store import writing
from qvlfp8.yamlfile import Document


class AmendmentError(QvlError):
    """An edit that would not have done what it is for; nothing was written."""


def update_expectations(
    matrix: Path,
    store: Path | None,
    only: Sequence[str],
    *,
    everything: bool,
    stage: str | None,
    finding: str | None,
    reason: str | None,
    link: str | None,
    flaky: bool,
    dry_run: bool,
) -> None:
    """Narrow, remove and add expectations until these cells' records are no surprise; print the difference.

    Raises:
        UsageError: a name is none, or a finding that nobody expects yet has no reason.
        FileFormatError: matrix.yaml is not valid, or would not be with what was given.
        StoreWriteError: matrix.yaml cannot be written.
    """
    if stage is not None and stage not in STAGES:
        raise UsageError(f"no stage {stage!r}", mend=f"name one of {', '.join(STAGES)}")
    if flaky and link is None:
        raise UsageError("--flaky needs the issue that says why", mend="give its address with --link")

    def asked(of: Stage, found: str) -> bool:
        return stage in {None, of} and finding in {None, found}

    project = Project.open(matrix, store)
    cells = project.cells(only=only, everything=everything)
    views = project.views(project.plan(cells, project.locks(cells)))
    seen = [(view.cell, one) for view in views for one in view.stages]
    new = _new(reason, link, flaky=flaky, cells=only[0] if len(only) == 1 else None)
    if new is None:
        open_ones = {
            (one.stage, found)
            for cell, one in seen
            for found in unexpected(one, project.matrix.expected(cell, one.stage))
            if one.status in {"pass", "fail"} and asked(one.stage, found)
        }
        if open_ones:
            named = ", ".join(f"{found} at {of}" for of, found in sorted(open_ones))
            raise UsageError(f"{named}: nobody expects that yet", mend="say why it shows with --reason")
    amendment = amend(project.matrix, seen, new, asked=asked)
    if amendment.empty:
        print("nothing to correct: what was executed of these cells is as matrix.yaml expects")
        return
    if flaky and (amendment.removed or amendment.narrowed):
        raise UsageError(
            "what is expected here and did not show would be taken out, which --flaky does not mean",
            mend="write `flaky: true` and `link` into that expectation, or leave --flaky out",
        )
    document = Document(matrix, _text(matrix))
    after = edited(document, project.matrix.file.expectations, amendment)
    _prove(project, parse_matrix(Document(matrix, after)), amendment)
    print(_difference(matrix, document.text, after), end="")
    if dry_run:
        print("nothing was written (--dry-run)")
        return
    _write(matrix, after)


def _new(reason: str | None, link: str | None, *, flaky: bool, cells: str | None) -> New | None:
    """What is said of new findings; None without a reason."""
    if reason is None:
        return None
    try:
        Expectation(cells="*", shows={"load": "x"}, reason=reason, link=link, flaky=flaky)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise UsageError(f"--{name}: {first['msg'].lower()}", mend="give another") from None
    return New(reason=reason, link=link, flaky=flaky, cells=cells)


def _text(path: Path) -> str:
    """The text with its own line breaks."""
    return path.read_bytes().decode("utf-8")


def _prove(project: Project, after: Matrix, amendment: Amendment) -> None:
    """Hold what the new text says against what was meant, before anything is written."""
    wanted: list[Expectation] = []
    for index, expectation in enumerate(project.matrix.file.expectations):
        if index not in amendment.removed:
            wanted.append(amendment.narrowed.get(index, expectation))
        wanted += amendment.split.get(index, ())
    wanted += amendment.added
    if [_plain(e) for e in after.file.expectations] != [_plain(e) for e in wanted]:
        raise AmendmentError("the edited file would not say what was meant; nothing was written")


def _plain(expectation: Expectation) -> dict[str, object]:
    """It, however its globs were written."""
    told = expectation.model_dump()
    return told | {"cells": globs(expectation.cells), "without": globs(expectation.without)}


def _difference(path: Path, before: str, after: str) -> str:
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), str(path), str(path)
    )
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


def _write(path: Path, text: str) -> None:
    """The new text in one rename, with the permissions of the file."""
    target = path.resolve()
    # A name that nobody has, so that no link is followed.
    scratch = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
    with writing(scratch):
        try:
            with scratch.open("xb") as stream:
                stream.write(text.encode("utf-8"))
            scratch.chmod(target.stat().st_mode)
            scratch.replace(target)
        finally:
            scratch.unlink(missing_ok=True)
