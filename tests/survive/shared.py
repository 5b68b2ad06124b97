"""What is finished on a cluster: the entries of its shared store, which outlives drivers and nodes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast, get_args

from pydantic import ValidationError

from qvlfp8 import digest
from qvlfp8.cluster.shared import ENTRY, SharedStore
from qvlfp8.errors import SharedStoreError
from qvlfp8.results import Record, RecordedStage
from qvlfp8.store import RECORD
from tests.survive import kept
from tests.survive.kept import Entry, Key

FOLDER = "shared"
"""It lies in the driver's store, where a watch of that sees it."""


def url(store: Path) -> str:
    """The shared store of a driver's."""
    return f"file://{store / FOLDER}"


def entries(store: Path) -> tuple[dict[Key, Entry], list[str]]:
    """Every entry by its step, and what is wrong with others; an interrupted upload is no entry."""
    shared, found, broken = SharedStore(url(store)), {}, []
    for place in sorted((store / FOLDER).glob(f"steps/*/*/{ENTRY}")):
        stage, name = place.parts[-3:-1]
        entry = shared.entry(cast("RecordedStage", stage), name) if stage in get_args(RecordedStage) else None
        try:
            path = place.parent / (entry.folder if entry else "-") / RECORD
            record = Record.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            broken.append(f"{stage} {name[:12]}: its entry in the shared store has no whole record")
        else:
            found[stage, name] = Entry(record=record, content=digest.of_file(path))
    return found, broken


def not_whole(store: Path, found: Mapping[Key, Entry]) -> Iterator[str]:
    """The entries of which a node would not get what their records name."""
    shared = SharedStore(url(store))
    for (stage, name), entry in found.items():
        with tempfile.TemporaryDirectory(prefix="qvlfp8-survive-fetched-") as fetched:
            folder = Path(fetched) / "steps" / stage / name
            try:
                shared.get(cast("RecordedStage", stage), name, folder)
            except SharedStoreError as error:
                yield f"{stage} {entry.record.subject}: {error.problem}"
            else:
                yield from kept.not_whole(Path(fetched), {(stage, name): entry})
