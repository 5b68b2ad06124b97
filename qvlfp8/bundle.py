"""What a host without network needs to run GPU jobs: archives, in pieces, with checksums and a start script.

:mod:`qvlfp8.worker.run_bundle` describes the folder and runs it. What several environments of a bundle hold
goes into one archive, ``common-…``, once; each environment's own rest into one of its name; what is to be run
into ``work``.
"""

from __future__ import annotations

import io
import json
import lzma
import os
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import Field

from qvlfp8 import digest, source
from qvlfp8.errors import UsageError
from qvlfp8.fatbin import keep_only
from qvlfp8.plan import Plan, Step
from qvlfp8.truth.asking import WORKER, Asking
from qvlfp8.worker.run_bundle import ARCHIVE, ARCHIVES, JOBS, OUT, SUMS, TREE, public, write_sums
from qvlfp8.yamlfile import Document, Strict

PART_BYTES = 4 << 20
"""How much of an archive, before compression, goes into one part: small enough to fill pieces well."""

_PRESET = 1
"""xz level: CUDA code is compressed already, so that higher ones take minutes and win a hundredth."""

START = """\
#!/bin/sh
# Checks, unpacks and runs what lies beside this file. Options: sh start.sh --help
cd "$(dirname "$0")" && exec "${PYTHON:-python3}" run_bundle.py "$@"
"""


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


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A tree of files that a bundle brings; ``environment`` is its spec for the host, None for ``work``."""

    name: str
    files: Mapping[str, Path]
    environment: Mapping[str, Any] | None = None


@dataclass
class _Archive:
    name: str
    environment: Mapping[str, Any] | None
    needs: list[str] = field(default_factory=list)
    tree: dict[str, str] = field(default_factory=dict)
    objects: dict[str, Path] = field(default_factory=dict)


def _object(path: Path) -> str:
    return digest.of_file(path) + ("x" if os.access(path, os.X_OK) else "")


def _archives(trees: Sequence[Tree]) -> list[_Archive]:
    named = {tree.name: {path: (_object(file), file) for path, file in tree.files.items()} for tree in trees}
    holders = Counter(
        content
        for tree in trees
        if tree.environment is not None
        for content in {content for content, _ in named[tree.name].values()}
    )
    common = _Archive(name="common", environment=None)
    archives = []
    for tree in trees:
        archive = _Archive(name=tree.name, environment=tree.environment)
        for path, (content, file) in named[tree.name].items():
            archive.tree[path] = content
            shared = tree.environment is not None and holders[content] > 1
            (common if shared else archive).objects.setdefault(content, file)
            if shared and not archive.needs:
                archive.needs.append(common.name)
        archives.append(archive)
    if not common.objects:
        return archives
    # Bundles of other environments may be laid into the same folder.
    common.name = f"common-{digest.of_json(sorted(common.objects))[:8]}"
    for archive in archives:
        archive.needs = [common.name] if archive.needs else []
    return [common, *archives]


class _Parts(io.RawIOBase):
    """A stream that is cut every :data:`PART_BYTES` and compressed, part by part, into a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._buffer = bytearray()
        self._pool = ThreadPoolExecutor(2)
        self._left: list[Future[int]] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._buffer += data
        while len(self._buffer) >= PART_BYTES:
            self._cut(PART_BYTES)
        return len(data)

    def _cut(self, size: int) -> None:
        target = self._folder / f"{len(self._left):04}.xz"
        part = bytes(self._buffer[:size])
        del self._buffer[:size]
        self._left.append(self._pool.submit(lambda: target.write_bytes(lzma.compress(part, preset=_PRESET))))
        if len(self._left) > 8:
            self._left[-8].result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._pool:
            if kind is None and self._buffer:
                self._cut(len(self._buffer))
        for part in self._left:
            part.result()


