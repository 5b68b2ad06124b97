"""Run a bundle's jobs on a host that reaches no network: ``sh start.sh``, with nothing but its python3.

A bundle is a folder, however many pieces it came in::

    start.sh  run_bundle.py
    archives/NAME/{archive.json, 0000.xz, 0001.xz, …, SHA256SUMS}
    qvlfp8/  jobs/*.json  checkpoints/…        what the archive ``work`` holds; may also lie there as it is

and this module adds::

    objects/  environments/NAME/               what the archives of environments hold
    out/host.json  out/SHA256SUMS
    out/JOB/{result.json, log.txt, ran.json, …}
    out/batches/BATCH.log

An archive's parts, each decompressed by itself and joined, are one tar of objects (named by their
SHA-256, and ``x`` where executable) and ``tree.json`` (path -> object); several archives may share the
objects of one. An environment is a virtual environment of the host's Python: what was brought, as links
to objects, and links to the packages that the host itself has in the locked version. Nothing else of the
host is visible in it.

A batch (``jobs/*.json``) is a spec of :mod:`qvlfp8.worker.protocol` plus ``environment``; paths are
relative to the bundle. Jobs that have a result are not run again, so that an interrupted run goes on
where it ended.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import importlib.metadata
import json
import lzma
import os
import platform
import queue
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import venv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

ARCHIVES, OBJECTS, ENVIRONMENTS, JOBS, OUT = "archives", "objects", "environments", "jobs", "out"
ARCHIVE, TREE, SUMS = "archive.json", "tree.json", "SHA256SUMS"
RESULT, LOG, RAN, HOST = "result.json", "log.txt", "ran.json", "host.json"

IMPORT_LIMIT_S = 600.0
"""What a batch may take beside its jobs, if it does not say ``import_limit_s``: importing vLLM anew."""

Show = Callable[[str], None]


class BundleError(Exception):
    """The bundle cannot be run here; the message says why and what to do."""


def sums(text: str) -> dict[str, str]:
    """File name -> SHA-256 (hex) of a ``sha256sum`` listing."""
    pairs = (line.split("  ", 1) for line in text.splitlines() if line)
    return {name: digest for digest, name in pairs}


# --- archives -----------------------------------------------------------------------------------------------


def missing(archive: Path) -> list[str]:
    """The files that an archive's folder lacks; a folder without its list lacks that."""
    try:
        names = sums((archive / SUMS).read_text(encoding="utf-8"))
    except OSError:
        return [SUMS]
    return [name for name in names if not (archive / name).exists()]


