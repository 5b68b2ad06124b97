"""Writes the site: whole, or not at all."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvlfp8.commands.schema import schema_text
from qvlfp8.errors import UsageError
from qvlfp8.project import Project
from qvlfp8.report.evidence import draw_pictures
from qvlfp8.site import pyodide, rendering
from qvlfp8.site.cell_view import ExamShown, questions_shown
from qvlfp8.site.checker import write_checker
from qvlfp8.site.data import Site, gather
from qvlfp8.site.files import site_files
from qvlfp8.store import writing

__all__ = ["Published", "Runtime", "publish"]

Runtime = Callable[[], Mapping[str, bytes]]
"""Gives the files of Pyodide, in which the checker runs."""

MARK = "api/v1/site.json"
"""What a folder of ours has: only such a one is replaced."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What was written. ``without``: why there is no checker in it, or None."""

    site: Site
    files: int
    size: int
    without: str | None


def publish(project: Project, out: Path, *, base: str = "", runtime: Runtime = pyodide.runtime) -> Published:
    """Write the site of a project to ``out``; what was there of an earlier one goes.

    Args:
        project: whose records are shown.
        out: the site's folder.
        base: the address at which it will stand, for the feed; empty: its links are relative.
        runtime: gives the files of Pyodide; where they cannot be had, the checker's page says so.

    Raises:
        UsageError: ``out`` is there, and no site of ours.
        StoreWriteError: the disk refuses.
        QvlError: a lock or a committed record is not valid.
    """
    out = out.resolve()
    _refuse_what_is_not_ours(out)
    site = gather(project)
    made = out.parent / f".{out.name}-{uuid.uuid4().hex}"
    before = made.with_name(f"{made.name}-before")
    with writing(out):
        try:
            made.mkdir(parents=True)
            _write(site, made, base)
            without = write_checker(made, _render, runtime=runtime)
            files = [path for path in made.rglob("*") if path.is_file()]
            size = sum(path.stat().st_size for path in files)
            # Rendering takes a while, in which somebody may have put something there.
            _refuse_what_is_not_ours(out)
            if out.exists():
                out.rename(before)
            made.rename(out)
        finally:
            if before.exists() and not out.exists():
                before.rename(out)
            shutil.rmtree(before, ignore_errors=True)
            shutil.rmtree(made, ignore_errors=True)
    return Published(site=site, files=len(files), size=size, without=without)


def _refuse_what_is_not_ours(out: Path) -> None:
    if out.exists() and not (out / MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: is there already, and not a site of ours", mend="name another (--out)")
    if (out / ".git").exists():
        raise UsageError(f"{out}: a checkout of git", mend="name another (--out), and copy it there")


def _render(template: str, /, **values: Any) -> str:
    return rendering.render(template, **values)


def _draw(site: Site, folder: Path) -> ExamShown:
    """Draw the pictures that cells' pages show."""
    if not any(cell.baseline for cell in site.cells):
        return ExamShown()
    try:
        from qvlfp8.reference.exam import exam_digest, make_exam
    except ImportError as error:
        raise UsageError(
            f"the pictures that models were shown cannot be drawn: {error}",
            mend="pip install 'qvlfp8[pictures]', or use `nox -s publish`",
        ) from None
    asked = site.project.matrix.file.exam
    questions = make_exam(asked.seed, asked.per_task)
    digest = exam_digest(questions)
    shown = {cell.cell.id: found for cell in site.cells if (found := questions_shown(cell, digest))}
    used = {row.question for found in shown.values() for row in found}
    return ExamShown(digest=digest, prompts=draw_pictures(folder, questions, used), shown=shown)


def _write(site: Site, made: Path, base: str) -> None:
    exam = _draw(site, made / "pictures")
    for path, content in site_files(site, exam, base=base, schema=schema_text("site")):
        target = made / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
