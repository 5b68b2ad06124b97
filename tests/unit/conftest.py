from __future__ import annotations

import json
import os
from pathlib import Path

import pytest


@pytest.fixture
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk is what takes the time in a run, and nothing here loses power."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


@pytest.fixture
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs, keeps and digests a model takes a few bytes for one."""

    def write(folder: Path, **params: object) -> None:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(params))

    monkeypatch.setattr("qvlfp8.reference.write_random", write)
    monkeypatch.setattr("qvlfp8.reference.write_trained", write)