class _Joined:
    """The decompressed parts of an archive as one stream to read."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = iter(parts)
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        got = []
        while size:
            if not self._rest:
                part = next(self._parts, None)
                if part is None:
                    break
                self._rest = memoryview(part)
            got.append(self._rest[:size])
            self._rest = self._rest[size:]
            size -= len(got[-1])
        return b"".join(got)


def _part(path: Path, digest: str) -> bytes:
    packed = path.read_bytes()
    if hashlib.sha256(packed).hexdigest() != digest:
        raise BundleError(f"{path}: damaged: not the bytes that {SUMS} names; copy that piece again")
    return lzma.decompress(packed) if path.suffix == ".xz" else packed


def _copy(content: IO[bytes], made: IO[bytes]) -> None:
    """Copy; what is zero becomes a hole, which costs no time on the disk: much is, of libraries cut down."""
    while block := content.read(1 << 20):
        if block.count(0) == len(block):
            made.seek(len(block), os.SEEK_CUR)
        else:
            made.write(block)
    made.truncate()


def unpack(archive: Path, objects: Path) -> dict[str, str]:
    """Check an archive, write its objects, and return its tree (path -> object), empty if it has none.

    Raises:
        BundleError: a part is damaged.
    """
    names = sums((archive / SUMS).read_text(encoding="utf-8"))
    objects.mkdir(parents=True, exist_ok=True)
    tree: dict[str, str] = {}
    _part(archive / ARCHIVE, names[ARCHIVE])
    parts = sorted(name for name in names if name.endswith(".xz"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        stream: Any = _Joined(pool.map(lambda name: _part(archive / name, names[name]), parts))
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None  # noqa: S101  # an archive holds plain files only
                if member.name == TREE:
                    tree = json.load(content)
                    continue
                target = objects / Path(member.name).name
                with target.open("wb") as made:
                    _copy(content, made)
                target.chmod(0o755 if target.name.endswith("x") else 0o644)
    return tree


def plant(tree: Mapping[str, str], objects: Path, folder: Path) -> None:
    """Lay a tree out below a folder, as hard links to its objects; what is there already is replaced."""
    for name in sorted({str(Path(path).parent) for path in tree}):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for path, content in tree.items():
        target = folder / path
        target.unlink(missing_ok=True)
        os.link(objects / content, target)


# --- environments -------------------------------------------------------------------------------------------


def public(version: str) -> str:
    """A version without its local part: ``2.11.0+cu130`` is ``2.11.0``."""
    return version.partition("+")[0]


def check_host(wanted: Mapping[str, str | None], installed: Mapping[str, str]) -> list[str]:
    """What the host lacks of ``wanted`` (package -> version, None for any), one sentence each."""
    problems = []
    for name, version in wanted.items():
        have = installed.get(name)
        if have is None:
            problems.append(f"{name}{f' {version}' if version else ''} is not installed here")
        elif version is not None and public(have) != public(version):
            problems.append(f"{name} is {have} here, {version} in the lock")
    return problems


def installed() -> dict[str, str]:
    """Package (normalised name) -> version, of the Python that runs this."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(name.lower().replace("_", "-").replace(".", "-"), distribution.version)
    return dict(sorted(found.items()))


def link_package(name: str, site: Path, brought: frozenset[str]) -> None:
    """Show the host's package ``name`` below ``site``, folder by folder where nothing brought lies in it.

    Args:
        brought: every folder (relative, "/" between) that holds something brought.

    Raises:
        BundleError: what installed the package did not list its files.
    """
    distribution = importlib.metadata.distribution(name)
    if not distribution.files:
        raise BundleError(f"{name}: its files are not listed here (no RECORD), so that it cannot be shown")
    for file in distribution.files:
        parts = file.parts
        if ".." in parts:
            continue  # console scripts
        depth = next((n for n in range(1, len(parts) + 1) if "/".join(parts[:n]) not in brought), len(parts))
        target = site.joinpath(*parts[:depth])
        if not target.exists() and not target.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(Path(str(distribution.locate_file("/".join(parts[:depth])))).resolve())


