"""What a container costs a step: a step that does nothing, in engine docker and as a bare process, in turns.

    python bench/container_overhead.py [--environment modelopt-0.47.0] [--times 10]

The step is a worker with no jobs. Needs a Docker daemon and the environment's image (`qvlfp8 build`).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from qvlfp8.engine import Batch, Engine
from qvlfp8.engine.docker import DockerEngine
from qvlfp8.environments import Environment
from qvlfp8.errors import QvlError
from qvlfp8.locks import Lock, read_lock
from qvlfp8.project import Project

ROOT = Path(__file__).parents[1]
BOUND_S = 1.5
NOTHING = Batch(worker="inspect", jobs=(), time_limit_s=1.0)


def main() -> int:
    """Measure, print, and fail if the bound does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--environment", default="modelopt-0.47.0", help="its image is used")
    parser.add_argument("--times", type=int, default=10, help="of each of the two")
    options = parser.parse_args()
    project = Project.open(ROOT / "matrix.yaml")
    environment = project.environments[options.environment]
    lock = read_lock(project.matrix, environment)
    try:
        engine = DockerEngine(announce=lambda _line: None)
        if not engine.built(environment, lock):
            parser.error(f"no image of {environment.id}: `qvlfp8 build {environment.id}` first")
        with tempfile.TemporaryDirectory(prefix="qvlfp8-bench-") as folder:
            return measure(engine, environment, lock, Path(folder), options.times)
    except QvlError as error:
        parser.error(str(error))


def measure(engine: Engine, environment: Environment, lock: Lock, work: Path, times: int) -> int:
    """Run both in turns, so that the machine's other load falls on both; 0 if the bound holds."""
    inside: list[float] = []
    bare: list[float] = []
    for number in range(times + 1):
        took = (
            timed(lambda: run(engine, (environment, lock), work)),
            timed(lambda: run(engine, None, work)),
        )
        if number:  # the first of each warms the disk's cache
            inside.append(took[0])
            bare.append(took[1])
    for name, values in (("in a container", inside), ("bare process", bare)):
        print(
            f"{name:16} median {statistics.median(values):6.3f} s   {min(values):6.3f} to {max(values):6.3f}"
        )
    overhead = statistics.median(inside) - statistics.median(bare)
    print(f"{'overhead':16} median {overhead:6.3f} s   bound {BOUND_S}  ratio {overhead / BOUND_S:.2f}")
    return 0 if overhead <= BOUND_S else 1


def run(engine: Engine, where: tuple[Environment, Lock] | None, work: Path) -> None:
    """One step that does nothing; it has to end well."""
    log = work / "log.txt"
    ended = engine.run(where, NOTHING, log, lambda _event: None)
    if ended.code != 0:
        sys.exit(f"the step ended with {ended}: {log.read_text(encoding='utf-8')}")


def timed(work: Callable[[], None]) -> float:
    """Seconds."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


if __name__ == "__main__":
    sys.exit(main())
