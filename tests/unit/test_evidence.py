"""Committed records are found by what was asked, and by nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from qvlfp8.errors import FileFormatError
from qvlfp8.evidence import Evidence
from qvlfp8.results import Host, Record

KEY = "a" * 64


def record(key: str = KEY, subject: str = "lm-fp8/modelopt-0.47.0/seeing/vllm-0.26.0") -> Record:
    host = Host(machine="x86_64", system="Linux", cpus=1, memory_gb=1.0, accelerator="NVIDIA H200")
    return Record(
        stage="generate", subject=subject, digest="b" * 64, status="pass", inputs={}, host=host,
        started="2026-11-22T00:00:00+00:00", seconds=1.0, repeat="nox", evidence=key, qvlfp8="0",
    )  # fmt: skip


def test_what_is_added_is_found_by_its_key_alone(tmp_path: Path) -> None:
    path = Evidence(tmp_path).add(record())
    assert path == tmp_path / "nvidia-h200" / "vllm-0.26.0" / "lm-fp8~modelopt-0.47.0~seeing.json"
    found = Evidence(tmp_path)
    assert found.record(KEY) == record()
    assert found.record("c" * 64) is None
    assert found.record(None) is None


def test_a_run_again_replaces_the_record(tmp_path: Path) -> None:
    Evidence(tmp_path).add(record())
    Evidence(tmp_path).add(record(key="c" * 64))
    assert Evidence(tmp_path).record(KEY) is None
    assert len(list(Evidence(tmp_path).records())) == 1


def test_without_a_folder_there_is_none(tmp_path: Path) -> None:
    assert Evidence(tmp_path / "none").record(KEY) is None


def test_what_is_no_record_is_named(tmp_path: Path) -> None:
    path = Evidence(tmp_path).add(record())
    path.write_text("{}")
    with pytest.raises(FileFormatError, match=r"modelopt-0\.47\.0~seeing\.json: not a record"):
        Evidence(tmp_path).record(KEY)
