"""``qvlfp8 findings`` and ``qvlfp8 diagnose``: what a finding means, and which one a log shows.

What needs records is imported where it is used: a diagnosis starts at once and asks for no project.
"""

from __future__ import annotations

import difflib
import json
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from qvlfp8.diagnose import Diagnosis, Line, Named, diagnose
from qvlfp8.errors import EXIT_UNEXPECTED, QvlError, UsageError
from qvlfp8.finding_kinds import KINDS
from qvlfp8.signs import signs_of

if TYPE_CHECKING:
    from qvlfp8.environments import ServeEnvironment
    from qvlfp8.project import Project
    from qvlfp8.results import Record

MOST_BYTES = 20_000_000
"""What is read of a log: its end."""


# --- findings -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What the records here say of one finding."""

    read: int
    """Records that were looked at."""
    shown: int
    """Those that show it."""
    vllm: Mapping[str, Mapping[str, int]]
    """Version -> stage -> records that show it."""
    checkpoints: int
    """Those of the stages that look at a checkpoint alone, whatever serves it."""
    without: tuple[str, ...]
    """Versions that there are records of, none of which shows it."""

    def as_json(self) -> dict[str, Any]:
        """It, for ``--json``."""
        return {
            "read": self.read,
            "shown": self.shown,
            "vllm": self.vllm,
            "checkpoints": self.checkpoints,
            "without": list(self.without),
        }


def show_findings(matrix: Path, store: Path | None, name: str | None, *, as_json: bool) -> None:
    """Print every finding, or one of them and where the records here show it.

    Raises:
        UsageError: there is no such finding.
        QvlError: matrix.yaml, a lock or a committed record is there and not valid.
    """
    if name is None:
        _show_list(as_json=as_json)
        return
    if name not in KINDS:
        raise UsageError(f"no finding {name!r}", mend=_nearest(name))
    shown = _shown(matrix, store, name)
    if as_json:
        records = shown.as_json() if shown else None
        print(_dump({"version": 1, **_kind_json(name), "records": records}))
        return
    kind = KINDS[name]
    print(f"{name} ({kind.severity})")
    _show_kind(name)
    if shown is None:
        print(f"  records  none: there is no {matrix} here")
        return
    if not shown.shown:
        print(f"  records  no record here shows it ({shown.read} current ones were read)")
        return
    print(f"  records  {shown.shown} of {shown.read} current ones show it (results/ and this machine's)")
    if shown.checkpoints:
        print(f"           whatever vLLM serves it: {shown.checkpoints}")
    for version, stages in shown.vllm.items():
        print(f"           vLLM {version}: {', '.join(f'{stage} {n}' for stage, n in stages.items())}")
    if shown.vllm and shown.without:
        print(f"           not in the records of vLLM {', '.join(shown.without)}")


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name.lower(), KINDS, n=3, cutoff=0.5)
    listed = "`qvlfp8 findings` lists them all"
    return f"did you mean {' or '.join(close)}? {listed}" if close else listed


def _show_list(*, as_json: bool) -> None:
    if as_json:
        print(_dump({"version": 1, "findings": [_kind_json(name) for name in KINDS]}))
        return
    width = max(map(len, KINDS))
    for name, kind in KINDS.items():
        print(f"{name:{width}}  {kind.severity:5}  {kind.meaning}")


def _show_kind(name: str) -> None:
    kind = KINDS[name]
    print(f"  meaning  {kind.meaning}")
    print(f"  mend     {kind.mend}")
    if command := signs_of(name).command:
        print(f"  command  {command}")
    for link in signs_of(name).links:
        print(f"  link     {link}")


def _kind_json(name: str) -> dict[str, Any]:
    kind = KINDS[name]
    return {
        "id": name,
        "severity": kind.severity,
        "meaning": kind.meaning,
        "mend": kind.mend,
        "command": signs_of(name).command or None,
        "links": list(signs_of(name).links),
        "signatures": list(signs_of(name).signatures),
    }


def _dump(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)


def _shown(matrix: Path, store: Path | None, name: str) -> Shown | None:
    """What the records say; None without a project."""
    if store is None and not matrix.exists():
        return None
    from packaging.version import Version

    from qvlfp8.project import Project

    project = Project.open(matrix, store)
    versions = {_named_version(e): Version(e.vllm) for e in (cell.serve for cell in project.matrix.cells)}
    read: set[tuple[str, ...]] = set()
    seen_of: set[str] = set()
    showing: dict[tuple[str | None, str], set[tuple[str, ...]]] = {}
    for version, stage, key, found in _observed(project):
        read.add(key)
        if version is not None:
            seen_of.add(version)
        if name in found:
            showing.setdefault((version, stage), set()).add(key)
    order = sorted(seen_of, key=lambda version: (versions[version], version))
    by_version = {
        version: {stage: len(keys) for (of, stage), keys in showing.items() if of == version}
        for version in order
    }
    return Shown(
        read=len(read),
        shown=len({key for keys in showing.values() for key in keys}),
        vllm={version: stages for version, stages in by_version.items() if stages},
        checkpoints=len({key for (of, _), keys in showing.items() if of is None for key in keys}),
        without=tuple(version for version in order if not by_version[version]),
    )


def _named_version(serve: ServeEnvironment) -> str:
    """As the table's columns are called: ``0.32.0-cpu``, ``0.10.2-unpinned``."""
    return serve.id.removeprefix("vllm-")


