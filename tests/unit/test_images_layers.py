"""containers/layers.py: which file goes to which layer, and that nothing but content decides."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlfp8.images.archive import EPOCH
from qvlfp8.images.base import CONTAINERS


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("layers", CONTAINERS / "layers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["layers"] = module
    spec.loader.exec_module(module)
    return module


layers = load()

TAG = sys.implementation.cache_tag


def write_environment(root: Path, **versions: str) -> Path:
    """An environment as uv leaves it, with one module and one script a package."""
    environment = root / "env"
    site = environment / "lib" / "python3.11" / "site-packages"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").symlink_to("/usr/bin/python3")
    (environment / "pyvenv.cfg").write_text("home = /usr/bin\nuv = 0.13.9\nversion_info = 3.11.2\n")
    for name, version in versions.items():
        info = site / f"{name}-{version}.dist-info"
        (site / name / "__pycache__").mkdir(parents=True)
        info.mkdir()
        (site / name / "__init__.py").write_text(f"version = {version!r}\n")
        (site / name / "__pycache__" / f"__init__.{TAG}.pyc").write_bytes(version.encode())
        (environment / "bin" / name).write_text("#!/opt/env/bin/python\n")
        (environment / "bin" / name).chmod(0o777)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.4\nName: {name.upper()}\nVersion: {version}\n"
            "License-Expression: MIT\n\nText\n"
        )
        record = [f"{name}/__init__.py,sha256=x,1", f"{name}-{version}.dist-info/METADATA,,"]
        record += [f"{name}-{version}.dist-info/RECORD,,", f"../../../bin/{name},,", "gone.py,,"]
        (info / "RECORD").write_text("\n".join(record) + "\n")
    return environment


def sort(root: Path, **versions: str) -> Path:
    """Sort such an environment; returns the folder with layers and records."""
    environment = write_environment(root, **versions)
    layers.main(environment, root / "layers", root / "records")
    return root


def content(folder: Path) -> dict[str, tuple[bytes | str, int, float]]:
    """Path -> content, mode and time of everything below a folder, paths from the environment on."""
    found: dict[str, tuple[bytes | str, int, float]] = {}
    for path in folder.rglob("*"):
        if "/env" not in str(path):
            continue
        told = path.lstat()
        data = str(path.readlink()) if path.is_symlink() else b"" if path.is_dir() else path.read_bytes()
        found[str(path).rpartition("/env")[2]] = (data, told.st_mode, told.st_mtime)
    return found


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1))
def test_every_package_has_a_layer_of_its_own_that_is_not_the_frame(name: str) -> None:
    assert layers.FRAME < layers.layer_of(name) < layers.LAYERS


def test_heavy_packages_are_alone_the_shared_ones_lowest_whatever_their_cuda() -> None:
    heavy = [layers.layer_of(name) for name in (*layers.FIRST, *layers.LAST)]
    assert len(set(heavy)) == len(heavy)
    assert heavy == sorted(heavy)
    assert layers.layer_of("torch") == 1
    assert layers.layer_of("vllm") == layers.LAYERS - 1
    assert layers.layer_of("nvidia-cudnn-cu13") == layers.layer_of("nvidia-cudnn-cu12")
    others = {layers.layer_of(f"package-{number}") for number in range(500)}
    assert not others & set(heavy)
    assert len(others) == layers.LAYERS - 1 - len(heavy)


def test_the_dockerfile_copies_every_layer_in_order() -> None:
    lines = (CONTAINERS / "Dockerfile").read_text().splitlines()
    copied = [line for line in lines if line.startswith("COPY --from=install /layers/")]
    assert copied == [f"COPY --from=install /layers/{number:02d}/ /" for number in range(layers.LAYERS)]


def test_the_time_of_files_is_the_time_of_the_image() -> None:
    assert layers.EPOCH == EPOCH


def test_files_go_to_their_packages_layer_and_what_nobody_installed_to_the_frame(tmp_path: Path) -> None:
    made = sort(tmp_path, torch="2.13.0", vllm="0.26.0")
    place = Path(str(tmp_path / "env").lstrip("/"))
    torch = made / "layers" / "01" / place
    site = torch / "lib" / "python3.11" / "site-packages"
    assert (site / "torch" / "__init__.py").exists()
    assert (site / "torch" / "__pycache__" / f"__init__.{TAG}.pyc").exists()
    assert (torch / "bin" / "torch").exists()
    assert not (site / "vllm").exists()
    frame = made / "layers" / "00" / place
    assert (frame / "bin" / "python").is_symlink()
    assert "uv = " not in (frame / "pyvenv.cfg").read_text()
    assert {path.name for path in frame.rglob("*")} == {"bin", "python", "pyvenv.cfg"}
    assert not [path for path in (tmp_path / "env").rglob("*") if not path.is_dir()]
    assert len(list((made / "layers").iterdir())) == layers.LAYERS


def test_where_a_wheel_came_from_leaves_no_trace(tmp_path: Path) -> None:
    for name, local in (("a", True), ("b", False)):
        environment = write_environment(tmp_path / name, torch="2.13.0")
        (info,) = environment.glob("lib/python3.11/site-packages/*.dist-info")
        if local:
            (info / "uv_cache.json").write_text('{"timestamp": 1}')
            record = info / "RECORD"
            record.write_text(record.read_text() + f"{info.name}/uv_cache.json,sha256=x,16\n")
        layers.main(environment, tmp_path / name / "layers", tmp_path / name / "records")
    one, two = (
        (tmp_path / name / "records" / "manifest.txt").read_text().replace(f"{tmp_path}/{name}", "")
        for name in ("a", "b")
    )
    assert one == two


def test_modes_and_times_do_not_depend_on_the_umask_or_the_clock(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        made = sort(tmp_path / "a", torch="2.13.0")
    finally:
        os.umask(before)
    other = sort(tmp_path / "b", torch="2.13.0")
    one, two = content(made / "layers" / "01"), content(other / "layers" / "01")
    assert {mode & 0o777 for _, mode, _ in one.values()} == {0o644, 0o755}
    assert {time for _, _, time in one.values()} == {EPOCH}
    assert {key: value for key, value in one.items() if "lib" in key} == {
        key: value for key, value in two.items() if "lib" in key
    }


def test_a_bumped_package_changes_its_layer_alone(tmp_path: Path) -> None:
    # fsspec and packaging share no layer; a package that shares one changes that layer and no other.
    one = sort(tmp_path / "a", torch="2.13.0", fsspec="1", packaging="1")
    two = sort(tmp_path / "b", torch="2.13.0", fsspec="2", packaging="1")
    differing = [
        number
        for number in range(layers.LAYERS)
        if content(one / "layers" / f"{number:02d}") != content(two / "layers" / f"{number:02d}")
    ]
    assert differing == [layers.layer_of("fsspec")]


def test_the_manifest_has_every_file_and_the_packages_their_sizes(tmp_path: Path) -> None:
    made = sort(tmp_path, torch="2.13.0")
    lines = (made / "records" / "manifest.txt").read_text().splitlines()
    assert lines == sorted(lines, key=lambda line: line.rpartition(" ")[2])
    assert len(lines) == 7
    assert f"link /usr/bin/python3 {tmp_path}/env/bin/python" in lines
    assert [line for line in lines if line.startswith("0755 ") and line.endswith("/env/bin/torch")]
    facts = json.loads((made / "records" / "packages.json").read_text())
    assert facts["layers"] == layers.LAYERS
    (package,) = facts["packages"]
    assert (package["name"], package["version"], package["licence"]) == ("torch", "2.13.0", "MIT")
    assert package["compiled_bytes"] == len("2.13.0")
    assert package["bytes"] > 100


def test_what_two_packages_installed_belongs_to_the_first_by_name() -> None:
    packages = [
        layers.Package(name=name, version="1", licence="", files=("shared", name)) for name in ("aa", "torch")
    ]
    assert layers.assign(packages, ["shared", "aa", "torch", "own"]) == {
        "shared": layers.layer_of("aa"), "aa": layers.layer_of("aa"), "torch": 1, "own": layers.FRAME,
    }  # fmt: skip


def test_debian_packages_are_read_from_the_bases_own_list(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text(
        "Package: gcc\nStatus: install ok installed\nArchitecture: amd64\nVersion: 4:12\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n"
    )
    assert layers.debian_packages(status) == [{"name": "gcc", "version": "4:12", "architecture": "amd64"}]
    assert layers.debian_packages(tmp_path / "none") == []


@pytest.mark.parametrize(("given", "expected"), [("Foo_Bar.baz", "foo-bar-baz"), ("a--b", "a-b")])
def test_names_are_compared_as_the_index_does(given: str, expected: str) -> None:
    assert layers.normalised(given) == expected
