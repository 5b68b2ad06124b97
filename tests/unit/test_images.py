"""Images as far as no daemon is needed: what they are made from, their ids, the context, the errors."""

from __future__ import annotations

import hashlib
import json
import stat
import tarfile
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from qvlfp8 import digest
from qvlfp8.environments import QuantizeEnvironment, ServeEnvironment
from qvlfp8.errors import (
    BuildError,
    FileFormatError,
    ImageError,
    IndexUnreachableError,
    LockError,
    PackageMissingError,
    QvlError,
    StoreWriteError,
)
from qvlfp8.images import archive, base, buildkit, context, sbom
from qvlfp8.images.image import Image, Made, labels_of, reference
from qvlfp8.locks import Lock
from qvlfp8.matrix import read_matrix

MADE = Made(environment="modelopt-0.47.0", lock="ab" * 32, base="sha256:base", build="cd" * 32)
ROOT = Path(__file__).parents[2]
LABELS = labels_of(MADE, target="cpu", manifest="ef" * 32, sbom="01" * 32, versions={"torch": "2.13.0+cpu"})
PURE = "# python 3.11 · somewhere · packages up to today\nsix==1.17.0 \\\n    --hash=sha256:00\n"
WITH_VLLM = PURE + "torch==2.13.0+cpu \\\n    --hash=sha256:01\nvllm==0.26.0 \\\n    --hash=sha256:02\n"


def write_lock(folder: Path, text: str, *, released: bool = False) -> Lock:
    path = folder / "lock.txt"
    path.write_text(text)
    return Lock(path=path, digest=digest.of_file(path), target="cuda" if released else "cpu")


def test_labels_say_what_an_image_is_made_from_and_are_read_back() -> None:
    assert Made.read(LABELS) == MADE
    assert Made.read({}) is None
    assert Made.read({**LABELS, "qvlfp8.kind": "step"}) is None
    inspected = {"Id": "sha256:1", "Size": 5, "Created": "2025-12-01T00:00:00Z", "Config": {"Labels": LABELS}}
    image = Image.read({**inspected, "Metadata": {"LastTagTime": "2026-11-22T10:00:00.5Z"}})
    assert (image.environment, image.lock, image.manifest) == ("modelopt-0.47.0", "ab" * 32, "ef" * 32)
    assert image.created.startswith("2026-11-22")
    never_named = {**inspected, "Metadata": {"LastTagTime": "0001-01-01T00:00:00Z"}}
    assert Image.read(never_named).created == "2025-12-01T00:00:00Z"


@pytest.mark.parametrize("field", ["environment", "lock", "base", "build"])
def test_an_image_serves_only_if_all_it_is_made_from_is_the_same(field: str) -> None:
    assert MADE.serves(MADE)
    assert not Made(**{**MADE.__dict__, field: "other"}).serves(MADE)


def test_an_image_on_a_named_base_serves_until_another_base_is_named() -> None:
    on_named = Made(**{**MADE.__dict__, "base": "cuda", "base_named": True})
    assert on_named.serves(MADE)
    assert not on_named.serves(Made(**{**MADE.__dict__, "base": "other", "base_named": True}))
    assert not MADE.serves(on_named)


def test_the_reference_is_a_name_that_docker_takes() -> None:
    assert reference(MADE) == f"qvlfp8/modelopt-0.47.0:{'ab' * 6}"


def test_an_archive_gives_the_id_that_follows_from_its_content(tmp_path: Path) -> None:
    layer = tmp_path / "layer.tar"
    layer.write_bytes(bytes(1024))
    made = archive.Configuration(
        layers=("sha256:below", f"sha256:{digest.of_file(layer)}"),
        made_by=("below", "above"),
        settings={"Labels": {"b": "2", "a": "1"}, "Cmd": ["python"]},
        architecture="amd64",
    )
    turned = archive.Configuration(
        layers=made.layers, made_by=made.made_by, architecture="amd64",
        settings={"Cmd": ["python"], "Labels": {"a": "1", "b": "2"}},
    )  # fmt: skip
    assert made.id == turned.id
    assert made.id != archive.Configuration(**{**made.__dict__, "architecture": "arm64"}).id
    for name in ("one.tar", "two.tar"):
        archive.write(made, tmp_path / name, layer)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as written:
        (entry,) = json.load(written.extractfile("manifest.json"))  # type: ignore[arg-type]
        configuration = written.extractfile(entry["Config"])
        assert configuration is not None
        assert f"sha256:{hashlib.sha256(configuration.read()).hexdigest()}" == made.id
        assert entry["RepoTags"] is None
        top = written.extractfile(entry["Layers"][-1])
        assert top is not None
        assert top.read() == bytes(1024)


