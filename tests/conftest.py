"""How hard hypothesis looks: quick by default, `--hypothesis-profile=thorough` while developing.

And what makes runs of made-up workers fast, in unit tests and in integration.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import settings

# A deadline would measure the machine's load, not the code.
settings.register_profile("quick", max_examples=30, deadline=None)
settings.register_profile("thorough", max_examples=2000, deadline=None)
settings.load_profile("quick")


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
