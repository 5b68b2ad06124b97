"""What of an environment's packages a bundle brings, and what the GPU host has already."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import Field

from qvlfp8.errors import UsageError
from qvlfp8.fatbin import keep_only
from qvlfp8.worker.run_bundle import public
from qvlfp8.yamlfile import Document, Strict


class Without(Strict):
    """Packages, or files of packages (globs on paths below site-packages), that the jobs do not need."""

    packages: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    reason: str


class Rule(Strict):
    """How environments of that name (a glob) are brought to a host. All rules that match hold together."""

    environments: str
    without: tuple[Without, ...] = ()
    borrow: tuple[str, ...] = ()
    """Packages that the host's own stand in for, in whatever version."""
    compute_capability: int | None = None
    """The GPUs' (90 for 9.0): CUDA code for others is zeroed in what travels (:mod:`qvlfp8.fatbin`)."""
    variables: dict[str, str] = Field(default_factory=dict)
    """For workers; ``{environment}`` is the environment's folder, ``{inherited}`` the host's own value."""


class BundleFile(Strict):
    """``bundles.yaml``."""

    rules: tuple[Rule, ...] = ()

    def rule(self, environment: str) -> Rule:
        """Everything that holds for one environment, later rules' variables winning."""
        hit = [rule for rule in self.rules if fnmatchcase(environment, rule.environments)]
        return Rule(
            environments=environment,
            without=tuple(item for rule in hit for item in rule.without),
            borrow=tuple(name for rule in hit for name in rule.borrow),
            compute_capability=next(
                (r.compute_capability for r in reversed(hit) if r.compute_capability), None
            ),
            variables={key: value for rule in hit for key, value in rule.variables.items()},
        )


def read_bundles(path: Path) -> BundleFile:
    """Read ``bundles.yaml``.

    Raises:
        FileFormatError: it is not valid.
    """
    return Document.read(path).parse(BundleFile)


@dataclass(frozen=True, kw_only=True)
class Sorted:
    """A lock's packages (name -> version) by where the host gets them.

    ``requirements`` is the part of the lock that installs what is brought.
    """

    brought: Mapping[str, str]
    host: Mapping[str, str | None]
    """None: borrowed, in whatever version."""
    requirements: str


def read_have(text: str) -> dict[str, str]:
    """Package (normalised name) -> version, from ``pip list --format=freeze`` of the host."""
    pairs = re.findall(r"(?m)^([A-Za-z0-9][\w.-]*)==([^\s;]+)", text)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pairs}


def sort_lock(lock: str, have: Mapping[str, str], rule: Rule) -> Sorted:
    """Decide for every package of a lock whether it travels.

    Raises:
        UsageError: a package that is to be borrowed is not on the host.
    """
    brought: dict[str, str] = {}
    host: dict[str, str | None] = {}
    kept: list[str] = []
    left_out = [glob for item in rule.without for glob in item.packages]
    # An entry is a line `name==version` and the indented lines after it.
    for entry in re.findall(r"(?m)^[a-z0-9].*(?:\n[ \t].*)*", lock):
        found = re.match(r"([a-z0-9][a-z0-9._-]*)==([^ \\\n;]+)", entry)
        if found is None:
            continue
        name, version = found[1], found[2]
        if any(fnmatchcase(name, glob) for glob in left_out):
            continue
        if any(fnmatchcase(name, glob) for glob in rule.borrow):
            if name not in have:
                raise UsageError(f"{name} is to be borrowed from the host, which has none")
            host[name] = None
        elif public(have.get(name, "")) == public(version):
            host[name] = version
        else:
            brought[name] = version
            kept.append(entry + "\n")
    for name in rule.borrow:
        if name in have:
            host.setdefault(name, None)
    return Sorted(brought=brought, host=host, requirements="".join(kept))


def files_of(tree: Path, rule: Rule) -> dict[str, Path]:
    """The files of an unpacked environment that travel: relative path -> file."""
    left_out = re.compile("|".join(_glob(g) for item in rule.without for g in item.files) or r"(?!)")
    found = {}
    for folder, _, names in os.walk(tree):
        for name in names:
            path = Path(folder, name)
            relative = path.relative_to(tree).as_posix()
            if not left_out.fullmatch(relative):
                found[relative] = path
    return dict(sorted(found.items()))


def for_one_gpu(files: Mapping[str, Path], capability: int, scratch: Path) -> dict[str, Path]:
    """The same files, those with CUDA code for other GPUs as copies in ``scratch`` without it."""
    kept = dict(files)
    for number, (relative, path) in enumerate(files.items()):
        if ".so" in path.name and not path.is_symlink():
            smaller = scratch / f"{number}.so"
            if keep_only(path, smaller, capability):
                kept[relative] = smaller
    return kept


def _glob(glob: str) -> str:
    """A glob as a regular expression: ``*`` is anything, ``/`` included."""
    return "".join(".*" if c == "*" else "." if c == "?" else re.escape(c) for c in glob)
