"""Writes the site: whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from qvlfp8.commands.schema import schema_text
from qvlfp8.errors import UsageError
from qvlfp8.project import Project
from qvlfp8.report.evidence import draw_pictures, prompts_of
from qvlfp8.sharing import beside, in_shares, processes
from qvlfp8.site import pyodide, rendering
from qvlfp8.site.checker import write_checker
from qvlfp8.site.data import Site, gather
from qvlfp8.site.exam_view import ExamShown, questions_shown
from qvlfp8.site.files import Shares, first_files
from qvlfp8.site.matrix_view import lay_out
from qvlfp8.store import writing

__all__ = ["Published", "Runtime", "publish"]

Runtime = Callable[[], Mapping[str, bytes]]
"""Gives the files of Pyodide, in which the checker runs."""

Draw = Callable[[Path], None]
"""Draws pictures into a folder."""

MARK = "api/v1/site.json"
"""What a folder of ours has: only such a one is replaced."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What was written. ``without``: why there is no checker in it, or None."""

    site: Site
    files: int
    size: int
    without: str | None


def publish(
    project: Project,
    out: Path,
    *,
    base: str = "",
    runtime: Runtime = pyodide.runtime,
    count: int | None = None,
) -> Published:
    """Write the site of a project to ``out``; what was there of an earlier one goes.

    Args:
        project: whose records are shown.
        out: the site's folder.
        base: the address at which it will stand, for the feed; empty: its links are relative.
        runtime: gives the files of Pyodide; where they cannot be had, the checker's page says so.
        count: in how many processes what is left is made when all records are read; up to two more begin
            before. 1: all is made in this one. The site is the same [default: about the machine's CPUs].

    Raises:
        UsageError: ``out`` is there, and no site of ours.
        StoreWriteError: the disk refuses.
        WorkerError: a process that helps was ended from outside.
        QvlError: a lock or a committed record is not valid.
    """
    out = out.resolve()
    _refuse_what_is_not_ours(out)
    count = count or processes()
    with _replacing(out) as made, contextlib.ExitStack() as helpers:
        # The checker says nothing of records: it is made while these are read. So are pages of half of them.
        others = [
            helpers.enter_context(beside(lambda: write_checker(made, _render, runtime=runtime), count=count))
        ]
        done: set[str] = set()

        def halfway(part: Site) -> None:
            done.update(cell.cell.checkpoint for cell in part.cells)
            pages = partial(_write_pages, part, made, os.getpid())
            others.append(helpers.enter_context(beside(pages, count=count)))

        site = gather(project, halfway if count > 1 else None)
        with writing(out):
            _write(site, made, base, count, without=done)
            without, *_ = [result() for result in others]
        sizes = _sizes(made)
    return Published(site=site, files=len(sizes), size=sum(sizes), without=without)


@contextlib.contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its place at the end, if nothing is raised."""
    made = out.parent / f".{out.name}-{uuid.uuid4().hex}"
    before = made.with_name(f"{made.name}-before")
    try:
        with writing(out):
            made.mkdir(parents=True)
        yield made
        # Rendering takes a while, in which somebody may have put something there.
        _refuse_what_is_not_ours(out)
        with writing(out):
            if out.exists():
                out.rename(before)
            made.rename(out)
    finally:
        if before.exists() and not out.exists():
            before.rename(out)
        shutil.rmtree(before, ignore_errors=True)
        shutil.rmtree(made, ignore_errors=True)


def _refuse_what_is_not_ours(out: Path) -> None:
    if out.exists() and not (out / MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: is there already, and not a site of ours", mend="name another (--out)")
    if (out / ".git").exists():
        raise UsageError(f"{out}: a checkout of git", mend="name another (--out), and copy it there")


def _render(template: str, /, **values: Any) -> str:
    return rendering.render(template, **values)


def _exam(site: Site) -> tuple[ExamShown, Draw]:
    """What cells' pages show of the exam, and what draws its pictures."""
    if not any(cell.baseline for cell in site.cells):
        return ExamShown(), lambda _: None
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
    shown = questions_shown(site.cells, digest)
    used = {row.question for about in shown.values() for row in about.rows}
    exam = ExamShown(digest=digest, prompts=prompts_of(questions, used), shown=shown)

    def draw(folder: Path) -> None:
        draw_pictures(folder, questions, used)

    return exam, draw


def _write_pages(site: Site, made: Path, parent: int) -> None:
    """Write the pages of a site's cells, and nothing else; no more of them when the parent is gone."""
    exam, _ = _exam(site)
    pages = Shares(site, lay_out(site), exam).pages()
    _put(made, takewhile(lambda _: os.getppid() == parent, pages))


def _write(site: Site, made: Path, base: str, count: int, *, without: Set[str]) -> None:
    """Write all files but the checker's and the pages of some checkpoints."""
    exam, draw = _exam(site)
    matrix = lay_out(site)
    shares = Shares(site, matrix, exam, without=without)

    def first() -> None:
        draw(made / "pictures")
        _put(made, first_files(site, matrix, base=base, schema=schema_text("site")))

    in_shares(len(shares), lambda number: _put(made, shares.files(number)), first, count=count)


def _put(made: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write files; what is lost with the machine is made again, so nobody waits for the disk."""
    known: set[str] = set()
    for path, content in files:
        folder, _, name = path.rpartition("/")
        if folder not in known:
            known.add(folder)
            (made / folder).mkdir(parents=True, exist_ok=True)
        # No Path, and no buffer: there are many files, and each is small.
        descriptor = os.open(f"{made}/{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(descriptor, left) :]
        finally:
            os.close(descriptor)


def _sizes(folder: Path) -> list[int]:
    """The size of every file below a folder."""
    found: list[int] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                found += _sizes(Path(entry))
            else:
                found.append(entry.stat().st_size)
    return found
