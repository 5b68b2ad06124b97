"""Committed records of steps that need no GPU, one line each, in ``results/``.

``loaders/SERVE.jsonl`` has what vLLM's own loader said (preflight), ``checkpoints/QUANTIZE.jsonl`` what
quantizing and inspecting did; lines are sorted, and one whose meaning has not changed keeps its bytes. A line
is found by its evidence key (see :mod:`qvlfp8.plan`). What it says of itself is checked when it is read: its
sum, its key, and the verdict, which today's judgement has to draw from the measured values again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from qvlfp8 import digest
from qvlfp8.engine import Exit
from qvlfp8.errors import FileFormatError
from qvlfp8.judge import Verdict, judge
from qvlfp8.plan import OWN_SOURCE, SHORT, Step, repeat_of
from qvlfp8.results import Digest, Finding, Host, Record, RecordedStage
from qvlfp8.yamlfile import Strict

KEPT: tuple[RecordedStage, ...] = ("quantize", "inspect", "preflight")
"""The stages whose records are kept as lines."""

_KEEP_AGAIN = "restore the file, or remove the line: `qvlfp8 results keep` writes what a store has executed"


class Line(Strict):
    """One record, without what is another each time: logs, needs, the store's own digests."""

    stage: Literal["quantize", "inspect", "preflight"]
    subject: str
    status: Literal["pass", "fail"]
    findings: tuple[str, ...] = ()
    """Ids, for those who read the file; the rest follows from what was measured."""
    evidence: Digest
    asked: dict[str, str]
    """As :attr:`qvlfp8.plan.Step.asked` was then."""
    checkpoint: Digest | None = None
    """Digest of the files that quantizing made, or that the others read."""
    measured: dict[str, Any] = Field(default_factory=dict)
    refused: tuple[Finding, ...] = ()
    """The findings of a worker that refused, so that nothing was measured."""
    environment: dict[str, Any]
    host: Host
    started: str
    seconds: float
    qvlfp8: str
    sum: str
    """The first digits of the digest of everything else in the line."""


