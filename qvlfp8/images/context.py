"""What a build is given: the context's files, and the secrets beside it that never get into a layer."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import ssl
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from qvlfp8 import digest
from qvlfp8.engine.uv import find_links, find_uv, installs, torch_source, uv_environment
from qvlfp8.errors import BuildError, LockError
from qvlfp8.images.base import CONTAINERS
from qvlfp8.locks import Lock

ENVIRONMENT = "/opt/env"
"""Where the environment lies in an image."""

_BUILD = "/build"
_SCRIPTS = ("install.py", "layers.py", "bytecode.py")

_TORCH = (
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "torch.ao.quantization",
    "torch.distributed.fsdp",
    "torch.export",
)

_TRANSFORMERS = (
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.processing_auto",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.models.qwen2_5_vl.processing_qwen2_5_vl",
    "transformers.models.qwen2_vl.image_processing_qwen2_vl",
    "transformers.models.qwen2.tokenization_qwen2_fast",
)

_IMPORTS: Mapping[str, tuple[str, ...]] = {
    "quantize": (*_TRANSFORMERS, "modelopt.torch.quantization", "modelopt.torch.export"),
    "serve": (
        *_TRANSFORMERS,
        "vllm.entrypoints.llm",
        "vllm.entrypoints.openai.api_server",
        "vllm.model_executor.models.qwen2_5_vl",
        "vllm.model_executor.layers.quantization.modelopt",
        "vllm.model_executor.model_loader.default_loader",
        "vllm.v1.engine.core",
        "vllm.v1.engine.llm_engine",
        "vllm.v1.worker.gpu_worker",
        "vllm.v1.worker.cpu_worker",
    ),
}
"""What an environment's steps import, directly or not. What some version lacks is skipped."""

_SHARED = ("torch", "torchgen", "functorch")
"""What torch's wheel holds, whose layer environments share: what of it is compiled is the same in all."""


def bytecode(kind: str) -> tuple[tuple[str, ...], ...]:
    """The calls of containers/bytecode.py for a kind of environment."""
    shared = (*(f"--only={package}" for package in _SHARED), *_TORCH)
    own = (*(f"--but={package}" for package in _SHARED), *_IMPORTS[kind])
    return shared, own


_SETTINGS = re.compile(
    r"UV_(DEFAULT_INDEX|INDEX|INDEX_URL|EXTRA_INDEX_URL|INDEX_STRATEGY|INSECURE_HOST|HTTP_TIMEOUT"
    r"|INDEX_\w+_(USERNAME|PASSWORD))|(HTTP|HTTPS|ALL|NO)_PROXY|(http|https|all|no)_proxy"
)
"""What uv is told of the caller's variables, by secret: they name hosts and hold credentials."""

_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"
)  # fmt: skip


@contextlib.contextmanager
def folder(environment: Mapping[str, str] = os.environ) -> Iterator[Path]:
    """The empty folder of the context, for one build at a time.

    It is always the same one, by whose name BuildKit knows what it has got of it already: uv and wheels are
    sent and kept once, and not for each build.
    """
    caches = Path(environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME") or "/") / ".cache")
    place = caches / "qvlfp8" / "context"
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(mode=0o700)
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)


