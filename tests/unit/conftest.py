from __future__ import annotations

import os

import pytest


@pytest.fixture
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk is what takes the time in a run, and nothing here loses power."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