Observed = tuple[str | None, str, tuple[str, ...], set[str]]
"""vLLM (None: the checkpoint alone), stage, the record (or lock) that says it, the findings."""


def _observed(project: Project) -> Iterator[Observed]:
    """Every stage of every cell that a current record answers: here, and on each GPU of ``results/``."""
    from qvlfp8.cells import OF_CHECKPOINT
    from qvlfp8.report.table import view_cells
    from qvlfp8.survey import survey

    cells = project.cells(everything=True)
    plan = project.plan(cells, project.locks(cells))
    lookups = [project.lookup, *(project.evidence.at(name).record for name in project.evidence.accelerators)]
    for lookup in lookups:
        seen = survey(plan, lookup)
        for view in view_cells(plan, seen, project.matrix.bounds):
            version = _named_version(view.cell.serve)
            for stage in view.stages:
                record = seen[stage.digest].record if stage.digest else None
                if record is None or stage.status not in {"pass", "fail"}:
                    continue
                key = (stage.digest, record.host.accelerator or "")
                found = {*stage.findings, *_notes(stage.stage, record)}
                yield None if stage.stage in OF_CHECKPOINT else version, stage.stage, key, found
    for cell in cells:
        for step in plan.unresolved(cell):
            found = {"does-not-resolve"}
            if step.environment == cell.serve.id:
                yield _named_version(cell.serve), "resolve", ("lock", step.digest), found
            else:
                yield None, "resolve", ("lock", step.digest), found


def _notes(stage: str, record: Record) -> Iterator[str]:
    """Findings that fail nothing, which the table does not show."""
    from qvlfp8.scoring import Bounds, score

    if record.stage != "generate":
        yield from (finding.id for finding in record.findings)
    elif stage == "load" and record.status == "pass":
        yield from (finding.id for finding in score(record.measured, None, Bounds())["load"].findings)


# --- diagnose -----------------------------------------------------------------------------------


def show_diagnosis(log: str, *, as_json: bool) -> int:
    """Print which finding is behind a log, ``-`` for standard input; returns the exit code.

    Raises:
        QvlError: the log cannot be read.
    """
    text, whole = _read(log)
    diagnosis = diagnose(text)
    if as_json:
        print(_dump(_diagnosis_json(diagnosis, whole=whole)))
    else:
        _print_diagnosis(diagnosis, whole=whole)
    return 0 if diagnosis.known else EXIT_UNEXPECTED


def _read(log: str) -> tuple[str, bool]:
    """The end of a log, and whether that is all of it."""
    try:
        if log == "-":
            content, whole = _end(sys.stdin.buffer)
        else:
            with Path(log).open("rb") as stream:
                content, whole = _end(stream)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise QvlError(
            f"{log}: cannot be read: {reason.lower()}",
            mend="name a file with vLLM's log or traceback, or pipe it in and name -",
        ) from None
    return content.decode("utf-8", errors="replace"), whole


def _end(stream: BinaryIO) -> tuple[bytes, bool]:
    """The last :data:`MOST_BYTES` of a stream, in bounded memory, and whether that is all of it."""
    whole = True
    status = os.fstat(stream.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_size - stream.tell() > MOST_BYTES:
        stream.seek(-MOST_BYTES, os.SEEK_END)
        return stream.read(MOST_BYTES), False
    kept = bytearray()
    while block := stream.read(1 << 20):
        kept += block
        if len(kept) > MOST_BYTES + (8 << 20):
            del kept[:-MOST_BYTES]
            whole = False
    whole = whole and len(kept) <= MOST_BYTES
    return bytes(kept[-MOST_BYTES:]), whole


_CUT = f"only the last {MOST_BYTES // 1_000_000} MB of the log were read; lines are counted from there"


def _print_diagnosis(diagnosis: Diagnosis, *, whole: bool) -> None:
    if not whole:
        print(_CUT)
    if diagnosis.vllm:
        print(f"vLLM {diagnosis.vllm}, by the log")
    for named in diagnosis.findings:
        print(f"{named.id} ({named.severity})")
        _show_kind(named.id)
        _print_lines(named.lines)
        if named.total > len(named.lines):
            print(f"  and {named.total - len(named.lines)} more lines")
    if diagnosis.known:
        return
    besides = " but what is only noted above" if diagnosis.findings else ""
    print(f"unknown: no finding{besides} is known by what this log says")
    if diagnosis.machine:
        print("  it speaks of the machine (memory, driver, packages, network), not of the checkpoint")
    if diagnosis.decisive:
        print("  the decisive lines:")
        _print_lines(diagnosis.decisive)
    else:
        print("  there is no exception and no ERROR line in it")


def _print_lines(lines: tuple[Line, ...]) -> None:
    for line in lines:
        print(f"  {f'line {line.number}':8} {line.text}")


def _diagnosis_json(diagnosis: Diagnosis, *, whole: bool) -> dict[str, Any]:
    return {
        "version": 1,
        "whole_log_read": whole,
        "vllm": diagnosis.vllm,
        "known": diagnosis.known,
        "findings": [_named_json(named) for named in diagnosis.findings],
        "machine": diagnosis.machine,
        "decisive": _lines_json(diagnosis.decisive),
    }


def _named_json(named: Named) -> dict[str, Any]:
    return {**_kind_json(named.id), "lines": _lines_json(named.lines), "total": named.total}


def _lines_json(lines: tuple[Line, ...]) -> list[dict[str, Any]]:
    return [{"line": line.number, "text": line.text} for line in lines]