def python_of(lock: Lock) -> str:
    """The Python that a lock is for, such as ``3.11``.

    Raises:
        LockError: its header does not say.
    """
    match = re.search(r"^# python (3\.\d+) ", lock.path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if match is None:
        raise LockError(f"{lock.path}: its header names no Python", mend="nox -s lock")
    return match[1]


def build_digest(lock: Lock, kind: str) -> str:
    """SHA-256 of what turns a lock and a base into an image: the recipe of the build, and uv's commands.

    Where the index is, who runs it and when have no part in it.

    Raises:
        BuildError: containers/ is not there.
    """
    try:
        files = {name: digest.of_file(CONTAINERS / name) for name in ("Dockerfile", *_SCRIPTS)}
    except FileNotFoundError as error:
        raise BuildError(f"{error.filename} is missing", mend="run from a clone of the repository") from None
    steps = [[step.arguments, step.variables, step.built] for step in installs(lock)]
    return digest.of_json({"files": files, "steps": steps, "kind": kind, "bytecode": bytecode(kind)})


def write_context(
    folder: Path, lock: Lock, *, kind: str, torch: str | None, environment: Mapping[str, str] = os.environ
) -> None:
    """Fill an empty folder with what the Dockerfile mounts.

    Args:
        kind: of the environment.
        torch: the torch that the lock pins, if a CPU build of it must be found; None for released packages.

    Raises:
        BuildError: uv or containers/ is not there.
    """
    for name in _SCRIPTS:
        shutil.copyfile(CONTAINERS / name, folder / name)
    _link(Path(find_uv()).resolve(), folder / "uv")
    wheels = list(_local_wheels(lock, environment)) if torch else []
    for wheel in wheels:
        (folder / "wheels").mkdir(exist_ok=True)
        _link(wheel, folder / "wheels" / wheel.name)
    places: list[str] = []
    if torch:
        places += torch_source(torch, environment)
        places += ["--find-links", f"{_BUILD}/wheels"] if wheels else []
    steps = []
    for number, step in enumerate(installs(lock)):
        (folder / f"lock-{number}.txt").write_text(step.requirements, encoding="utf-8")
        command = step.command(
            f"{_BUILD}/lock-{number}.txt", python=f"{ENVIRONMENT}/bin/python", places=tuple(places)
        )
        steps.append({"command": command, "variables": step.variables})
    plan = {
        "python": python_of(lock),
        "environment": ENVIRONMENT,
        "steps": steps,
        "bytecode": bytecode(kind),
    }
    (folder / "plan.json").write_text(json.dumps(plan, indent=1), encoding="utf-8")


def write_secrets(folder: Path, environment: Mapping[str, str] = os.environ) -> dict[str, Path]:
    """Write the index's settings for this user alone to read; returns the secrets: id -> file."""
    given = uv_environment(environment)
    settings = {key: value for key, value in given.items() if _SETTINGS.fullmatch(key)}
    if remote := [place for place in _places(environment) if _is_url(place)]:
        settings["UV_FIND_LINKS"] = ",".join(remote)
    path = folder / "settings"
    path.touch(mode=0o600)
    path.write_text(json.dumps(settings), encoding="utf-8")
    secrets = {"settings": path}
    if bundle := _certificates(given):
        secrets["ca"] = bundle
    return secrets


def hosts(secrets: Mapping[str, Path]) -> set[str]:
    """The hosts that the settings name, which no layer may name."""
    values = json.loads(secrets["settings"].read_text(encoding="utf-8")).values()
    found = (urllib.parse.urlsplit(part).hostname for value in values for part in re.split(r"[\s,]+", value))
    return {host for host in found if host}


def _certificates(environment: Mapping[str, str]) -> Path | None:
    """The certificates that the host trusts, a company's own among them."""
    if named := environment.get("SSL_CERT_FILE"):
        return Path(named) if Path(named).is_file() else None
    if environment["UV_SYSTEM_CERTS"].lower() in {"false", "0", "no", "off"}:
        return None
    places = (ssl.get_default_verify_paths().cafile, *_BUNDLES)
    return next((Path(place) for place in places if place and Path(place).is_file()), None)


def _places(environment: Mapping[str, str]) -> tuple[str, ...]:
    return (*find_links(environment), *filter(None, environment.get("UV_FIND_LINKS", "").split(",")))


def _is_url(place: str) -> bool:
    return "://" in place


def _local_wheels(lock: Lock, environment: Mapping[str, str]) -> Iterator[Path]:
    """Wheels in local folders that the lock pins, for its Python."""
    pinned = {canonicalize_name(name): version for name, version in lock.versions().items()}
    cpython = f"cp{python_of(lock).replace('.', '')}"
    seen = set()
    for place in _places(environment):
        for path in sorted(Path(place).glob("*.whl")) if not _is_url(place) else ():
            try:
                name, version, _, tags = parse_wheel_filename(path.name)
            except InvalidWheelFilename:
                continue
            fits = any(tag.interpreter in {cpython, "py3"} or tag.abi == "abi3" for tag in tags)
            if fits and pinned.get(name) == str(version) and path.name not in seen:
                seen.add(path.name)
                yield path


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)
