"""``qvlfp8 findings``: what a finding means, and where the records show it.

What needs records is imported where it is used: what a finding means asks for no project.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvlfp8.errors import UsageError
from qvlfp8.known_findings import KNOWN
from qvlfp8.signs import signs_of


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What the records here say of one finding."""

    read: int
    """Records that were looked at."""
    shown: int
    """Those that show it."""
    vllm: Mapping[str, Mapping[str, int]]
    """Version -> stage -> records that show it."""
    checkpoints: int
    """Those of the stages that look at a checkpoint alone, whatever serves it."""
    without: tuple[str, ...]
    """Versions that there are records of, none of which shows it."""

    def as_json(self) -> dict[str, Any]:
        """It, for ``--json``."""
        return {
            "read": self.read,
            "shown": self.shown,
            "vllm": self.vllm,
            "checkpoints": self.checkpoints,
            "without": list(self.without),
        }


def show_findings(matrix: Path, store: Path | None, name: str | None, *, as_json: bool) -> None:
    """Print every finding, or one of them and where the records here show it.

    Raises:
        UsageError: there is no such finding.
        QvlError: matrix.yaml, a lock or a committed record is there and not valid.
    """
    if name is None:
        _show_list(as_json=as_json)
        return
    if name not in KNOWN:
        raise UsageError(f"no finding {name!r}", mend=_nearest(name))
    shown = _shown(matrix, store, name)
    if as_json:
        records = shown.as_json() if shown else None
        print(json_text({"version": 1, **kind_json(name), "records": records}))
        return
    kind = KNOWN[name]
    print(f"{name} ({kind.severity})")
    show_kind(name)
    if shown is None:
        print(f"  records  none: there is no {matrix} here")
        return
    if not shown.shown:
        print(f"  records  no record here shows it ({shown.read} current ones were read)")
        return
    print(f"  records  {shown.shown} of {shown.read} current ones show it (results/ and this machine's)")
    if shown.checkpoints:
        print(f"           whatever vLLM serves it: {shown.checkpoints}")
    for version, stages in shown.vllm.items():
        print(f"           vLLM {version}: {', '.join(f'{stage} {n}' for stage, n in stages.items())}")
    if shown.vllm and shown.without:
        print(f"           not in the records of vLLM {', '.join(shown.without)}")


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name.lower(), KNOWN, n=3, cutoff=0.5)
    listed = "`qvlfp8 findings` lists them all"
    return f"did you mean {' or '.join(close)}? {listed}" if close else listed


def _show_list(*, as_json: bool) -> None:
    if as_json:
        print(json_text({"version": 1, "findings": [kind_json(name) for name in KNOWN]}))
        return
    width = max(map(len, KNOWN))
    for name, kind in KNOWN.items():
        print(f"{name:{width}}  {kind.severity:5}  {kind.meaning}")


def show_kind(name: str) -> None:
    """Print what a finding means and how it is mended."""
    kind = KNOWN[name]
    print(f"  meaning  {kind.meaning}")
    print(f"  mend     {kind.mend}")
    if command := signs_of(name).command:
        print(f"  command  {command}")
    for link in signs_of(name).links:
        print(f"  link     {link}")


def kind_json(name: str) -> dict[str, Any]:
    """A finding, for ``--json``."""
    kind = KNOWN[name]
    return {
        "id": name,
        "severity": kind.severity,
        "meaning": kind.meaning,
        "mend": kind.mend,
        "command": signs_of(name).command or None,
        "links": list(signs_of(name).links),
        "signatures": list(signs_of(name).signatures),
    }


def json_text(value: Mapping[str, Any]) -> str:
    """JSON as commands print it."""
    return json.dumps(value, indent=1, ensure_ascii=False)


def _shown(matrix: Path, store: Path | None, name: str) -> Shown | None:
    """What the records say; None without a project."""
    if store is None and not matrix.exists():
        return None
    from packaging.version import Version

    from qvlfp8.observed import named_version, observed
    from qvlfp8.project import Project

    project = Project.open(matrix, store)
    versions = {named_version(e): Version(e.vllm) for e in (cell.serve for cell in project.matrix.cells)}
    read: set[tuple[str, ...]] = set()
    seen_of: set[str] = set()
    showing: dict[tuple[str | None, str], set[tuple[str, ...]]] = {}
    for version, stage, key, found in observed(project):
        read.add(key)
        if version is not None:
            seen_of.add(version)
        if name in found:
            showing.setdefault((version, stage), set()).add(key)
    order = sorted(seen_of, key=lambda version: (versions[version], version))
    by_version = {
        version: {stage: len(keys) for (of, stage), keys in showing.items() if of == version}
        for version in order
    }
    return Shown(
        read=len(read),
        shown=len({key for keys in showing.values() for key in keys}),
        vllm={version: stages for version, stages in by_version.items() if stages},
        checkpoints=len({key for (of, _), keys in showing.items() if of is None for key in keys}),
        without=tuple(version for version in order if not by_version[version]),
    )
