"""Images, built for real from small locks: the same twice, nothing secret in them, one package one layer.

The packages are pinned with their hashes in the committed locks; the base is made once if there is none.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import ssl
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from docker import DockerClient

from qvlfp8 import digest, images
from qvlfp8.cli import main
from qvlfp8.environments import QuantizeEnvironment
from qvlfp8.errors import BuildError, ImageError
from qvlfp8.images import base as bases
from qvlfp8.images import daemon
from qvlfp8.images.image import Image
from qvlfp8.images.listing import list_images, prune
from qvlfp8.locks import Lock
from qvlfp8.project import Project
from tests.integration.conftest import Sandbox
from tests.unit.factory import open_project

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "containers" / "locks"
ENVIRONMENT = QuantizeEnvironment(modelopt="0.0.2", transformers="0.0.2")
SMALL = ("annotated-types", "click", "idna")
OLD, NEW = "vllm-0.10.2", "vllm-0.26.0"
"""Two versions of vLLM that themselves demand another depyf each."""


def pinned(lock: str, package: str) -> str:
    """A package's entry in a committed lock, with its hashes."""
    text = (LOCKS / f"{lock}.cpu.txt").read_text()
    (entry,) = re.findall(rf"^{package}==[^\n]*\n(?:    --hash[^\n]*\n)+", text, flags=re.MULTILINE)
    return str(entry)


def write_lock(folder: Path, *entries: str, python: str = "3.11") -> Lock:
    path = folder / f"{digest.of_json(entries)[:8]}.txt"
    path.write_text(f"# python {python} · for a test\n" + "".join(entries))
    return Lock(path=path, digest=digest.of_file(path))


def small_lock(folder: Path, depyf: str) -> Lock:
    return write_lock(folder, *(pinned(OLD, name) for name in SMALL), pinned(depyf, "depyf"))


def build(lock: Lock, *, no_cache: bool = False, base: str | None = None) -> Image:
    log = lock.path.with_suffix(".log")
    log.unlink(missing_ok=True)
    return images.build(ENVIRONMENT, lock, log=log, announce=lambda _: None, no_cache=no_cache, base=base)


def layers_of(client: DockerClient, image: Image) -> list[str]:
    return list(daemon.inspect(client, image.id)["RootFS"]["Layers"])


@pytest.fixture(scope="module")
def client(docker_with_base: DockerClient) -> DockerClient:
    """The daemon, with a base in it."""
    return docker_with_base


@pytest.fixture(scope="module")
def folder(client: DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for locks, whose images are removed at the end."""
    yield tmp_path_factory.mktemp("locks")
    for image in client.images.list(filters={"label": f"qvlfp8.environment={ENVIRONMENT.id}"}):
        client.images.remove(str(image.id), force=True)


@pytest.fixture(scope="module")
def built(folder: Path) -> tuple[Lock, Image]:
    lock = small_lock(folder, OLD)
    return lock, build(lock, no_cache=True)


def test_two_builds_without_cache_give_the_same_files_layers_and_id(
    client: DockerClient, built: tuple[Lock, Image]
) -> None:
    lock, first = built
    layers = layers_of(client, first)
    client.images.remove(first.id, force=True)
    assert images.find(client, ENVIRONMENT, lock) is None
    second = build(lock, no_cache=True)
    assert second.manifest == first.manifest
    assert layers_of(client, second) == layers
    assert second.id == first.id
    assert digest.of_file(lock.path.with_name(f"{ENVIRONMENT.id}.manifest.txt")) == first.manifest


def test_what_is_built_is_found_and_not_built_again(client: DockerClient, built: tuple[Lock, Image]) -> None:
    lock, image = built
    assert images.find(client, ENVIRONMENT, lock) == build(lock)
    assert not lock.path.with_suffix(".log").exists()
    assert image.size > 0


def test_labels_and_history_tell_what_it_is(client: DockerClient, built: tuple[Lock, Image]) -> None:
    lock, image = built
    labels = daemon.inspect(client, image.id)["Config"]["Labels"]
    assert labels["qvlfp8.lock"] == lock.digest
    assert labels["qvlfp8.manifest"] == image.manifest
    assert labels["org.opencontainers.image.title"] == f"qvlfp8 {ENVIRONMENT.id}"
    history = [entry["CreatedBy"] for entry in client.images.get(image.id).history()]
    assert len([line for line in history if "depyf" in line]) == 1


def test_the_bill_of_materials_is_valid_and_has_what_the_lock_has(built: tuple[Lock, Image]) -> None:
    lock, _ = built
    written = lock.path.with_name(f"{ENVIRONMENT.id}.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(written) is None
    components = json.loads(written)["components"]
    found = {c["name"]: c["version"] for c in components if c["purl"].startswith("pkg:pypi/")}
    assert found == lock.versions()
    assert [c for c in components if c["purl"].startswith("pkg:deb/debian/python3.11@")]


def test_a_bumped_package_changes_one_layer(
    client: DockerClient, folder: Path, built: tuple[Lock, Image]
) -> None:
    _, image = built
    bumped = build(small_lock(folder, NEW))
    one, two = layers_of(client, image), layers_of(client, bumped)
    assert len(one) == len(two)
    assert len([index for index in range(len(one)) if one[index] != two[index]]) == 1


def test_a_step_is_nobody_and_can_import_what_was_installed(
    client: DockerClient, built: tuple[Lock, Image]
) -> None:
    _, image = built
    code = (
        "import os, sys, click; print(os.getuid(), os.access('/opt/env', os.W_OK));"
        "print(click.__cached__, sys.prefix)"
    )
    said = client.containers.run(image.id, ["python", "-c", code], network_mode="none", remove=True)
    first, second = said.decode().splitlines()
    assert first == "10001 False"
    assert second.endswith("/__pycache__/__init__.cpython-311.pyc /opt/env")


_LIST = """
import hashlib, pathlib
for path in sorted(pathlib.Path("/opt/env").rglob("*"), key=str):
    if path.is_symlink():
        print(f"link {path.readlink()} {path}")
    elif path.is_file():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"{path.stat().st_mode & 0o777:04o} {digest} {path}")
