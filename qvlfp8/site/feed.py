"""Changes: what was executed when, day by day and vLLM by vLLM, from the records' own dates. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from qvlfp8.cells import GENERATED
from qvlfp8.observed import named_version
from qvlfp8.results import Record
from qvlfp8.site.data import Site, SiteCell
from qvlfp8.site.names import slug
from qvlfp8.site.outcome import OUTCOMES, WORDS

__all__ = ["Entry", "entries"]

_MOST = 60
"""Entries of a feed: readers keep older ones themselves."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What was executed on one day in one vLLM on one kind of machine."""

    id: str
    title: str
    updated: str
    """The start of the latest of them, in UTC."""
    cells: tuple[SiteCell, ...]


def entries(site: Site) -> tuple[Entry, ...]:
    """The latest first. A cell is told of on the day on which its furthest record was executed."""
    groups: dict[tuple[str, str, str], list[tuple[datetime, SiteCell]]] = {}
    for cell in site.cells:
        record = _latest(cell)
        when = _moment(record.started) if record else None
        if record is None or when is None:
            continue
        key = (when.date().isoformat(), named_version(cell.cell.serve), record.host.accelerator or "CPU")
        groups.setdefault(key, []).append((when, cell))
    made = [_entry(*key, found) for key, found in groups.items()]
    return tuple(sorted(made, key=lambda entry: (entry.updated, entry.id), reverse=True)[:_MOST])


def _latest(cell: SiteCell) -> Record | None:
    """The record of a cell's run, else of its preflight; what concerns a checkpoint alone is many cells'."""
    for stage in (*GENERATED[:1], "preflight"):
        if stage in cell.records:
            return cell.records[stage]
    return None


def _moment(started: str) -> datetime | None:
    """When that was, in UTC; None if a record's date is none."""
    try:
        found = datetime.fromisoformat(started)
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)


def _entry(day: str, version: str, machine: str, found: Sequence[tuple[datetime, SiteCell]]) -> Entry:
    counts = Counter(cell.outcome for _, cell in found)
    told = ", ".join(f"{counts[one]} {WORDS[one]}" for one in OUTCOMES if counts[one])
    return Entry(
        id=f"tag:qvlfp8,{day}:vllm-{version}/{slug(machine)}",
        title=f"vLLM {version} on {machine}: {told}",
        updated=max(when for when, _ in found).strftime("%Y-%m-%dT%H:%M:%SZ"),
        cells=tuple(cell for _, cell in found),
    )
