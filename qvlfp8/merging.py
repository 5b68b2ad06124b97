"""Stores that several machines filled, merged into one.

Entries are immutable and named by their input digest, so a merge is a copy. Two stores that executed the same
step must have found the same; if one says otherwise, nothing is merged. An ``error`` is the machine's fault:
it says nothing of a checkpoint, and gives way to any record that does.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from qvlfp8 import digest
from qvlfp8.errors import QvlError, UsageError
from qvlfp8.execute import digest_of_what_was_made
from qvlfp8.results import Record, RecordedStage
from qvlfp8.store import LOG, Store, writing

Key = tuple[RecordedStage, str]
"""Stage and input digest."""


class ContradictionError(QvlError):
    """Stores that say different things of the same step."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An executed step in a store, whose files are those that its record names."""

    store: Store
    record: Record

    @property
    def key(self) -> Key:
        """What it is found by."""
        return self.record.stage, self.record.digest

    @property
    def says(self) -> tuple[object, ...]:
        """What two records of one step have to agree in; times and machines differ."""
        record = self.record
        return record.status, tuple(sorted(found.id for found in record.causes)), record.made


@dataclass(kw_only=True)
class Merged:
    """What a merge is going to do."""

    entries: dict[Key, Entry] = field(default_factory=dict)
    rejected: list[str] = field(default_factory=list)
    """Folders that are not taken, each with the reason."""


def merge(stores: Sequence[Store], *, fill: Sequence[Store] = (), into: Store) -> Merged:
    """Choose the entries of a merged store; the caller copies them (:func:`copy`).

    Args:
        stores: what is merged. ``into`` counts as the first of them, if it has entries already.
        fill: what stands in for steps that none of ``stores`` has settled; it may contradict them.

    Raises:
        UsageError: a store that is named has no entry.
        ContradictionError: two of ``stores`` say different things of one step.
    """
    merged = Merged()
    contradictions: list[str] = []
    for store in (into, *stores):
        for entry in _entries(store, merged.rejected, needed=store is not into):
            known = merged.entries.get(entry.key)
            if known is None or known.record.status == "error":
                merged.entries[entry.key] = entry
            elif entry.record.status != "error" and entry.says != known.says:
                contradictions.append(_contradiction(known, entry))
    if contradictions:
        raise ContradictionError(
            "\n".join(["records of one step contradict each other:", *contradictions]),
            mend="leave one of the stores out, or name it with --fill",
        )
    for store in fill:
        for entry in _entries(store, merged.rejected, needed=True):
            known = merged.entries.get(entry.key)
            if known is None or (known.record.status == "error" and entry.record.status != "error"):
                merged.entries[entry.key] = entry
    return merged


def copy(entries: Mapping[Key, Entry], into: Store) -> int:
    """Copy what ``into`` has not got yet; it is locked by the caller. The number of entries that were copied.

    Raises:
        StoreWriteError: the disk refuses.
    """
    copied = 0
    for (stage, _), entry in entries.items():
        if entry.store is into:
            continue
        made = into.scratch(stage)
        with writing(made):
            shutil.copytree(entry.store.entry(*entry.key), made, dirs_exist_ok=True)
        into.commit(made, entry.record)
        copied += 1
    return copied


def _entries(store: Store, rejected: list[str], *, needed: bool) -> Iterator[Entry]:
    """The entries of a store that are whole; why others are not goes to ``rejected``."""
    found = False
    for stage in get_args(RecordedStage):
        for folder in sorted(_folders(store.root / "steps" / stage)):
            found = True
            record = store.record(stage, folder.name)
            reason = _fault(folder, record)
            if record is None or reason:
                rejected.append(f"{folder}: {reason}")
            else:
                yield Entry(store=store, record=record)
    if needed and not found:
        raise UsageError(f"{store.root}: no record in it", mend="name a store, the folder that has `steps`")


def _folders(path: Path) -> Iterable[Path]:
    return (folder for folder in path.iterdir() if folder.is_dir()) if path.is_dir() else ()


def _fault(folder: Path, record: Record | None) -> str | None:
    """Why an entry is not taken, or None."""
    if record is None:
        return "no record, or one of another step"
    if any(path.is_symlink() or not (path.is_file() or path.is_dir()) for path in folder.rglob("*")):
        return "it holds something that is neither file nor folder"
    log = folder / LOG
    if record.log_digest and log.exists() and digest.of_file(log) != record.log_digest:
        return f"{LOG} is not the one that its record names"
    made = digest_of_what_was_made(folder)
    if record.made and made is not None and made != record.made:
        return "what it made is not what its record names"
    return None


def _contradiction(one: Entry, other: Entry) -> str:
    lines = [f"  {one.record.stage} of {one.record.subject}"]
    for entry in (one, other):
        record = entry.record
        made = f", made {record.made[:12]}" if record.made else ""
        causes = ", ".join(sorted(found.id for found in record.causes))
        lines.append(f"    {entry.store.root}: {record.status}{f' ({causes})' if causes else ''}{made}")
    return "\n".join(lines)
