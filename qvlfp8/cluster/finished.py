"""What is finished: in the store that all nodes reach, and of it records and logs in the driver's own."""

from __future__ import annotations

from qvlfp8.cluster.retry import is_retried
from qvlfp8.cluster.shared import SharedStore
from qvlfp8.execute import digest_of_what_was_made
from qvlfp8.plan import Step
from qvlfp8.results import Record
from qvlfp8.store import LOG, RECORD, Store, writing


class Finished:
    """Both stores, as a driver that has just started finds them and goes on with them."""

    def __init__(self, store: Store, shared: SharedStore) -> None:
        """See what the shared store has.

        Raises:
            SharedStoreError: it cannot be read.
        """
        self._store = store
        self._shared = shared
        self._there = shared.entries()

    def record(self, step: Step) -> Record | None:
        """The step's record in the shared store, taken into this driver's own; None if it is not there."""
        if (step.stage, step.digest) not in self._there:
            return None
        own = self._store.record(step.stage, step.digest)
        if own is not None and own.status != "error":
            return own
        scratch = self._store.scratch("fetch")
        with writing(scratch):
            entry = self._shared.entry(step.stage, step.digest)
            if entry is None:
                return None
            for name in entry.files.keys() & {RECORD, LOG}:
                self._shared.get(step.stage, step.digest, scratch, only=name)
            record = Record.model_validate_json((scratch / RECORD).read_bytes())
        self._store.commit(scratch, record)
        return self._store.record(step.stage, step.digest)

    def untold(self, step: Step) -> Record | None:
        """The record of a step whose node was lost after it had kept it, before it told of it; else None."""
        key = (step.stage, step.digest)
        # What was there before was asked for again.
        if key in self._there or step.stage == "build" or self._shared.entry(*key) is None:
            return None
        self._there |= {key}
        return self.record(step)

    def intact(self, step: Step, record: Record | None) -> bool:
        """Whether nodes reach what a step made; what only this driver's store has is put there."""
        if step.stage == "build" or record is None or record.made is None:
            return True
        entry = self._shared.entry(step.stage, step.digest)
        if entry is not None and entry.made == record.made:
            return True
        folder = self._store.entry(step.stage, step.digest)
        if digest_of_what_was_made(folder) != record.made:
            return False
        self._shared.put(step.stage, step.digest, folder, record.made)
        return True

    def keep(self, record: Record, log: bytes | None) -> None:
        """Take a record that a node sends into the driver's own store, and its log, sent or fetched.

        Raises:
            SharedStoreError: a log that was not sent cannot be fetched.
            StoreWriteError: the driver's disk refuses.
        """
        scratch = self._store.scratch(record.stage)
        if record.log:
            with writing(scratch):
                if log is not None:
                    (scratch / LOG).write_bytes(log)
                elif not is_retried(record):
                    self._shared.get(record.stage, record.digest, scratch, only=LOG)
        self._store.commit(scratch, record)
