"""What a store holds, and how it differs from what an undisturbed run left: losses and doublings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from qvlfp8 import digest
from qvlfp8.execute import digest_of_what_was_made
from qvlfp8.results import Record, RecordedStage
from qvlfp8.store import RECORD, Store

Key = tuple[str, str]
"""Stage and digest of a step."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One step's entry as it is on disk: the record, the digest of its bytes, and what is wrong with it."""

    record: Record
    content: str

    @property
    def final(self) -> bool:
        """Whether nothing is to be executed again."""
        return self.record.status != "error"


def entries(root: Path) -> tuple[dict[Key, Entry], list[str]]:
    """Every entry of a store by its step, and what in ``steps/`` is no entry."""
    store, found, broken = Store(root), {}, []
    for folder in sorted(root.glob("steps/*/*")):
        stage, name = folder.parts[-2:]
        record = (
            store.record(cast("RecordedStage", stage), name) if stage in get_args(RecordedStage) else None
        )
        if record is None:
            broken.append(f"{stage} {name[:12]}: its entry has no whole record")
        else:
            found[stage, name] = Entry(record=record, content=digest.of_file(folder / RECORD))
    return found, broken


def not_whole(root: Path, found: Mapping[Key, Entry]) -> Iterator[str]:
    """The entries whose files are not those that their record names."""
    for (stage, name), entry in found.items():
        folder, record = root / "steps" / stage / name, entry.record
        if digest_of_what_was_made(folder) != record.made:
            yield f"{stage} {record.subject}: what it made is not what its record says"
        if record.log is not None and not _is_log(folder / record.log, record.log_digest):
            yield f"{stage} {record.subject}: its log is not the one that its record names"


def _is_log(path: Path, named: str | None) -> bool:
    """Whether a file is there and has the digest that its record names."""
    return path.is_file() and digest.of_file(path) == named


def but_builds(found: Mapping[Key, Entry]) -> dict[Key, Entry]:
    """Of a cluster's entries those that do not depend on the node: each builds its own environments."""
    return {key: entry for key, entry in found.items() if key[0] != "build"}


def finished(found: Mapping[Key, Entry]) -> set[Key]:
    """The steps that nothing has to do again: no error, and what they read is there and is none."""
    made = {
        name: entry.record.made if entry.final else None
        for (stage, name), entry in found.items()
        if stage != "build"
    }

    def is_stale(record: Record) -> bool:
        read = [need for need in record.inputs["needs"] if need in made]
        return any(made[need] is None or record.read.get(need) != made[need] for need in read)

    return {key for key, entry in found.items() if entry.final and not is_stale(entry.record)}


def gone(before: Mapping[Key, Entry], now: Mapping[Key, Entry]) -> Iterator[str]:
    """What was finished and is no longer there."""
    for key in sorted(finished(before) - now.keys()):
        yield f"{key[0]} {before[key].record.subject}: its record was there, and is gone"


def replaced(before: Mapping[Key, Entry], now: Mapping[Key, Entry]) -> Iterator[str]:
    """What was finished and has another record now: it was executed again."""
    for key in sorted(finished(before) & now.keys()):
        if now[key].content != before[key].content:
            yield f"{key[0]} {before[key].record.subject}: it was finished, and has another record now"


def differing(wanted: Mapping[Key, Entry], found: Mapping[Key, Entry]) -> Iterator[str]:
    """How the records of a store differ from those of an undisturbed run, times left out."""
    for stage, name in sorted(wanted.keys() - found.keys()):
        yield f"{stage} {wanted[stage, name].record.subject}: it has no record"
    for stage, name in sorted(found.keys() - wanted.keys()):
        yield f"{stage} {found[stage, name].record.subject}: an undisturbed run has no such record"
    for key in sorted(wanted.keys() & found.keys()):
        ours, theirs = said(found[key].record), said(wanted[key].record)
        for field in theirs:
            if ours[field] != theirs[field]:
                yield f"{key[0]} {wanted[key].record.subject}: another {field}: {ours[field]!r:.200}"


def said(record: Record) -> dict[str, Any]:
    """What a record says, less what measures time, names its log's bytes, or says when and where it was."""
    content: dict[str, Any] = record.model_dump(mode="json")
    for field in ("started", "seconds", "log_digest", "attempts"):
        del content[field]
    for field in ("node", "ray"):
        content["environment"].pop(field, None)
    return {field: _without_times(value) for field, value in content.items()}


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(held) for key, held in value.items() if "seconds" not in key}
    return value