def test_base_lock_names_a_base_by_digest_for_the_python_of_the_locks() -> None:
    pinned = base.read_lock()
    assert read_matrix(ROOT / "matrix.yaml").file.locks.python in pinned
    assert all("@sha256:" in name for name in pinned.values())


@pytest.mark.parametrize("line", ["3.11 python:3.11", "python:3.11@sha256:" + "0" * 64, "3.11 a@sha256:0"])
def test_a_bad_line_of_base_lock_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "base.lock"
    path.write_text(f"# bases\n{line}\n")
    with pytest.raises(FileFormatError, match=r"base.lock:2: .*") as raised:
        base.read_lock(path)
    assert raised.value.mend == "qvlfp8 base --refresh"


def test_a_base_for_another_machine_is_refused() -> None:
    base.check_architecture("here", base.this_architecture())
    with pytest.raises(ImageError, match="is for riscv64, and this machine is"):
        base.check_architecture("there", "riscv64")


def write_client(folder: Path, version: str, *, buildx: bool) -> str:
    folder.mkdir()
    program = folder / "docker"
    program.write_text(
        f'#!/bin/sh\ncase "$1" in\n--version) echo "Docker version {version}, build 1";;\n'
        f"buildx) {'echo github.com/docker/buildx v0.20' if buildx else 'exit 1'};;\nesac\n"
    )
    program.chmod(0o755)
    return str(program)


def test_the_first_client_that_has_buildkit_is_taken(tmp_path: Path) -> None:
    bare = write_client(tmp_path / "new", "28.2.2", buildx=False)
    plugged = write_client(tmp_path / "plugged", "29.0.0", buildx=True)
    old = write_client(tmp_path / "old", "20.10.24+dfsg1", buildx=False)
    assert buildkit.find_client({"PATH": f"{tmp_path}/new:{tmp_path}/old:{tmp_path}/plugged"}) == old
    assert buildkit.find_client({"PATH": f"{tmp_path}/plugged:{tmp_path}/old"}) == plugged
    with pytest.raises(BuildError) as raised:
        buildkit.find_client({"PATH": f"{tmp_path}/new"})
    assert f"{bare} (version 28.2.2) lacks the buildx plugin" in raised.value.problem
    assert raised.value.mend
    assert "docker-buildx-plugin" in raised.value.mend
    with pytest.raises(BuildError, match="no `docker` on PATH"):
        buildkit.find_client({"PATH": f"{tmp_path}/empty"})


UV_SAYS = "#9 12.31 error: Failed to fetch: `x`\n#9 12.31   cause: dns error\n#9 ERROR: did not complete\n"
MISSING = "#9 3.1 error: No solution found\n#9 3.1   cause: Because there is no version of six==9\n"


@pytest.mark.parametrize(
    ("said", "kind", "keeps"),
    [
        (UV_SAYS, IndexUnreachableError, "dns error"),
        (MISSING, PackageMissingError, "six==9"),
        ("#8 1.0 copying\nfailed to copy: no space left on device\n", StoreWriteError, "no space left"),
        ("#2 ERROR: python@sha256:1: failed to do request: Head: dial tcp\n", ImageError, "fetched"),
        ("ERROR: pull access denied for nobase\n", ImageError, "fetched"),
        ("#6 0.4 wrong base: it has Python 3.12, and the lock is for Python 3.11\n", ImageError, "3.12"),
        ("#6 0.1 exec /bin/sh: exec format error\n", ImageError, "another architecture"),
        ("the --mount option requires BuildKit\n", BuildError, "not BuildKit"),
        ("something else\n", BuildError, "something else"),
        ("", BuildError, "no message"),
    ],
)
def test_what_the_builder_says_decides_the_class(said: str, kind: type[QvlError], keeps: str) -> None:
    error = buildkit.understand(said, 1, Path("log.txt"))
    assert type(error) is kind
    assert keeps in error.problem
    assert error.mend