"""


def test_the_manifest_lists_what_the_image_holds(client: DockerClient, built: tuple[Lock, Image]) -> None:
    lock, image = built
    # Built once more with another installation in the cache: the manifest must be of the one in the image.
    again = build(lock, no_cache=True)
    said = client.containers.run(again.id, ["python", "-c", _LIST], network_mode="none", remove=True).decode()
    written = lock.path.with_name(f"{ENVIRONMENT.id}.manifest.txt").read_text()
    assert sorted(said.splitlines()) == sorted(written.splitlines())
    assert again.manifest == image.manifest


def certificates(text: str) -> set[str]:
    found = re.findall(r"-----BEGIN CERTIFICATE-----\s+(.+?)\s+-----END", text, flags=re.DOTALL)
    return {re.sub(r"\s", "", body) for body in found}


def test_no_certificate_index_address_or_credential_is_in_any_layer(
    client: DockerClient, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greps the whole exported image, base and configuration included."""
    system = Path(os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile or "/none")
    text = system.read_text(errors="replace") if system.exists() else ""
    bundle = tmp_path / "bundle.pem"
    bundle.write_text(f"{text}\n# sentinel-of-our-company-bundle\n")
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    monkeypatch.setenv("UV_INDEX_OURS_USERNAME", "sentinel-name-of-a-user")
    monkeypatch.setenv("UV_INDEX_OURS_PASSWORD", "sentinel-secret-of-a-user")
    monkeypatch.setenv("NO_PROXY", "sentinel-host.example")
    lock = write_lock(folder, pinned(OLD, "idna"), pinned(OLD, "annotated-types"))
    image = build(lock, no_cache=True)

    exported = tmp_path / "image.tar"
    with exported.open("wb") as stream:
        stream.writelines(client.images.get(image.id).save())
    public = certificates(base_bundle(exported))
    own = {body[:64].encode() for body in certificates(text) - public}
    forbidden = {b"sentinel-of-our", b"sentinel-name", b"sentinel-secret", b"sentinel-host", *own}
    hosts = {os.environ.get(name, "") for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL")}
    forbidden |= {host.encode() for host in hosts if host}
    content = exported.read_bytes()
    assert b"annotated_types" in content
    assert [word for word in forbidden if word in content] == []
    history = json.dumps(client.images.get(image.id).history())
    assert "sentinel" not in history + json.dumps(daemon.inspect(client, image.id))


def base_bundle(exported: Path) -> str:
    """The public certificates that the base has, from its layer in an exported image."""
    with tarfile.open(exported) as image:
        (entry,) = json.load(image.extractfile("manifest.json"))  # type: ignore[arg-type]
        with tarfile.open(fileobj=image.extractfile(entry["Layers"][0])) as layer:
            for name in ("./etc/ssl/certs/ca-certificates.crt", "etc/ssl/certs/ca-certificates.crt"):
                with contextlib.suppress(KeyError):
                    stream = layer.extractfile(name)
                    assert stream is not None
                    return stream.read().decode()
    raise AssertionError("the base has no certificates")


def test_a_lock_for_another_python_says_which_base_it_needs(folder: Path) -> None:
    lock = write_lock(folder, pinned(OLD, "idna"), python="3.12")
    with pytest.raises(ImageError, match=r"it has Python 3\.11, and the lock is for Python 3\.12"):
        build(lock, base=f"{bases.LOCAL}:bookworm")


def test_a_base_that_nobody_has_is_named(folder: Path) -> None:
    with pytest.raises(ImageError, match="cannot be fetched") as raised:
        build(write_lock(folder, pinned(OLD, "idna")), base="localhost:1/nobody/has:this")
    assert "nox -s base" in (raised.value.mend or "")


def test_the_classic_builder_says_what_is_missing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "docker"
    program.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Docker version 28.2.2, build e6534b4"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="lacks the buildx plugin"):
        build(write_lock(folder, pinned(OLD, "click")))


def test_an_image_on_a_named_base_is_found_where_none_is_named(client: DockerClient, folder: Path) -> None:
    lock = write_lock(folder, pinned(OLD, "click"), pinned(OLD, "idna"))
    client.images.get(f"{bases.LOCAL}:bookworm").tag("qvlfp8-test-base", "named")
    try:
        image = build(lock, base="qvlfp8-test-base:named")
        assert images.find(client, ENVIRONMENT, lock) == image
    finally:
        client.images.remove("qvlfp8-test-base:named")


def test_what_somebody_builds_on_an_image_of_ours_is_theirs(
    client: DockerClient, tmp_path: Path, built: tuple[Lock, Image]
) -> None:
    lock, image = built
    container = client.containers.create(image.id, ["python"])
    try:
        theirs = container.commit("qvlfp8-test-theirs")
    finally:
        container.remove()
    try:
        found = images.find(client, ENVIRONMENT, lock)
        assert found is not None
        assert found.id == image.id
        listed = {one.image.id for one in list_images(client, open_project(tmp_path).matrix)}
        assert image.id in listed
        assert theirs.id not in listed
    finally:
        client.images.remove("qvlfp8-test-theirs")


def test_pruning_takes_what_is_ours_and_out_of_date(
    client: DockerClient, folder: Path, tmp_path: Path, built: tuple[Lock, Image]
) -> None:
    project = open_project(tmp_path)
    lock, _ = built
    image = build(lock)
    listed = [one for one in list_images(client, project.matrix) if one.image.environment == ENVIRONMENT.id]
    (ours,) = [one for one in listed if one.image.id == image.id]
    assert not ours.current
    container = client.containers.create(image.id, ["python"])
    try:
        assert prune(client, [ours]) == ([], [ours])
    finally:
        container.remove()
    assert prune(client, [ours]) == ([ours], [])
    assert images.find(client, ENVIRONMENT, lock) is None


def test_the_command_line_lists_and_builds(sandbox: Sandbox, client: DockerClient) -> None:
    code, out, errors = sandbox.run("images", "--json")
    assert code == 0, errors
    assert [one for one in json.loads(out) if one["name"].startswith(bases.LOCAL) and one["current"]]
    code, _, errors = sandbox.run("images", DOCKER_HOST="unix:///nowhere/docker.sock")
    assert code == 14
    assert "no Docker daemon answers at unix:///nowhere/docker.sock: No such file" in errors
    code, _, errors = sandbox.run("build", "modelopt-9.9.9")
    assert code == 2
    assert "no environment 'modelopt-9.9.9'" in errors


@pytest.mark.parametrize("environment", ["modelopt-0.47.0", "vllm-0.26.0"])
def test_real_environments_are_built_from_their_locks(
    environment: str, shipped: Project, client: DockerClient
) -> None:
    """Slow where the image is not there yet: about two minutes each."""
    assert main(["build", environment, "--matrix", str(shipped.matrix.path)]) == 0
    (found,) = [
        one
        for one in list_images(client, shipped.matrix)
        if one.image.environment == environment and one.current
    ]
    assert found.cells > 0
    # A step starts twice as fast with bytecode, of what is built from source and of what it needs.
    code = "import importlib.util as u, os; print([os.path.exists(u.find_spec(n).cached) for n in names])"
    names = ("torch", "transformers", found.image.environment.partition("-")[0])
    command = ["python", "-c", f"names = {names!r}; {code}"]
    said = client.containers.run(found.image.id, command, network_mode="none", remove=True)
    assert said.decode().strip() == "[True, True, True]"


def test_environments_of_different_kinds_share_the_heaviest_layer(
    shipped: Project, client: DockerClient
) -> None:
    """torch is half of an image: what is compiled of it must not depend on who imports it."""
    for environment in ("modelopt-0.47.0", "vllm-0.26.0"):
        assert main(["build", environment, "--matrix", str(shipped.matrix.path)]) == 0
    one, other = (
        [
            layer
            for layer, entry in zip(
                layers_of(client, listed.image),
                reversed(client.images.get(listed.image.id).history()),
                strict=True,
            )
            if "torch 2.13.0+cpu" in entry["CreatedBy"]
        ]
        for listed in list_images(client, shipped.matrix)
        if listed.image.environment in {"modelopt-0.47.0", "vllm-0.26.0"} and listed.current
    )
    assert len(one) == 1
    assert one == other
