"""uv: resolving locks and filling virtual environments from them.

uv does not read pip's settings, while a user's mirror is often named in them alone; what pip's
environment variables say is passed on. torch comes as a CPU wheel: from a local folder of
``PIP_FIND_LINKS`` or ``UV_FIND_LINKS`` that has it, else from PyTorch's own CPU index, which uv knows.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qvlfp8.engine.process import Processes
from qvlfp8.errors import (
    BuildError,
    IndexUnreachableError,
    PackageMissingError,
    QvlError,
    StoreWriteError,
    UnresolvableError,
)
from qvlfp8.locks import Lock, Request

BUILT_FROM_SOURCE = "vllm"
"""The one package that is built, from its official source distribution and without compiled code."""

_SOURCE_FLAGS = (
    "--no-build-isolation-package",
    BUILT_FROM_SOURCE,
    "--no-binary",
    BUILT_FROM_SOURCE,
    # Part of uv's cache key: a build without compiled code must never be taken for the real one.
    "--config-settings-package",
    f"{BUILT_FROM_SOURCE}:qvlfp8=without-compiled-code",
)

_PASSED_ON = {
    "PIP_INDEX_URL": "UV_DEFAULT_INDEX",
    "PIP_EXTRA_INDEX_URL": "UV_INDEX",
    "PIP_CERT": "SSL_CERT_FILE",
}

_UNREACHABLE = (
    "error sending request",
    "Failed to fetch",
    "network connectivity is disabled",
    "dns error",
)
_UNSATISFIABLE = "No solution found when resolving dependencies"
_MISSING = ("there is no version of", "was not found in the", "Hash mismatch", "has no wheels with")
_DISK = (
    "No space left on device",
    "Read-only file system",
    "Permission denied",
    "Disk quota exceeded",
)


def find_uv() -> str:
    """uv's program: beside this Python (as an installed dependency has it), or on PATH.

    Raises:
        BuildError: it is not there.
    """
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise BuildError("uv is not installed", mend='pip install "nox[uv]"')
    return found


def find_links(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The places beside the index where packages may lie, as pip's variable names them."""
    return tuple(environment.get("PIP_FIND_LINKS", "").split())


def remote_links(environment: Mapping[str, str]) -> dict[str, str]:
    """The variable that names uv the places with an address; nothing where pip's variable names none."""
    named = [link for link in find_links(environment) if "://" in link]
    theirs = [place for place in environment.get("UV_FIND_LINKS", "").split(",") if place]
    return {"UV_FIND_LINKS": ",".join([*theirs, *named])} if named else {}