class KeptRecords:
    """The lines below ``results/``, which need not be there."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def record(self, step: Step) -> Record | None:
        """The record that stands for a step.

        Raises:
            FileFormatError: its line contradicts itself or its key, or was edited.
        """
        if not (lines := self._by_key):
            return None
        found = next((lines[key] for key in step.evidence if key in lines), None)
        if found is None:
            return None
        where, raw = found
        line = _parsed(where, raw)
        verdict = _checked(where, line, step)
        if verdict.status == "error" or not self._is_of_the_kept_checkpoint(line):
            return None
        return _as_record(line, verdict, step)

    def older(self, step: Step) -> Record | None:
        """The record of that stage and subject that no longer stands for it; None if there is none."""
        found = self._by_subject.get((step.stage, step.subject))
        if found is None:
            return None
        line = _parsed(*found)
        if line.evidence in step.evidence and self._is_of_the_kept_checkpoint(line):
            return None
        return _as_record(line, _judged(found[0], line), step)

    def _is_of_the_kept_checkpoint(self, line: Line) -> bool:
        """Whether the checkpoint that it read has the bytes that the line of its making names."""
        if line.stage == "quantize":
            return True
        made = self._by_subject.get(("quantize", "/".join(line.subject.split("/")[:3])))
        return made is None or made[1].get("checkpoint") == line.checkpoint

    def lines(self) -> Iterator[tuple[str, Line]]:
        """Every line, and the file and number that name it.

        Raises:
            FileFormatError: one is not valid.
        """
        for where, raw in self._raw:
            yield where, _parsed(where, raw)

    def records(self) -> Iterator[Record]:
        """Every line as a record, with the verdict of today's judgement.

        Raises:
            FileFormatError: one is not valid.
        """
        for where, line in self.lines():
            verdict = _judged(where, line)
            if verdict.status != "error":
                yield _as_record(line, verdict)

    @cached_property
    def _raw(self) -> list[tuple[str, dict[str, Any]]]:
        found: list[tuple[str, dict[str, Any]]] = []
        for path in sorted([*self.root.glob("loaders/*.jsonl"), *self.root.glob("checkpoints/*.jsonl")]):
            try:
                lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise FileFormatError(f"{path}: cannot be read: {error}", mend=_KEEP_AGAIN) from None
            for number, text in enumerate(lines, start=1):
                where = f"{path}:{number}"
                try:
                    raw = json.loads(text)
                except (ValueError, RecursionError) as error:
                    raise FileFormatError(f"{where}: not a record: {error}", mend=_KEEP_AGAIN) from None
                if not isinstance(raw, dict):
                    raise FileFormatError(f"{where}: not a record", mend=_KEEP_AGAIN)
                found.append((where, raw))
        return _unique(self.root, found)

    @cached_property
    def _by_key(self) -> dict[str, tuple[str, dict[str, Any]]]:
        return {str(raw.get("evidence")): (where, raw) for where, raw in self._raw}

    @cached_property
    def _by_subject(self) -> dict[tuple[str, str], tuple[str, dict[str, Any]]]:
        return {(str(raw.get("stage")), str(raw.get("subject"))): (where, raw) for where, raw in self._raw}


def _unique(root: Path, found: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """The lines, once it is sure that each stands in its own file and speaks of what no other does."""
    told: dict[tuple[str, str], str] = {}
    for where, raw in found:
        stage, subject = str(raw.get("stage")), str(raw.get("subject"))
        if where.rpartition(":")[0] != str(root / _file_of(stage, subject)):
            raise FileFormatError(f"{where}: does not belong into this file", mend=_KEEP_AGAIN)
        if (other := told.setdefault((stage, subject), where)) != where:
            raise FileFormatError(f"{where}: speaks of what {other} does", mend=_KEEP_AGAIN)
    return found


def _sum(fields: Mapping[str, Any]) -> str:
    return digest.of_json(fields)[:SHORT]


def _parsed(where: str, raw: Mapping[str, Any]) -> Line:
    try:
        line = Line.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise FileFormatError(f"{where}: not a record: {field}: {first['msg']}", mend=_KEEP_AGAIN) from None
    if _sum({name: value for name, value in raw.items() if name != "sum"}) != line.sum:
        raise FileFormatError(f"{where}: edited by hand: its sum is another", mend=_KEEP_AGAIN)
    return line


def _checked(where: str, line: Line, step: Step) -> Verdict:
    """What today's judgement says of the line, once it has been held against the step."""
    if (line.stage, line.subject) != (step.stage, step.subject):
        raise FileFormatError(f"{where}: its subject is not what its evidence key says", mend=_KEEP_AGAIN)
    if _meant(line.asked) != _meant(step.asked):
        raise FileFormatError(f"{where}: what was asked is not what its evidence key says", mend=_KEEP_AGAIN)
    verdict = _judged(where, line)
    said = (line.status, line.findings)
    today = (verdict.status, tuple(finding.id for finding in verdict.findings))
    if said != today and line.asked.get("judgement") == step.asked.get("judgement"):
        raise FileFormatError(
            f"{where}: it says {_words(*said)}; what it measured is {_words(*today)}", mend=_KEEP_AGAIN
        )
    return verdict


def _meant(asked: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in asked.items() if not name.endswith(OWN_SOURCE)}


def _words(status: str, findings: tuple[str, ...]) -> str:
    return f"{status} ({', '.join(findings)})" if findings else status


def _judged(where: str, line: Line) -> Verdict:
    if line.refused:
        return Verdict(status="fail", findings=line.refused)
    try:
        return judge(line.stage, {"outcome": "done", "measured": line.measured}, Exit(code=0), 0.0)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileFormatError(
            f"{where}: what it measured lacks something, or is of another type: {error!r}", mend=_KEEP_AGAIN
        ) from None