def test_a_context_has_the_lock_and_the_commands_and_no_word_of_where_the_index_is(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    fitting = "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl"
    for name in (
        fitting,
        "torch-2.13.0+cpu-cp312-cp312-linux_x86_64.whl",
        "six-1.0-py3-none-any.whl",
        "x.whl",
    ):
        (wheels / name).write_bytes(b"wheel")
    settings = {
        "PIP_INDEX_URL": "https://me:secret@index.example/simple",
        "PIP_FIND_LINKS": f"{wheels} https://links.example/wheels",
        "UV_INDEX_OURS_PASSWORD": "secret",
        "HTTPS_PROXY": "http://proxy.example:3128",
        "HOME": "/home/me",
    }
    folder, secret = tmp_path / "context", tmp_path / "secret"
    folder.mkdir()
    secret.mkdir()
    context.write_context(
        folder, write_lock(tmp_path, WITH_VLLM), kind="serve", torch="2.13.0+cpu", environment=settings
    )
    secrets = context.write_secrets(secret, settings)
    assert {path.name for path in (folder / "wheels").iterdir()} == {fitting}
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["python"] == "3.11"
    wheel_step, source_step = plan["steps"]
    assert wheel_step["command"][:2] == ["pip", "sync"]
    assert wheel_step["command"][-3:] == ["--find-links", "/build/wheels", "/build/lock-0.txt"]
    assert source_step["command"][-2:] == ["--requirements", "/build/lock-1.txt"]
    assert source_step["variables"]["VLLM_TARGET_DEVICE"] == "empty"
    shared, own = plan["bytecode"]
    assert shared == list(context.bytecode("quantize")[0])
    assert "vllm.entrypoints.llm" in own
    assert "vllm" not in (folder / "lock-0.txt").read_text()
    assert (folder / "lock-1.txt").read_text().startswith("vllm==0.26.0")
    for path in folder.iterdir():
        if path.suffix in {".json", ".txt", ".py"}:
            assert "example" not in path.read_text(), path
    told = json.loads(secrets["settings"].read_text())
    assert told == {
        "UV_DEFAULT_INDEX": settings["PIP_INDEX_URL"],
        "UV_FIND_LINKS": "https://links.example/wheels",
        "UV_INDEX_OURS_PASSWORD": "secret",
        "HTTPS_PROXY": settings["HTTPS_PROXY"],
    }
    assert stat.S_IMODE(secrets["settings"].stat().st_mode) == 0o600
    assert context.hosts(secrets) == {"index.example", "links.example", "proxy.example"}


def test_the_context_lies_in_the_same_folder_each_time_and_is_gone_afterwards(tmp_path: Path) -> None:
    with context.folder({"XDG_CACHE_HOME": str(tmp_path)}) as first:
        (first / "left").touch()
    assert not first.exists()
    with context.folder({"XDG_CACHE_HOME": str(tmp_path)}) as second:
        assert second == first
        assert list(second.iterdir()) == []
        assert stat.S_IMODE(second.stat().st_mode) == 0o700


def test_certificates_are_the_ones_named_else_the_systems_unless_turned_off(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_text("certificates")
    for number, (settings, expected) in enumerate(
        (
            ({"SSL_CERT_FILE": str(bundle)}, bundle),
            ({"PIP_CERT": str(bundle)}, bundle),
            ({"SSL_CERT_FILE": str(tmp_path / "none.pem")}, None),
            ({"UV_SYSTEM_CERTS": "false"}, None),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert context.write_secrets(folder, settings).get("ca") == expected


def test_released_packages_are_installed_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "context"
    folder.mkdir()
    lock = write_lock(tmp_path, WITH_VLLM, released=True)
    context.write_context(
        folder, lock, kind="serve", torch=None, environment={"PIP_FIND_LINKS": str(tmp_path)}
    )
    (step,) = json.loads((folder / "plan.json").read_text())["steps"]
    assert "--torch-backend" not in step["command"]
    assert "vllm==0.26.0" in (folder / "lock-0.txt").read_text()


def test_the_build_digest_follows_the_recipe_of_the_build_and_not_the_versions(tmp_path: Path) -> None:
    pure, newer = write_lock(tmp_path, PURE), PURE.replace("1.17.0", "1.18.0")
    first = context.build_digest(pure, "quantize")
    assert context.build_digest(write_lock(tmp_path, newer), "quantize") == first
    assert context.build_digest(pure, "serve") != first
    assert context.build_digest(write_lock(tmp_path, WITH_VLLM), "quantize") != first


def test_a_lock_without_a_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LockError, match="names no Python"):
        context.python_of(write_lock(tmp_path, "six==1.17.0\n"))


@pytest.mark.parametrize(
    ("proxy", "expected"),
    [
        ("http://localhost:3128", ["--network=host"]),
        ("http://me:pass@127.0.0.1:3128", ["--network=host"]),
        ("http://proxy.example:3128", []),
        ("", []),
    ],
)
def test_a_proxy_on_the_loopback_needs_this_machines_network(proxy: str, expected: list[str]) -> None:
    assert buildkit.network({"https_proxy": proxy}) == expected


def installed(**versions: str) -> sbom.Installed:
    packages = tuple(
        sbom.Package(name=name, version=version, licence="MIT", layer=1, bytes=1, compiled_bytes=0)
        for name, version in versions.items()
    )
    system = (sbom.DebianPackage(name="libc6", version="2.36-9+deb12u13", architecture="amd64"),)
    return sbom.Installed(python="3.11.2", layers=2, packages=packages, debian=system)


def test_what_is_installed_must_be_what_is_locked(tmp_path: Path) -> None:
    lock = write_lock(tmp_path, WITH_VLLM)
    sbom.check(installed(six="1.17.0", torch="2.13.0+cpu", vllm="0.26.0+empty"), lock)
    for wrong, message in (
        (installed(six="1.17.0", torch="2.13.0+cpu"), "vllm 0.26.0 is not installed"),
        (installed(six="1.16.0", torch="2.13.0+cpu", vllm="0.26.0"), "six is 1.16.0, not 1.17.0"),
        (installed(six="1.17.0", torch="2.13.0", vllm="0.26.0"), r"torch is 2.13.0, not 2.13.0\+cpu"),
        (installed(six="1.17.0", torch="2.13.0+cpu", vllm="0.26.0", wheel="1"), "wheel 1 is not in the lock"),
    ):
        with pytest.raises(BuildError, match=message):
            sbom.check(wrong, lock)


def test_the_bill_of_materials_is_valid_complete_and_always_the_same() -> None:
    found = installed(six="1.17.0", torch="2.13.0+cpu")
    written = sbom.write(MADE, found, reference(MADE))
    assert sbom.write(MADE, found, reference(MADE)) == written
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(written) is None
    bill = json.loads(written)
    assert {component["purl"] for component in bill["components"]} == {
        "pkg:pypi/six@1.17.0",
        "pkg:pypi/torch@2.13.0%2Bcpu",
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u13?arch=amd64",
    }
    assert bill["metadata"]["component"]["type"] == "container"
    other = sbom.write(Made(**{**MADE.__dict__, "lock": "00"}), found, reference(MADE))
    assert json.loads(other)["serialNumber"] != bill["serialNumber"]


def test_layers_are_shown_by_what_they_hold() -> None:
    assert installed(six="1.17.0", torch="2.13.0").by_layer() == ["-", "six 1.17.0, torch 2.13.0"]


def test_the_kinds_of_environments_are_the_targets_of_the_dockerfile() -> None:
    text = (base.CONTAINERS / "Dockerfile").read_text()
    for environment in (
        QuantizeEnvironment(modelopt="1", transformers="1"),
        ServeEnvironment(vllm="1", transformers="1"),
    ):
        assert f" AS {environment.kind}\n" in text
