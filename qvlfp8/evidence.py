"""Committed records of runs that not every machine can repeat: `results/`, one JSON file each.

A record lies at ``results/ACCELERATOR/SERVE/NAME.json`` and is found by its evidence key (see
:mod:`qvlfp8.plan`), so that a record whose recipe, model, lock, exam or options have changed since is
not found, and never shown as current. What needs no GPU is kept beside them (:mod:`qvlfp8.kept`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from qvlfp8.errors import FileFormatError
from qvlfp8.kept import KEPT, KeptRecords
from qvlfp8.plan import Step
from qvlfp8.results import Record
from qvlfp8.run_measured import first_fault
from qvlfp8.run_records import Reader, Whole
from qvlfp8.seen_files import SeenFiles


class Evidence:
    """The records below a folder, which need not be there.

    A checkpoint's run is held against the unquantized model's on the same machine: where a vLLM was run on
    several accelerators, the one with the most records speaks for it, or the one that is named.
    """

    def __init__(self, root: Path, accelerator: str | None = None, like: Evidence | None = None) -> None:
        """``accelerator``: the one that is named; ``like``: who has read some of the same files."""
        self.root = root
        self._accelerator = accelerator
        self._seen: SeenFiles[Whole] = like._seen if like else SeenFiles(Reader())
        self._keys: SeenFiles[str | None] = like._keys if like else SeenFiles(_key_of)
        self.kept = KeptRecords(root)

    @property
    def accelerators(self) -> tuple[str, ...]:
        """The folders of accelerators that there are records of."""
        return tuple(sorted({path.parts[-3] for path in self._paths()}))

    @property
    def has_runs(self) -> bool:
        """Whether there is a record that may stand for a run of vLLM."""
        return bool(self._by_key)

    def at(self, accelerator: str) -> Evidence:
        """The records of one accelerator alone."""
        return Evidence(self.root, accelerator, self)

    def record(self, step: Step) -> Record | None:
        """The record that stands for a step which was executed elsewhere.

        Raises:
            FileFormatError: its file is no record, or says in one place what it denies in another.
        """
        if step.stage in KEPT:
            return self.kept.record(step)
        if not (paths := self._by_key):
            return None
        path = next((paths[key] for key in step.evidence if key in paths), None)
        if path is None:
            return None
        return _held(path, self._read(path), step)

    def older(self, step: Step) -> Record | None:
        """The newest record of that stage and subject that no longer stands for it; None if there is none.

        Raises:
            FileFormatError: its file is no record.
        """
        if step.stage in KEPT:
            return self.kept.older(step)
        others = [record for record in self.of(step.subject) if record.stage == step.stage]
        if any(record.evidence in step.evidence for record in others):
            return None
        return max(others, key=lambda record: record.started, default=None)

    def of(self, subject: str) -> Iterator[Record]:
        """The records where those of a subject belong, of every accelerator.

        Raises:
            FileFormatError: a file is no record.
        """
        *names, serve = subject.split("/")
        for path in self._by_name.get((serve, f"{'~'.join(names)}.json"), ()):
            yield self._read(path)

    def records(self, steps: Iterable[Step] = ()) -> Iterator[tuple[Path, Record]]:
        """Every file and its record, in the order of their names.

        Args:
            steps: those that records may stand for; a record with the key of one is held against it.

        Raises:
            FileFormatError: a file is no record, or says in one place what it denies in another.
        """
        asked = {key: step for step in steps if step.stage not in KEPT for key in step.evidence}
        for path in self._paths():
            record = self._read(path)
            step = asked.get(record.evidence or "")
            yield path, _held(path, record, step) if step else record

    def _paths(self) -> list[Path]:
        return sorted(self.root.glob("*/*/*.json"))

    def _speaking(self) -> Iterator[Path]:
        """The records that are found by key: of each vLLM (and variant) those of one accelerator."""
        runs: dict[str, dict[str, list[Path]]] = {}
        for path in self._paths():
            accelerator, serve, name = path.parts[-3:]
            if self._accelerator in {None, accelerator} and name != "truth.json":
                runs.setdefault(serve, {}).setdefault(accelerator, []).append(path)
        for folders in runs.values():
            yield from max(folders.values(), key=len)

    def _read(self, path: Path) -> Record:
        try:
            record, fault = self._seen.read(str(path))
        except ValidationError as error:
            raise FileFormatError(f"{path}: not a record: {first_fault(error)}", mend=_ANEW) from None
        except OSError as error:
            raise FileFormatError(f"{path}: cannot be read: {error.strerror}", mend=_ANEW) from None
        if fault:
            raise FileFormatError(f"{path}: not a record of a run: {fault}", mend=_ANEW)
        return record

    def add(self, record: Record) -> Path:
        """Write a record where it belongs; one that was there before is replaced."""
        accelerator = re.sub(r"[^a-z0-9]+", "-", (record.host.accelerator or "cpu").lower()).strip("-")
        *subject, serve = record.subject.split("/")
        path = self.root / accelerator / serve / f"{'~'.join(subject)}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(record.model_dump_json(indent=1, exclude_none=True) + "\n", encoding="utf-8")
        return path

    @cached_property
    def _by_name(self) -> dict[tuple[str, str], list[Path]]:
        """By folder and file name, which say of what a record is."""
        found: dict[tuple[str, str], list[Path]] = {}
        for path in self._paths():
            found.setdefault((path.parts[-2], path.parts[-1]), []).append(path)
        return found

    @cached_property
    def _by_key(self) -> dict[str, Path]:
        """Records are not read whole: most questions are about few of them."""
        found = {}
        for path in self._speaking():
            if key := self._keys.read(str(path)):
                found[key] = path
            elif (record := self._read(path)).evidence:
                found[record.evidence] = path
        return found


def _held(path: Path, record: Record, step: Step) -> Record:
    """The record, once it is sure that it says nothing else than its key."""
    if name := _contradiction(record, step):
        raise FileFormatError(f"{path}: {name} is not what its evidence key says", mend=_ANEW)
    return record


def _contradiction(record: Record, step: Step) -> str | None:
    """What of a record is another step's, or None: the key alone proves nothing of the rest."""
    said: dict[str, tuple[object, object]] = {
        "stage": (record.stage, step.stage),
        "subject": (record.subject, step.subject),
        "inputs.params": (record.inputs.get("params"), dict(step.params)),
    }
    if record.measured:
        said["measured.options"] = (record.measured.get("options"), step.params.get("options"))
        vllm = f"vllm-{record.environment.get('vllm')}"
        # Behind the version an environment may have a label.
        named = step.environment if f"{step.environment}-".startswith(f"{vllm}-") else None
        said["environment.vllm"] = (step.environment, named)
    return next((name for name, (one, other) in said.items() if one != other), None)


def _key_of(content: bytes) -> str | None:
    key = _KEY.search(content)
    return key[1].decode() if key else None


_ANEW = "restore the file, or make it anew"
_KEY = re.compile(rb'"evidence":\s*"([0-9a-f]{64})"')