def _as_record(line: Line, verdict: Verdict, step: Step | None = None) -> Record:
    """The line as a record; like every record from elsewhere, it has read nothing here."""
    inputs = {"asked": line.asked, **({"params": dict(step.params)} if step else {})}
    return Record(
        stage=line.stage,
        subject=line.subject,
        digest=line.evidence,
        status=verdict.status,
        findings=verdict.findings,
        inputs=inputs,
        environment=line.environment,
        host=line.host,
        started=line.started,
        seconds=line.seconds,
        measured=line.measured,
        made=line.checkpoint if line.stage == "quantize" else None,
        evidence=line.evidence,
        repeat=repeat_of(line.stage, line.subject),
        qvlfp8=line.qvlfp8,
    )


def line_of(record: Record, step: Step) -> Line:
    """The line that keeps a record of the step, executed here."""
    read = next(iter(record.read.values()), None)
    fields: dict[str, Any] = {
        "stage": record.stage,
        "subject": record.subject,
        "status": record.status,
        "findings": [finding.id for finding in record.findings],
        "evidence": step.evidence[0],
        "asked": dict(step.asked),
        "checkpoint": record.made if record.stage == "quantize" else read,
        "measured": record.measured,
        "refused": [] if record.measured else [finding.model_dump() for finding in record.findings],
        "environment": _environment(record.environment),
        "host": record.host.model_dump() | {"system": record.host.system.split()[0]},
        "started": record.started,
        "seconds": record.seconds,
        "qvlfp8": record.qvlfp8,
    }
    told = {name: value for name, value in fields.items() if value not in (None, [], {})}
    plain = json.loads(_without_places(json.dumps(told, ensure_ascii=False)))
    plain["host"] = {name: value for name, value in plain["host"].items() if value is not None}
    return Line.model_validate({**plain, "sum": _sum(plain)})


def to_text(line: Line) -> str:
    """The line as it stands in its file, newline and all."""
    fields = line.model_dump(mode="json", exclude_unset=True)
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")) + "\n"


def file_of(line: Line) -> str:
    """The file, below ``results/``, that a line stands in: of what served the checkpoint, or made it."""
    return _file_of(line.stage, line.subject)


def _file_of(stage: str, subject: str) -> str:
    parts = subject.split("/")
    return f"loaders/{parts[-1]}.jsonl" if stage == "preflight" else f"checkpoints/{(parts * 2)[1]}.jsonl"


def means_the_same(one: Line, other: Line) -> bool:
    """Whether two lines say the same, whoever executed them and when."""
    volatile = {"environment", "host", "started", "seconds", "qvlfp8", "sum", "measured"}
    plain = one.model_dump(exclude=volatile) == other.model_dump(exclude=volatile)
    timed = "seconds"
    return plain and {k: v for k, v in one.measured.items() if k != timed} == {
        k: v for k, v in other.measured.items() if k != timed
    }


def judged_today(line: Line, step: Step) -> Line:
    """The line with the verdict that today's judgement draws, where it is another; itself where it is not."""
    if line.evidence not in step.evidence:
        return line
    verdict = _judged(line.subject, line)
    ids = tuple(finding.id for finding in verdict.findings)
    if verdict.status == "error" or (verdict.status, ids) == (line.status, line.findings):
        return line
    plain = line.model_dump(mode="json", exclude_unset=True, exclude={"sum"})
    plain |= {"status": verdict.status, "findings": list(ids)}
    plain["asked"] |= {"judgement": step.asked["judgement"]}
    return Line.model_validate({**plain, "sum": _sum(plain)})


_TIMES = {"import_seconds", "prepare_seconds"}


def _environment(told: Mapping[str, Any]) -> dict[str, Any]:
    """Versions and the names of patches; why there is each, its module says."""
    kept = {name: value for name, value in told.items() if name not in _TIMES}
    if "patches" in kept:
        kept["patches"] = [{"id": patch["id"]} for patch in kept["patches"]]
    return kept


_PLACE = re.compile(r"(?:/[\w.+@~-]+)+/(?:steps/\w+/[0-9a-f]{64}|environments/[\w.+-]+)/")


def _without_places(text: str) -> str:
    """Without the folder that the store happened to lie in, and the digests that its own have in it."""
    return _PLACE.sub("", text)
