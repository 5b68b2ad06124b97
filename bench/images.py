"""What images cost: a warm rebuild, a bumped package, the size over the wheels; and two builds compared.

    python bench/images.py [ENVIRONMENT ...] [--twice]

Prints each figure beside its bound, for environments [default: modelopt-0.47.0 vllm-0.26.0] that it builds if
they are not there. With --twice it builds each again without cache and compares. Needs Docker and a base.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path

from docker import DockerClient

from qvlfp8 import digest, images
from qvlfp8.environments import Environment
from qvlfp8.errors import BuildError
from qvlfp8.images import base, context, daemon
from qvlfp8.images.image import Image
from qvlfp8.locks import Lock, read_lock
from qvlfp8.project import Project

ROOT = Path(__file__).parents[1]
BUMPED = "fsspec"
"""A package that two committed locks pin in two versions, so that one can be bumped by its hashes."""


def main() -> int:
    """Measure, print, and fail if a bound does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("environments", nargs="*", default=["modelopt-0.47.0", "vllm-0.26.0"])
    parser.add_argument("--twice", action="store_true", help="build again without cache, and compare")
    options = parser.parse_args()
    project = Project.open(ROOT / "matrix.yaml")
    client = daemon.connect()
    held = []
    with tempfile.TemporaryDirectory(prefix="qvlfp8-bench-") as scratch:
        for name in options.environments:
            environment = project.environments[name]
            lock = read_lock(project.matrix, environment)
            held += measure(client, environment, lock, Path(scratch), twice=options.twice)
    return 0 if all(held) else 1


def measure(
    client: DockerClient, environment: Environment, lock: Lock, scratch: Path, *, twice: bool
) -> list[bool]:
    """Every figure of one environment."""
    image, seconds = build(environment, lock, scratch)
    print(f"{environment.id}: {image.id}, {seconds:.0f} s", flush=True)
    held = [show("warm rebuild", build(environment, lock, scratch)[1], 5, "s")]
    if twice:
        again, seconds = build(environment, lock, scratch, no_cache=True)
        print(f"{'cold build':36} {seconds:9.2f} s")
        held += [
            show("manifests that differ", again.manifest != image.manifest, 0, ""),
            show("layers that differ", len(differing(client, image, again)), 0, ""),
            show("ids that differ", again.id != image.id, 0, ""),
        ]
    if bumped := bump(lock, scratch):
        changed, seconds = build(environment, bumped, scratch)
        print(f"{f'build with {BUMPED} bumped':36} {seconds:9.2f} s")
        held.append(
            show(f"layers that differ with {BUMPED} bumped", len(differing(client, image, changed)), 1, "")
        )
        client.images.remove(changed.id, force=True)
    wheels, bytecode = installed_bytes(client, image)
    chosen = base.choose(client, context.python_of(lock), None)
    own = image.size - int(daemon.inspect(client, chosen.name)["Size"])
    print(f"{'wheels, unpacked':36} {wheels / 1e9:9.2f} GB")
    print(f"{'bytecode of what is imported':36} {bytecode / 1e9:9.2f} GB")
    held.append(show("size less base, over the wheels", own / wheels, 1.1, ""))
    return held


def build(
    environment: Environment, lock: Lock, scratch: Path, *, no_cache: bool = False
) -> tuple[Image, float]:
    """An image, and how many seconds it took."""
    started = time.monotonic()
    made = images.build(
        environment, lock, log=scratch / "log.txt", announce=lambda _: None, no_cache=no_cache
    )
    return made, time.monotonic() - started


def differing(client: DockerClient, one: Image, two: Image) -> list[int]:
    """The layers that two images do not share."""
    first, second = (daemon.inspect(client, image.id)["RootFS"]["Layers"] for image in (one, two))
    return [number for number, pair in enumerate(zip(first, second, strict=True)) if pair[0] != pair[1]]


def bump(lock: Lock, scratch: Path) -> Lock | None:
    """The lock with another version of one package; None if it has not got it."""
    entry = re.compile(rf"^{BUMPED}==[^\n]*\n(?:    --hash[^\n]*\n)+", flags=re.MULTILINE)
    text = lock.path.read_text(encoding="utf-8")
    here = entry.search(text)
    found = (
        entry.search(path.read_text(encoding="utf-8")) for path in sorted(lock.path.parent.glob("*.txt"))
    )
    other = next((match[0] for match in found if here and match and match[0] != here[0]), None)
    if here is None or other is None:
        return None
    path = scratch / lock.path.name
    path.write_text(text.replace(here[0], other), encoding="utf-8")
    return Lock(path=path, digest=digest.of_file(path), target=lock.target)


_WHEELS = """
import csv, json, pathlib
site = next(pathlib.Path("/opt/env/lib").glob("python*/site-packages"))
rows = (row for info in site.glob("*.dist-info") for row in csv.reader((info / "RECORD").open()))
seen = {(site / row[0]).resolve() for row in rows if row}
compiled = {path for path in site.rglob("*.pyc")} - seen
print(json.dumps([sum(path.stat().st_size for path in paths if path.exists()) for paths in (seen, compiled)]))
"""


def installed_bytes(client: DockerClient, image: Image) -> tuple[int, int]:
    """Bytes that the wheels unpacked to, by their own lists of files; and of the bytecode beside them."""
    said = client.containers.run(image.id, ["python", "-c", _WHEELS], network_mode="none", remove=True)
    wheels, bytecode = json.loads(said)
    return wheels, bytecode


def show(what: str, value: float, bound: float, unit: str) -> bool:
    """Print one figure with its bound."""
    print(f"{what:36} {value:9.2f} {unit:2}  bound {bound:7g}", flush=True)
    return value <= bound


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BuildError as error:
        sys.exit(f"error: {error}")
