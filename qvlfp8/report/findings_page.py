"""``docs/findings.md``: the registry of findings, and the versions in which committed records show them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from packaging.version import Version

from qvlfp8.known_findings import KNOWN
from qvlfp8.observed import named_version, observed
from qvlfp8.project import Project
from qvlfp8.signs import signs_of

__all__ = ["page"]

_HEAD = """\
# Findings

Every cause that qvlfp8 can name. This page is printed by `qvlfp8 findings --markdown`, not edited. "Seen in"
is derived from the committed records in `results/` (runs on GPUs, vLLM's own loaders, checkpoints) and from
locks that do not resolve; a finding without it was not seen there. `qvlfp8 findings ID` adds what was
executed on your machine, and `qvlfp8 diagnose LOGFILE` finds these causes in a log.
"""


def page(project: Project) -> str:
    """The whole page.

    Raises:
        QvlError: a lock or a committed record is not valid.
    """
    seen: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    alone: dict[str, dict[str, set[tuple[str, ...]]]] = defaultdict(lambda: defaultdict(set))
    for version, stage, key, found in observed(project, committed_only=True):
        for name in found:
            if version is None:
                alone[name][stage].add(key)
            else:
                seen[name][stage].add(version)
    order = {named_version(e): Version(e.vllm) for e in project.matrix.file.serve}
    sections = []
    for name in KNOWN:
        places = [*_alone(alone.get(name, {})), *_in_vllm(seen.get(name, {}), order)]
        sections.append("\n".join(_section(name, places)))
    return "\n\n".join([_HEAD.rstrip(), *sections]) + "\n"


def _alone(seen: Mapping[str, set[tuple[str, ...]]]) -> Iterator[str]:
    """Where a checkpoint, or what should make it, shows it whatever serves it."""
    for stage, keys in seen.items():
        what = ("lock" if stage == "resolve" else "record") + ("" if len(keys) == 1 else "s")
        yield f"- **Seen in** {len(keys)} {what} at `{stage}`, whatever vLLM serves it"


def _in_vllm(seen: Mapping[str, set[str]], order: Mapping[str, Version]) -> Iterator[str]:
    for stage, versions in seen.items():
        listed = ", ".join(sorted(versions, key=lambda version: (order[version], version)))
        yield f"- **Seen in** vLLM {listed}, at `{stage}`"


def _section(name: str, places: Iterable[str]) -> Iterator[str]:
    kind, signs = KNOWN[name], signs_of(name)
    yield f"## `{name}`"
    yield ""
    yield f"*{kind.severity}* - {_plain(kind.meaning)}."
    yield ""
    yield f"- **Mend:** {_plain(kind.mend)}."
    if signs.command:
        yield f"- **Command:** `{signs.command}`"
    yield from places
    for link in signs.links:
        yield f"- **Upstream:** <{link}>"
    for signature in signs.signatures:
        yield f"- **In a log:** `` {signature} ``"


def _plain(text: str) -> str:
    """Text in which Markdown sees no emphasis."""
    return re.sub(r"([*_])", r"\\\1", text)
