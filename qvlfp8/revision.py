"""The files of a git revision that say what was run: read from git's objects, the work tree untouched."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from qvlfp8.errors import UsageError

_WANTED = ("matrix.yaml", "recipes", "containers/locks", "results")
_RECORDS = {".json", ".jsonl"}
_MEND = "name a folder (a store or results/), or a revision of this repository"


def extract(revision: str, project: Path, into: Path) -> None:
    """Write the files of a revision that a run is read from below ``into``.

    Args:
        revision: as git names it: a branch, a tag, a hash, ``HEAD~1``.
        project: the folder of matrix.yaml in the work tree.

    Raises:
        UsageError: there is no such revision, no repository, or no git.
    """
    said = _git(project, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    commit = said.decode().strip()
    if not commit:
        raise UsageError(f"{revision}: neither a folder nor a git revision", mend=_MEND)
    blobs = dict(_blobs(project, commit))
    for path, content in _contents(project, blobs):
        target = into / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _blobs(project: Path, commit: str) -> Iterator[tuple[str, str]]:
    """Path below the project and object id of each plain file that is wanted; links are left out."""
    listed = _git(project, "ls-tree", "-r", "-z", commit, "--", *_WANTED)
    for entry in listed.decode(errors="surrogateescape").split("\0"):
        kind, _, path = entry.partition("\t")
        mode, _, rest = kind.partition(" ")
        if mode.startswith("100") and not (path.startswith("results/") and Path(path).suffix not in _RECORDS):
            yield path, rest.split()[1]


def _contents(project: Path, blobs: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    """Path and bytes of each file, by one process for all."""
    asked = "".join(f"{name}\n" for name in blobs.values()).encode()
    said = _git(project, "cat-file", "--batch", stdin=asked)
    start = 0
    for path in blobs:
        end = said.index(b"\n", start)
        told = said[start:end].split()
        if len(told) != 3:
            raise UsageError(
                f"{path}: git has not got it: the clone is not whole", mend="git fetch --refetch"
            )
        size = int(told[2])
        yield path, said[end + 1 : end + 1 + size]
        start = end + size + 2


def _git(project: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    try:
        ended = subprocess.run(
            ["git", "-C", str(project.resolve()), *arguments], input=stdin, capture_output=True, check=False
        )
    except FileNotFoundError:
        raise UsageError("git is not installed: a revision cannot be read", mend=_MEND) from None
    if ended.returncode and ended.stderr:
        said = ended.stderr.decode(errors="replace").strip()
        raise UsageError(f"git {arguments[0]}: {said}", mend=_MEND)
    return ended.stdout
