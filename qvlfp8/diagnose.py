"""Which finding is behind a log of vLLM: text in, diagnosis out. Pure, and quick to import.

The log is untrusted: it is cleaned of what a terminal would obey, and searched with the signatures of
:data:`qvlfp8.signs.SIGNS`, which are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qvlfp8.finding_kinds import KINDS, Severity
from qvlfp8.signs import SIGNS

__all__ = ["Diagnosis", "Line", "Named", "clean", "diagnose"]

MOST_LINES = 5
"""Lines that are shown of one finding, and of errors that no signature knows."""

LONGEST_LINE = 20_000
"""What is looked at of one line."""

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

    @property
    def known(self) -> bool:
        """Whether a finding that fails a checkpoint is named."""
        return any(named.severity == "fail" for named in self.findings)


def diagnose(text: str) -> Diagnosis:
    """Name the findings whose signatures the log matches."""
    lines = clean(text)
    said = [_PREFIX.sub("", line, count=1) for line in lines]
    findings = sorted(_named(said), key=lambda named: (named.severity != "fail", named.lines[0].number))
    diagnosis = Diagnosis(vllm=_version(said), findings=tuple(findings))
    if diagnosis.known:
        return diagnosis
    decisive = _decisive(lines, said)
    return Diagnosis(
        vllm=diagnosis.vllm,
        findings=diagnosis.findings,
        decisive=tuple(_line(said, index) for index in decisive),
        machine=any(_MACHINE.search(said[index]) for index in decisive),
    )


_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]{0,64}[ -/]{0,8}[@-~]|\][^\x07\x1b\n]{0,2000}(?:\x07|\x1b\\)|[@-Z\\^_])?"
)
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def clean(text: str) -> list[str]:
    """The lines of a log without escape sequences, control characters and marks that reorder text."""
    plain = _CONTROL.sub("", _ESCAPES.sub("", text).replace("\t", "    "))
    return [line[:LONGEST_LINE] for line in plain.split("\n")]


_PREFIX = re.compile(
    r"^(?:[\w.-]{1,60} {1,20}\| )?"  # docker compose
    r"(?:\([^()]{0,80}\) )?"  # the process
    r"(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \S{1,20} \S{1,20} \[[^\]]{0,80}\] ?)?"
)
"""What stands before a message of vLLM's."""


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


_EXCEPTION = re.compile(r"(?:\w{1,60}\.){0,8}[A-Z]\w{0,60}(?:Error|Exception|Exit|Interrupt|Failed)(?::|$)")
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
_PASSED_ON = re.compile(
    r"[Ss]ee (?:root cause|stack trace) above|[Ee]ngine ?[Cc]ore (?:proc )?\S{0,20} ?died|SystemExit"
)
"""What one process of vLLM says when another has failed."""

_MACHINE = re.compile(
    r"out of memory|No available memory|Free memory on device|KV cache memory|CUDA (?:error|driver)|NVML"
    r"|NCCL|CUBLAS|CUDNN|No CUDA GPUs|no kernel image|infer device type|No space left"
    r"|[Cc]onnection|couldn't connect|No module named|cannot open shared object|Address already in use"
)


def _decisive(lines: Sequence[str], said: Sequence[str]) -> list[int]:
    """The exception at the root, with what continues it, and the last errors that were logged."""
    roots: list[int] = []
    chained = False
    for index, line in enumerate(said):
        if line.startswith(_CHAINED):
            chained = True
        elif _EXCEPTION.match(line):
            if not chained:
                roots.append(index)
            chained = False
    own = [index for index in roots if not _PASSED_ON.search(said[index])] or roots
    root = own[-1:]
    if root and root[0] + 1 < len(said) and said[root[0] + 1].startswith("  "):
        root.append(root[0] + 1)
    errors = [
        index
        for index, line in enumerate(said)
        if _LOGGED_ERROR.search(lines[index]) and line[:1].strip() and not line.startswith("Traceback")
    ]
    return sorted({*root, *errors[-MOST_LINES:]})


_LOGGED_ERROR = re.compile(r"^[^\n]{0,160}\b(?:ERROR|CRITICAL)\b")
