"""BuildKit through the docker client: which client can, how it is called, and what its words mean.

The SDK's own build is the classic builder, which has neither secrets nor mounts.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from qvlfp8.engine.process import Processes
from qvlfp8.engine.uv import understand as understand_uv
from qvlfp8.errors import BuildError, ImageError, QvlError, StoreWriteError
from qvlfp8.images.archive import EPOCH

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_LOOPBACK = re.compile(r"//([^/@]*@)?(localhost|127\.|\[::1\])")

_DISK = ("no space left on device", "disk quota exceeded")
_NO_BASE = (
    "failed to resolve source metadata", "failed to do request", "pull access denied", "manifest unknown",
    "failed to load metadata",
)  # fmt: skip
_NO_BUILDKIT = (
    "--mount option requires buildkit", "buildkit is enabled but", "unknown flag: --secret",
    "unable to upgrade to h2c",
)  # fmt: skip
_WRONG_MACHINE = ("exec format error", "no match for platform")
_WRONG_PYTHON = "wrong base: "


def find_client(environment: Mapping[str, str] = os.environ) -> str:
    """A docker client program that builds with BuildKit: the first on PATH that can.

    From version 23 on a client needs the buildx plugin for that; older ones have it built in.

    Raises:
        BuildError: there is none; says what is missing.
    """
    folders = environment.get("PATH", os.defpath).split(os.pathsep)
    found = [program for folder in folders if (program := shutil.which("docker", path=folder))]
    reasons = []
    for program in dict.fromkeys(str(Path(program).resolve()) for program in found):
        version = _said(program, "--version")
        match = re.search(r"version ((\d+)\.[^\s,]+)", version)
        if match is None:
            reasons.append(f"{program} does not say its version ({version.strip()!r})")
        elif int(match[2]) < 23 or "buildx" in _said(program, "buildx", "version"):
            return program
        else:
            reasons.append(f"{program} (version {match[1]}) lacks the buildx plugin")
    raise BuildError(
        "images are built with BuildKit, and no docker client here has it: "
        + ("; ".join(reasons) or "no `docker` on PATH"),
        mend="install docker-buildx-plugin (Docker's packages), docker-buildx (Ubuntu) or docker.io "
        "(Debian 12); the classic builder has no secrets and no mounts, without which credentials would "
        "stay in the image",
    )


def _said(program: str, *arguments: str) -> str:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=60)
    return done.stdout if done.returncode == 0 else ""


def build(processes: Processes, client: str, *arguments: str, log: Path) -> None:
    """Run `docker build`.

    Args:
        client: the program, of :func:`find_client`.
        log: takes what it says.

    Raises:
        QvlError: as :func:`understand` says.
    """
    start = log.stat().st_size if log.exists() else 0
    ended = processes.run(
        [client, "build", "--progress=plain", *arguments],
        environment={**os.environ, **_client_variables(os.environ)},
        log=log,
    )
    if ended.code != 0:
        raise understand(log.read_bytes()[start:].decode(errors="replace"), ended.code, log)


def _client_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """What makes any client use BuildKit, in the daemon that the SDK talks to, for one plain image."""
    here = {} if environment.get("DOCKER_HOST") else {"DOCKER_CONTEXT": "default"}
    return {
        "DOCKER_BUILDKIT": "1",
        "BUILDX_BUILDER": "default",
        "BUILDX_NO_DEFAULT_ATTESTATIONS": "1",
        "SOURCE_DATE_EPOCH": str(EPOCH),
        **here,
    }


def network(environment: Mapping[str, str]) -> Sequence[str]:
    """A proxy on this machine's loopback is only reached from this machine's own network."""
    named = (environment.get(name) or environment.get(name.lower()) or "" for name in _PROXIES)
    return ["--network=host"] if any(_LOOPBACK.search(proxy) for proxy in named) else []


def understand(said: str, code: int, log: Path) -> QvlError:
    """What the builder's words mean, by class."""
    lines = [re.sub(r"^#\d+ (\d+\.\d+ )?", "", line).strip() for line in said.splitlines()]
    lower = said.lower()
    last = next((line for line in reversed(lines) if line), "no message")[:600]
    if any(mark in lower for mark in _DISK):
        return StoreWriteError(
            f"the image could not be written: {last}",
            mend="free some space (`qvlfp8 images --prune`, `docker builder prune`), and run again",
        )
    if wrong := next((line for line in lines if line.startswith(_WRONG_PYTHON)), None):
        return ImageError(wrong, mend="name a base with that Python (--base)")
    if any(mark in lower for mark in _WRONG_MACHINE):
        return ImageError(f"the base is for another architecture: {last}", mend="name one for this machine")
    if any(mark in lower for mark in _NO_BUILDKIT):
        return BuildError(
            f"this daemon's builder is not BuildKit, which secrets and mounts need: {last}",
            mend="build with a Docker Engine of 20.10 or later; Podman takes its images: "
            "docker save qvlfp8-base IMAGE | podman load",
        )
    if any(mark in lower for mark in _NO_BASE):
        return ImageError(
            f"the base cannot be fetched: {last}",
            mend="`nox -s base` makes one here without a registry; or name one that is there (--base)",
        )
    if any(line.startswith("error: ") for line in lines):
        return understand_uv("\n".join(lines), code)
    return BuildError(f"the build ended with {code}: {last}", mend=f"see {log}")