def _pack(archive: _Archive, folder: Path) -> None:
    folder.mkdir(parents=True)
    with _Parts(folder) as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
        for name, path in archive.objects.items():
            entry = tarfile.TarInfo(f"objects/{name}")
            entry.size = path.stat().st_size
            with path.open("rb") as content:
                tar.addfile(entry, content)
        tree = json.dumps(archive.tree).encode()
        entry = tarfile.TarInfo(TREE)
        entry.size = len(tree)
        tar.addfile(entry, io.BytesIO(tree))
    spec = {"needs": archive.needs, "environment": archive.environment}
    (folder / ARCHIVE).write_text(json.dumps(spec, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    write_sums(folder)


def worker_files(workers: Iterable[str]) -> dict[str, Path]:
    """The package's own source that workers need, as they find it: ``qvlfp8/…`` -> file."""
    modules = source.closure(
        "source", "worker.__main__", "worker.protocol", *(f"worker.{w}" for w in workers)
    )
    parents = {
        ".".join(name.split(".")[:depth]) for name in modules for depth in range(1, name.count(".") + 1)
    }
    found = {"qvlfp8/__init__.py": source.PACKAGE / "__init__.py"}
    for name in sorted(modules | parents):
        path = source.PACKAGE.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        found[f"qvlfp8/{path.relative_to(source.PACKAGE).as_posix()}"] = path
    return found


def folder_files(folder: Path, at: str) -> dict[str, Path]:
    """Every file below a folder, as files of a bundle below ``at``."""
    return {
        f"{at}/{path.relative_to(folder).as_posix()}": path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def generate_batches(
    plan: Plan, steps: Iterable[Step], folder_of: Callable[[Step], Path], time_limit_s: float
) -> tuple[dict[str, dict[str, Any]], dict[str, Path]]:
    """Batches, one an environment, that answer ``generate`` steps, and the checkpoints that they read.

    Args:
        steps: in the plan's order; the baselines that they need are added.
        folder_of: where the files are that a ``model`` or ``quantize`` step made.
        time_limit_s: for each job.

    Returns:
        Batch name -> spec, and the files: path in the bundle -> file here.
    """
    asked = {need: plan.steps[need] for step in steps for need in (*step.needs, step.digest)}
    batches: dict[str, dict[str, Any]] = {}
    files: dict[str, Path] = {}
    for step in (step for step in plan.steps.values() if step.digest in asked and step.stage == "generate"):
        needs = [plan.steps[need] for need in step.needs]
        runs = [need for need in needs if need.stage == "generate"]
        # The unquantized model is the checkpoint of a baseline.
        made = next(need for need in needs if need.stage == ("quantize" if runs else "model"))
        checkpoint = f"checkpoints/{made.digest[:16]}"
        if f"{checkpoint}/config.json" not in files:
            files |= folder_files(folder_of(made), checkpoint)
        environment = step.environment or ""
        batch = batches.setdefault(
            environment,
            {"environment": environment, "worker": "generate", "time_limit_s": time_limit_s, "jobs": []},
        )
        baseline = f"{OUT}/{runs[0].digest}" if runs else None
        params = {**step.params, "checkpoint": checkpoint, "baseline": baseline}
        batch["jobs"].append(
            {"id": step.digest, "label": step.subject, "out": f"{OUT}/{step.digest}", "params": params}
        )
    return batches, files


def truth_batch(asked: Asking, time_limit_s: float) -> tuple[dict[str, dict[str, Any]], dict[str, Path]]:
    """The same for truth runs: one batch, and the good checkpoints; faults are planted on the host."""
    places = {name: f"checkpoints/{made[:16]}" for name, made in asked.made.items()}
    files: dict[str, Path] = {}
    for name, place in places.items():
        files |= folder_files(asked.folders[name], place)
    jobs = [
        run.job(
            places[run.subject.base],
            f"{OUT}/{asked.baseline}" if run.digest != asked.baseline else None,
            f"{OUT}/{run.digest}",
        )
        for run in asked.runs
    ]
    environment = asked.environment.id
    batch = {"environment": environment, "worker": WORKER, "time_limit_s": time_limit_s, "jobs": jobs}
    return {f"truth-{environment}": batch}, files


def work_tree(batches: Mapping[str, Mapping[str, Any]], files: Mapping[str, Path], scratch: Path) -> Tree:
    """What is to be run: batch specs (put into ``scratch``), the files they read, the workers' source."""
    found = dict(files)
    for name, batch in batches.items():
        path = scratch / f"{name}.json"
        path.write_text(json.dumps(batch, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        found[f"{JOBS}/{name}.json"] = path
    found |= worker_files({batch["worker"] for batch in batches.values()})
    return Tree(name="work", files=dict(sorted(found.items())))


def write_bundle(out: Path, trees: Sequence[Tree], *, split: int | None = None) -> list[Path]:
    """Write a bundle; returns its pieces: ``out``, or folders ``out/piece-NN`` to be laid over each other.

    Args:
        split: the most bytes of a piece, None for one whole.

    Raises:
        UsageError: ``out`` is there already, or ``split`` is too small for one part.
    """
    if out.exists():
        raise UsageError(f"{out}: is there already", mend="name a new folder (--out)")
    for archive in _archives(trees):
        _pack(archive, out / ARCHIVES / archive.name)
    (out / "start.sh").write_text(START, encoding="utf-8")
    shutil.copyfile(source.PACKAGE / "worker" / "run_bundle.py", out / "run_bundle.py")
    return [out] if split is None else _split(out, split)


def _split(out: Path, limit: int) -> list[Path]:
    files = [out / "start.sh", out / "run_bundle.py", *_in_order(out)]
    pieces: list[Path] = []
    room = 0
    for file in files:
        size = file.stat().st_size
        if size > limit:
            raise UsageError(
                f"a part of {size} bytes fits in no piece of {limit}", mend="split into larger pieces"
            )
        if size > room:
            pieces.append(out / f"piece-{len(pieces) + 1:02}")
            room = limit
        room -= size
        target = pieces[-1] / file.relative_to(out)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.rename(target)
    shutil.rmtree(out / ARCHIVES)
    return pieces


def _in_order(out: Path) -> Iterator[Path]:
    """An archive's files, its checksums first, so that the host sees at once what is still to come."""
    folders = sorted((out / ARCHIVES).iterdir(), key=lambda folder: (folder.stat().st_mtime_ns, folder.name))
    for folder in folders:
        yield folder / SUMS
        yield from sorted(path for path in folder.iterdir() if path.name != SUMS)


def size(text: str) -> int:
    """``58M`` -> bytes (powers of ten: k, M, G).

    Raises:
        UsageError: it is not a size.
    """
    found = re.fullmatch(r"(\d+)([kMG]?)B?", text)
    if found is None:
        raise UsageError(f"{text!r} is not a size", mend="write it like 58M")
    return int(found[1]) * {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}[found[2]]
