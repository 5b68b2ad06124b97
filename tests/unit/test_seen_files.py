from __future__ import annotations

import os
from pathlib import Path

import pytest

from qvlfp8.seen_files import SeenFiles


def test_a_file_is_read_once_and_again_when_it_was_written_to_or_replaced(tmp_path: Path) -> None:
    made: list[bytes] = []

    def make(content: bytes) -> bytes:
        made.append(content)
        return content

    seen, path = SeenFiles(make), tmp_path / "record.json"
    path.write_bytes(b"one")
    assert [seen.read(str(path)) for _ in range(3)] == [b"one"] * 3
    assert made == [b"one"]

    before = path.stat()
    path.write_bytes(b"two")
    # Its size is the same, and somebody put its time back: the kernel's own is another all the same.
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert seen.read(str(path)) == b"two"

    other = tmp_path / "other"
    other.write_bytes(b"six")
    other.replace(path)
    assert seen.read(str(path)) == b"six"
    path.unlink()
    with pytest.raises(FileNotFoundError):
        seen.read(str(path))


def test_what_could_not_be_made_is_tried_again(tmp_path: Path) -> None:
    seen, path = SeenFiles(int), tmp_path / "number"
    path.write_bytes(b"x")
    for _ in range(2):
        with pytest.raises(ValueError, match="invalid literal"):
            seen.read(str(path))
    path.write_bytes(b"7")
    assert seen.read(str(path)) == 7


def test_a_file_that_comes_in_pieces_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = tmp_path / "file", os.read
    path.write_bytes(b"0123456789")
    monkeypatch.setattr(os, "read", lambda descriptor, size: read(descriptor, min(size, 3)))
    assert SeenFiles(bytes).read(str(path)) == b"0123456789"
