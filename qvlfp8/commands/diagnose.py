"""``qvlfp8 diagnose``: which finding a log of vLLM shows. It starts at once and asks for no project."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Any, BinaryIO

from qvlfp8 import machine_faults
from qvlfp8.commands.findings import json_text, kind_json, show_kind
from qvlfp8.diagnose import Diagnosis, Line, Named, diagnose
from qvlfp8.errors import EXIT_UNEXPECTED, QvlError

MOST_BYTES = 20_000_000
"""What is read of a log: its end."""


def show_diagnosis(log: str, *, as_json: bool) -> int:
    """Print which finding is behind a log, ``-`` for standard input; returns the exit code.

    Raises:
        QvlError: the log cannot be read.
    """
    text, whole = _read(log)
    diagnosis = diagnose(text)
    if as_json:
        print(json_text(_diagnosis_json(diagnosis, whole=whole)))
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
        show_kind(named.id)
        _print_lines(named.lines)
        if named.total > len(named.lines):
            print(f"  and {named.total - len(named.lines)} more lines")
    if diagnosis.known:
        return
    besides = " but what is only noted above" if diagnosis.findings else ""
    print(f"unknown: no finding{besides} is known by what this log says")
    if diagnosis.fault:
        known = machine_faults.FAULTS[diagnosis.fault]
        print(f"  a fault of the machine, not of the checkpoint: {diagnosis.fault}: {known.cause}")
        print(f"  mend: {known.mend}")
    elif diagnosis.machine:
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
        "fault": _fault_json(diagnosis.fault),
        "decisive": _lines_json(diagnosis.decisive),
    }


def _fault_json(kind: machine_faults.Kind | None) -> dict[str, str] | None:
    if kind is None:
        return None
    known = machine_faults.FAULTS[kind]
    return {"kind": kind, "cause": known.cause, "mend": known.mend}


def _named_json(named: Named) -> dict[str, Any]:
    return {**kind_json(named.id), "lines": _lines_json(named.lines), "total": named.total}


def _lines_json(lines: tuple[Line, ...]) -> list[dict[str, Any]]:
    return [{"line": line.number, "text": line.text} for line in lines]