def torch_source(torch: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    """uv's flags that say where the CPU build of torch comes from."""
    places = (*find_links(environment), *environment.get("UV_FIND_LINKS", "").split(","))
    wheel = f"torch-{torch}-*.whl"
    local = any(p and "://" not in p and any(Path(p).glob(wheel)) for p in places)
    return () if local else ("--torch-backend", "cpu")


def uv_environment(environment: Mapping[str, str], **extra: str) -> dict[str, str]:
    """The caller's environment, pip's settings translated, and ``extra``."""
    translated = {
        theirs: environment[ours]
        for ours, theirs in _PASSED_ON.items()
        if environment.get(ours) and theirs not in environment
    }
    kept = {k: v for k, v in environment.items() if k not in {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME"}}
    # A company's own CA is in the system's store, which uv does not look at by itself.
    return {"UV_SYSTEM_CERTS": "true", **kept, **translated, **extra}


@dataclass(frozen=True, kw_only=True)
class Install:
    """One call of uv that installs a part of a lock."""

    arguments: tuple[str, ...]
    requirements: str
    variables: dict[str, str]
    built: bool = False
    """Built from source with what is installed already; where wheels come from does not matter to it."""

    def command(self, requirements: str, *, python: str, places: tuple[str, ...]) -> tuple[str, ...]:
        """uv's arguments: ``requirements`` is the file with them, ``python`` the environment's."""
        named = ("--requirements", requirements) if self.built else (*places, requirements)
        return (*self.arguments, "--python", python, *named)


def installs(lock: Lock) -> tuple[Install, ...]:
    """The calls that install a lock, in order: its wheels, then what must be built with them."""
    text = lock.path.read_text(encoding="utf-8")
    wheels, source = (text, "") if lock.released else split_lock(text)
    quietly = ("--quiet", "--require-hashes")
    plain = Install(arguments=("pip", "sync", *quietly), requirements=wheels, variables={})
    if not source:
        return (plain,)
    built = Install(
        arguments=("pip", "install", *quietly, "--no-deps", *_SOURCE_FLAGS),
        requirements=source,
        variables=_built_as(lock.versions()[BUILT_FROM_SOURCE]),
        built=True,
    )
    return plain, built


class Uv:
    """The few uv commands that the project uses; each is shown before it runs."""

    def __init__(self, processes: Processes, *, torch: str) -> None:
        self._processes = processes
        self._uv = find_uv()
        folders = [link for link in find_links(os.environ) if "://" not in link]
        self._links = tuple(part for link in folders for part in ("--find-links", link))
        # An address may hold credentials, which a command line shows to everybody.
        self._remote = remote_links(os.environ)
        self._torch = torch_source(torch, os.environ)

    def compile(self, asked: Request, *, builder: Path, scratch: Path) -> str:
        """Resolve a request; returns the pinned and hashed requirements.

        Args:
            builder: the interpreter that vLLM's metadata may be built with.
            scratch: a folder for the resolver's input files and log.

        Raises:
            UnresolvableError: it does not resolve; the message has uv's reason.
            IndexUnreachableError: the index does not answer.
        """
        files = {"requires": asked.requires, "override": asked.override, "exclude": asked.exclude}
        for name, lines in files.items():
            (scratch / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        made = scratch / "lock.txt"
        places = (*_SOURCE_FLAGS, *self._torch, *self._links)
        flags = ("--only-binary", ":all:") if asked.released else places
        log = scratch / "log.txt"
        try:
            self._run(
                "pip", "compile", "--quiet", "--no-header", "--generate-hashes",
                "--python", str(builder), "--python-version", asked.python,
                "--python-platform", asked.platform, "--exclude-newer", asked.exclude_newer,
                *flags,
                "--overrides", str(scratch / "override"), "--excludes", str(scratch / "exclude"),
                "--output-file", str(made), str(scratch / "requires"),
                log=log,
                extra=_built_as(_vllm_version(asked.requires)) | ({} if asked.released else self._remote),
            )  # fmt: skip
        except (PackageMissingError, BuildError) as error:
            raise _unresolved(log.read_text(errors="replace"), error) from None
        return re.sub(r"(?m)^\s+# via.*\n(\s+#\s.*\n)*", "", made.read_text(encoding="utf-8"))

    def create(self, folder: Path, *, python: str, log: Path) -> None:
        """Make an empty virtual environment; uv finds that Python, or downloads it.

        Raises:
            QvlError: as for :meth:`sync`.
        """
        self._run("venv", "--quiet", "--clear", "--python", python, str(folder), log=log)

    def sync(self, folder: Path, lock: Lock, *, log: Path) -> None:
        """Install exactly the lock; what must be built is built last, with what the lock pinned for it.

        Raises:
            IndexUnreachableError: the index does not answer.
            PackageMissingError: it has not got a pinned version, or another file under its name.
            StoreWriteError: the disk refuses.
            BuildError: anything else that uv says.
        """
        places = () if lock.released else (*self._torch, *self._links)
        folder.mkdir(parents=True, exist_ok=True)
        python = str(folder / "bin" / "python")
        for number, step in enumerate(installs(lock)):
            requirements = folder / f"lock-{number}.txt"
            requirements.write_text(step.requirements, encoding="utf-8")
            command = step.command(str(requirements), python=python, places=places)
            self._run(*command, log=log, extra=step.variables | ({} if lock.released else self._remote))

    def unpack(self, requirements: Path, folder: Path, *, python: str, platform: str, log: Path) -> None:
        """Unpack hash-locked wheels, as they are released for another Python and platform, into a folder.

        Raises:
            QvlError: as for :meth:`sync`.
        """
        self._run(
            "pip", "install", "--quiet", "--target", str(folder), "--python-version", python,
            "--python-platform", platform, "--no-deps", "--require-hashes", "--only-binary", ":all:",
            "--requirements", str(requirements), log=log,
        )  # fmt: skip

    def _run(self, *arguments: str, log: Path, extra: Mapping[str, str] | None = None) -> None:
        environment = uv_environment(os.environ, **(extra or {}))
        start = log.stat().st_size if log.exists() else 0
        ended = self._processes.run([self._uv, *arguments], environment=environment, log=log)
        if ended.code != 0:
            said = log.read_bytes()[start:].decode(errors="replace")
            raise understand(said, ended.code)


_NO_ANSWER = (
    "network was disabled", "network is disabled", "not found in the cache", "could not be queried",
    "401 Unauthorized", "403 Forbidden",
)  # fmt: skip
_NOT_THERE = "was not found in the package registry"


def _unresolved(said: str, error: QvlError) -> QvlError:
    """What it means that a resolution failed: only what an index said of versions is a result."""
    _, unsatisfiable, reason = said.partition(_UNSATISFIABLE)
    offline = os.environ.get("UV_OFFLINE", "").lower() in {"1", "true", "yes", "on"}
    if offline or any(mark in said for mark in _NO_ANSWER):
        return IndexUnreachableError(
            f"the package index does not answer: {error.problem}",
            mend="check network, credentials and UV_DEFAULT_INDEX (or PIP_INDEX_URL), and run again",
        )
    if not unsatisfiable or _NOT_THERE in said:
        return error
    return UnresolvableError(" ".join(reason.split()).removeprefix(": ").removeprefix("cause: "))


def understand(said: str, code: int) -> QvlError:
    """What uv's words mean: the class says whose fault it is, the message keeps the decisive lines."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    start = next((i for i, line in enumerate(lines) if line.startswith("error:")), max(0, len(lines) - 6))
    decisive = " ".join(line.removeprefix("error: ") for line in lines[start : start + 12])[:900]
    if any(mark in said for mark in _DISK):
        return StoreWriteError(
            f"the environment could not be written: {decisive}",
            mend="free some space, or make the folder writable, and run again",
        )
    if any(mark in said for mark in _UNREACHABLE):
        return IndexUnreachableError(
            f"the package index does not answer: {decisive}",
            mend="check network, proxy and UV_DEFAULT_INDEX (or PIP_INDEX_URL), and run again",
        )
    if any(mark in said for mark in _MISSING):
        return PackageMissingError(
            f"the package index has not got what the lock names: {decisive}",
            mend="use an index that has it, or change the version in matrix.yaml and run `nox -s lock`",
        )
    return BuildError(f"uv ended with {code}: {decisive or 'no message'}", mend="see the log")


def split_lock(text: str) -> tuple[str, str]:
    """The part of a lock that installs as it is, and the entry that must be built (or nothing)."""
    entries = re.split(r"(?m)^(?=[a-z0-9])", text)
    source = [entry for entry in entries if entry.startswith(f"{BUILT_FROM_SOURCE}==")]
    return "".join(entry for entry in entries if entry not in source), "".join(source)


def _built_as(vllm: str | None) -> dict[str, str]:
    return {} if vllm is None else {"VLLM_TARGET_DEVICE": "empty", "SETUPTOOLS_SCM_PRETEND_VERSION": vllm}


def _vllm_version(requires: tuple[str, ...]) -> str | None:
    return next((r.split("==")[1] for r in requires if r.startswith(f"{BUILT_FROM_SOURCE}==")), None)