def make_environment(folder: Path, tree: Mapping[str, str], objects: Path, spec: Mapping[str, Any]) -> None:
    """Make a virtual environment of what was brought and what the host has.

    Raises:
        BundleError: another Python than the lock's, or a package that the host should have and has not.
    """
    here = ".".join(platform.python_version_tuple()[:2])
    problems = check_host(spec["host"], installed())
    if here != spec["python"]:
        problems.insert(0, f"Python is {here} here, {spec['python']} in the lock (PYTHON=… sh start.sh)")
    if problems:
        raise BundleError("; ".join(problems))
    partial = folder.with_name(folder.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    venv.EnvBuilder(symlinks=True, with_pip=False).create(partial)
    site = partial / "lib" / f"python{here}" / "site-packages"
    plant(tree, objects, site)
    brought = {str(parent) for path in tree for parent in Path(path).parents}
    for name in spec["host"]:
        link_package(name, site, frozenset(brought))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def prepare(root: Path, show: Show) -> dict[str, dict[str, Any]]:
    """Unpack every archive that is whole; environment -> its spec, of those that can be used.

    Raises:
        BundleError: a part is damaged.
    """
    usable: dict[str, dict[str, Any]] = {}
    there: set[str] = set()
    folders = sorted(
        (path for path in (root / ARCHIVES).glob("*") if path.is_dir()),
        key=lambda path: (_spec(path).get("environment") is not None, path.name),
    )
    for archive in folders:
        if absent := missing(archive):
            show(f"{archive.name}: left out: {len(absent)} of its files are not here ({absent[0]} …)")
            continue
        spec = _spec(archive)
        if lacking := set(spec["needs"]) - there:
            show(f"{archive.name}: left out: it needs {', '.join(sorted(lacking))}")
            continue
        if _unpack_once(root, archive, spec, show):
            there.add(archive.name)
            if spec["environment"] is not None:
                usable[archive.name] = spec["environment"]
    return usable


def _spec(archive: Path) -> dict[str, Any]:
    try:
        spec: dict[str, Any] = json.loads((archive / ARCHIVE).read_text(encoding="utf-8"))
    except OSError:
        return {}
    return spec


def _unpack_once(root: Path, archive: Path, spec: Mapping[str, Any], show: Show) -> bool:
    digest = hashlib.sha256((archive / SUMS).read_bytes()).hexdigest()
    done = archive / "unpacked"
    with contextlib.suppress(OSError):
        if done.read_text(encoding="utf-8") == digest:
            return True
    started = time.monotonic()
    tree = unpack(archive, root / OBJECTS)
    if spec["environment"] is None:
        plant(tree, root / OBJECTS, root)
    else:
        try:
            make_environment(root / ENVIRONMENTS / archive.name, tree, root / OBJECTS, spec["environment"])
        except BundleError as error:
            show(f"{archive.name}: left out: {error}")
            return False
    done.write_text(digest, encoding="utf-8")
    show(f"{archive.name}: unpacked in {time.monotonic() - started:.0f} s")
    return True


# --- the host -----------------------------------------------------------------------------------------------


def gpus_here() -> list[dict[str, str]]:
    """Name, driver and memory of each NVIDIA GPU of this machine, as its driver says."""
    fields = ("name", "driver_version", "memory.total")
    try:
        said = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    rows = (
        dict(zip(fields, (p.strip() for p in line.split(",")), strict=False)) for line in said.splitlines()
    )
    return [{"name": r["name"], "driver": r["driver_version"], "memory": r["memory.total"]} for r in rows]


def host_facts(environments: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What is measured on, for every record: machine, GPUs, Python, and the packages of each environment."""
    packages = installed()
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "kernel": platform.release(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpus": gpus_here(),
        "python": platform.python_version(),
        "packages_digest": _digest(packages),
        "environments": {
            name: {
                "lock": spec["lock"],
                "brought": spec["brought"],
                "left_out": spec.get("left_out", []),
                "variables": spec["variables"],
                "host": {package: packages.get(package) for package in spec["host"]},
            }
            for name, spec in environments.items()
        },
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# --- jobs ---------------------------------------------------------------------------------------------------


def _write_json(path: Path, value: object) -> None:
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)


def end_session(leader: int) -> None:
    """Kill every process of the session that ``leader`` started, whatever its process group."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError, ValueError):
            # The name in brackets may hold spaces; the session is the fourth field after it.
            if int((entry / "stat").read_text().rpartition(")")[2].split()[3]) == leader:
                os.kill(int(entry.name), signal.SIGKILL)


def left(root: Path, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The jobs of a batch that have no result yet."""
    return [job for job in batch["jobs"] if not (root / job["out"] / RESULT).exists()]


class _Run:
    """One run over a bundle: batches, spread over GPUs, one process a GPU at a time."""

    def __init__(
        self,
        root: Path,
        environments: Mapping[str, Mapping[str, Any]],
        worker: Callable[[str], str],
        show: Show,
    ) -> None:
        self._root, self._environments, self._worker, self._show = root, environments, worker, show
        self._running: set[int] = set()
        self._guard = threading.Lock()
        self.stopped = False
        self.unfinished = 0

    def stop(self) -> None:
        """End what runs, and start no more."""
        with self._guard:
            self.stopped = True
            running = tuple(self._running)
        for leader in running:
            end_session(leader)

    def drain(self, waiting: queue.SimpleQueue[tuple[str, dict[str, Any]]], gpu: str) -> None:
        """Run batches on one GPU until none is left."""
        while not self.stopped:
            try:
                name, batch = waiting.get_nowait()
            except queue.Empty:
                return
            self._batch(name, batch, gpu)
            with self._guard:
                write_sums(self._root / OUT)

    def _batch(self, name: str, batch: Mapping[str, Any], gpu: str) -> None:
        jobs = left(self._root, batch)
        spec = self._environments[batch["environment"]]
        log = self._root / OUT / "batches" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        ran = {
            "batch": name,
            "environment": batch["environment"],
            "lock": spec["lock"],
            "worker": batch["worker"],
            "worker_source": self._worker(batch["worker"]),
            "gpu": gpu,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        for job in jobs:
            (self._root / job["out"]).mkdir(parents=True, exist_ok=True)
            _write_json(self._root / job["out"] / RAN, ran | {"job": job["id"]})
        asked = log.with_suffix(".json")
        _write_json(asked, {**batch, "jobs": jobs})
        # A batch of one job logs to the worker's own standard error.
        log = self._root / jobs[0]["out"] / LOG if len(jobs) == 1 else log
        limit = float(batch.get("import_limit_s", IMPORT_LIMIT_S)) + float(batch["time_limit_s"]) * len(jobs)
        code, timed_out = self._process(name, batch["environment"], asked, log, jobs, gpu, limit)
        if self.stopped:
            return
        for job in left(self._root, {"jobs": jobs}):
            self.unfinished += 1
            kind = "timeout" if timed_out else "signal" if code < 0 else "exit"
            ending = f"no result within {limit:g} s" if timed_out else f"the worker left with {code}"
            said = log.read_bytes()[-1500:].decode(errors="replace")
            _write_json(
                self._root / job["out"] / RESULT,
                {
                    "outcome": "timeout" if timed_out else "signal" if code < 0 else "raised",
                    "failure": {"kind": kind, "message": f"{ending}: {said}", "where": None},
                    "measured": {}, "environment": {}, "seconds": 0.0, "peak_rss_mb": 0,
                },
            )  # fmt: skip
            self._show(f"{name}: {job.get('label', job['id'])}: {kind}")

    def _process(
        self, name: str, environment: str, asked: Path, log: Path, jobs: Sequence[Any], gpu: str, limit: float
    ) -> tuple[int, bool]:
        home = self._root / ENVIRONMENTS / environment
        scratch = self._root / "scratch" / environment
        scratch.mkdir(parents=True, exist_ok=True)
        inherited = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONHOME"}}
        variables = {
            key: value.replace("{environment}", str(home))
            .replace("{inherited}", inherited.get(key, ""))
            .strip(":")
            for key, value in self._environments[environment]["variables"].items()
        }
        path = f"{home / 'bin'}{os.pathsep}{inherited.get('PATH', os.defpath)}"
        own = {"PATH": path, "HOME": str(scratch), "VLLM_CACHE_ROOT": str(scratch / "vllm")}
        worker = self._root / "qvlfp8" / "worker" / "__main__.py"
        with log.open("ab") as errors, self._guard:
            if self.stopped:
                return 0, False
            process = subprocess.Popen(
                [str(home / "bin" / "python"), "-P", "-u", str(worker), str(asked)],
                cwd=self._root, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
                text=True, errors="replace", start_new_session=True,
                env={**inherited, **own, "CUDA_VISIBLE_DEVICES": gpu, **variables},
            )  # fmt: skip
            self._running.add(process.pid)
        late = threading.Event()

        def expire() -> None:
            late.set()
            end_session(process.pid)

        timer = threading.Timer(limit, expire)
        timer.daemon = True
        timer.start()
        self._show(f"{name}: {len(jobs)} jobs on GPU {gpu}, process {process.pid}")
        try:
            assert process.stdout is not None  # noqa: S101  # it is a pipe
            self._follow(name, process.stdout, jobs)
            process.wait()
        finally:
            timer.cancel()
            end_session(process.pid)
            process.wait()
            with self._guard:
                self._running.discard(process.pid)
        return process.returncode, late.is_set()

    def _follow(self, name: str, events: IO[str], jobs: Sequence[Mapping[str, Any]]) -> None:
        started = time.monotonic()
        done = 0
        labels = {job["id"]: job.get("label", job["id"]) for job in jobs}
        for line in events:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if event["event"] == "ready":
                self._show(f"{name}: ready after {event['seconds']} s")
            elif event["event"] == "end":
                done += 1
                out = next(job["out"] for job in jobs if job["id"] == event["job"])
                result = json.loads((self._root / out / RESULT).read_text(encoding="utf-8"))
                why = result["failure"]["message"].splitlines()[:1] if result["failure"] else []
                self._show(
                    f"{name}: {done}/{len(jobs)} {labels[event['job']]} {result['outcome']}"
                    f" {time.monotonic() - started:.0f} s {' '.join(why)[:160]}".rstrip()
                )


def write_sums(folder: Path) -> None:
    """List every file below a folder with its SHA-256, in ``sha256sum``'s format."""
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SUMS):
        with path.open("rb") as stream:
            lines.append(f"{hashlib.file_digest(stream, 'sha256').hexdigest()}  {path.relative_to(folder)}\n")
    partial = folder / (SUMS + ".part")
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(folder / SUMS)


def _batches(
    root: Path, environments: Mapping[str, Any], only: str, show: Show
) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted((root / JOBS).glob(only)):
        batch = json.loads(path.read_text(encoding="utf-8"))
        if batch["environment"] not in environments:
            show(f"{path.stem}: not run: no environment {batch['environment']}")
        elif left(root, batch):
            yield path.stem, batch


def _worker_source(root: Path) -> Callable[[str], str]:
    sys.path.insert(0, str(root))
    of_worker: Callable[[str], str] = importlib.import_module("qvlfp8.source").of_worker
    return of_worker


def run(root: Path, *, gpus: int, only: str, show: Show) -> int:
    """Unpack what is there and run every batch that has jobs left; returns how many jobs left no result.

    Raises:
        BundleError: a part is damaged.
    """
    environments = prepare(root, show)
    out = root / OUT
    out.mkdir(exist_ok=True)
    _write_json(out / HOST, host_facts(environments))
    waiting: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
    for batch in _batches(root, environments, only, show):
        waiting.put(batch)
    if waiting.empty():
        show("no job is left to run")
        write_sums(out)
        return 0
    work = _Run(root, environments, _worker_source(root), show)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(index) for index in range(gpus)]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: work.stop())
    threads = [threading.Thread(target=work.drain, args=(waiting, name)) for name in names[:gpus]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    write_sums(out)
    return 130 if work.stopped else work.unfinished


def main(argv: Sequence[str], root: Path | None = None) -> int:
    """``run_bundle.py [--gpus N] [--only GLOB] [--unpack]``; 0 if every job has a result of its own."""
    parser = argparse.ArgumentParser(prog="start.sh", description="Run the jobs of this bundle.")
    parser.add_argument(
        "--gpus", type=int, default=1, help="how many GPUs to use; batches are spread over them"
    )
    parser.add_argument("--only", default="*.json", help="only the batches jobs/GLOB")
    parser.add_argument("--unpack", action="store_true", help="check and unpack, run nothing")
    asked = parser.parse_args(argv)
    folder = root or Path(__file__).resolve().parent
    started = time.monotonic()

    def show(text: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {text}", flush=True)

    try:
        if asked.unpack:
            prepare(folder, show)
            return 0
        return min(run(folder, gpus=asked.gpus, only=asked.only, show=show), 130)
    except BundleError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
