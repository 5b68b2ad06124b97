"""Writes the site: whole, or not at all."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from qvlfp8.commands.schema import schema_text
from qvlfp8.errors import UsageError
from qvlfp8.project import Project
from qvlfp8.report.evidence import draw_pictures
from qvlfp8.site.cell_view import ExamShown, questions_shown
from qvlfp8.site.data import Site, gather
from qvlfp8.site.files import site_files
from qvlfp8.store import writing

__all__ = ["publish"]

MARK = "api/v1/site.json"
"""What a folder of ours has: only such a one is replaced."""


def publish(project: Project, out: Path, *, base: str = "") -> tuple[Site, int, int]:
    """Write the site of a project to ``out``; what was there of an earlier one goes.

    Returns:
        The site, the number of its files, and their bytes.

    Raises:
        UsageError: ``out`` is there, and no site of ours.
        StoreWriteError: the disk refuses.
        QvlError: a lock or a committed record is not valid.
    """
    if out.exists() and not (out / MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: is there already, and not a site of ours", mend="name another (--out)")
    site = gather(project)
    made = out.parent / f".{out.name}-{uuid.uuid4().hex}"
    with writing(out):
        try:
            made.mkdir(parents=True)
            count, size = _write(site, made, base)
            if out.exists():
                shutil.rmtree(out)
            made.rename(out)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return site, count, size


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
    used = {row.question for cell in site.cells for row in questions_shown(cell, digest)}
    return ExamShown(digest=digest, prompts=draw_pictures(folder, questions, used))


def _write(site: Site, made: Path, base: str) -> tuple[int, int]:
    exam = _draw(site, made / "pictures")
    for path, content in site_files(site, exam, base=base, schema=schema_text("site")):
        target = made / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    files = [path for path in made.rglob("*") if path.is_file()]
    return len(files), sum(path.stat().st_size for path in files)
