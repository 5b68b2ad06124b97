"""Which finding is behind a log of vLLM: text in, diagnosis out. Pure, and quick to import.

The log is untrusted: it is cleaned of what a terminal would obey, and searched with the signatures of
:data:`qvlfp8.signs.SIGNS`, which are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qvlfp8 import machine_faults
from qvlfp8.finding_kinds import KINDS, Severity
from qvlfp8.rootcause import LONGEST_LINE, clean, root, without_prefix
from qvlfp8.signs import SIGNS

__all__ = ["LONGEST_LINE", "Diagnosis", "Line", "Named", "clean", "diagnose"]

MOST_LINES = 5
"""Lines that are shown of one finding, and of errors that no signature knows."""

SHOWN = 300
"""Characters that are shown of one line."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the log, counted from 1."""

    number: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Named:
    """A finding that the log reveals: the first lines that do, and how many there are."""

    id: str
    lines: tuple[Line, ...]
    total: int

    @property
    def severity(self) -> Severity:
        """The severity of the finding's kind."""
        return KINDS[self.id].severity


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What a log says."""

    vllm: str | None
    """vLLM's version, if the log names it."""
    findings: tuple[Named, ...]
    """Those that fail a checkpoint come first."""
    decisive: tuple[Line, ...] = ()
    """Where no finding of severity ``fail`` is named: the lines to read."""
    machine: bool = False
    """Whether those speak of memory, driver or connection: not of the checkpoint."""
    fault: machine_faults.Kind | None = None
    """Which of the machine's faults, if it is one that has a name."""

    @property
    def known(self) -> bool:
        """Whether a finding that fails a checkpoint is named."""
        return any(named.severity == "fail" for named in self.findings)


def diagnose(text: str) -> Diagnosis:
    """Name the findings whose signatures the log matches."""
    lines = clean(text)
    said = without_prefix(lines)
    findings = sorted(_named(said), key=lambda named: (named.severity != "fail", named.lines[0].number))
    diagnosis = Diagnosis(vllm=_version(said), findings=tuple(findings))
    if diagnosis.known:
        return diagnosis
    decisive = _decisive(lines, said)
    fault = next((kind for index in decisive if (kind := machine_faults.of_said(said[index]))), None)
    return Diagnosis(
        vllm=diagnosis.vllm,
        findings=diagnosis.findings,
        decisive=tuple(_line(said, index) for index in decisive),
        fault=fault,
        machine=fault is not None or any(_ENVIRONMENT.search(said[index]) for index in decisive),
    )


def _named(said: Sequence[str]) -> Iterator[Named]:
    text = "\n".join(said)
    for kind_id, signs in SIGNS.items():
        ends = {
            match.end() for pattern in signs.signatures for match in re.finditer(pattern, text, re.MULTILINE)
        }
        if ends:
            found = _indices(text, sorted(ends))
            shown = tuple(_line(said, index) for index in found[:MOST_LINES])
            yield Named(id=kind_id, lines=shown, total=len(found))


def _indices(text: str, offsets: Sequence[int]) -> list[int]:
    """The lines in which the last characters of matches stand, each once. ``offsets`` are sorted."""
    found: list[int] = []
    index = before = 0
    for offset in offsets:
        index += text.count("\n", before, offset - 1)
        before = offset - 1
        if not found or found[-1] != index:
            found.append(index)
    return found


def _line(said: Sequence[str], index: int) -> Line:
    text = said[index].strip()
    return Line(number=index + 1, text=text if len(text) <= SHOWN else f"{text[:SHOWN]}…")


_VERSION = re.compile(
    r"(?:\bvLLM (?:API )?server version |LLM engine \(v|\bvllm==|\bvLLM version:? )v?"
    r"(\d{1,4}\.\d{1,4}[\w.+]{0,40})"
)


def _version(said: Sequence[str]) -> str | None:
    return next((match[1].rstrip(".") for line in said if (match := _VERSION.search(line))), None)


_ENVIRONMENT = re.compile(
    r"CUDA (?:error|driver)|NVML|NCCL|CUBLAS|CUDNN|Error in memory profiling"
    r"|[Cc]onnection|couldn't connect|No module named|cannot open shared object|Address already in use"
)
"""Words of a machine or installation, in a line that nobody is judged by; faults that have a name are
:mod:`qvlfp8.machine_faults`."""


def _decisive(lines: Sequence[str], said: Sequence[str]) -> list[int]:
    """The exception at the root, with what continues it, and the last errors that were logged."""
    found = root(said)
    shown = [] if found is None else [found]
    if found is not None and found + 1 < len(said) and said[found + 1].startswith("  "):
        shown.append(found + 1)
    errors = [
        index
        for index, line in enumerate(said)
        if _LOGGED_ERROR.search(lines[index]) and line[:1].strip() and not line.startswith("Traceback")
    ]
    return sorted({*shown, *errors[-MOST_LINES:]})


_LOGGED_ERROR = re.compile(r"^[^\n]{0,160}\b(?:ERROR|CRITICAL)\b")
