"""What engine ray costs a step: steps that do nothing, by it and as plain Ray tasks, in turns.

    python bench/ray_overhead.py [--steps 1000] [--times 3]

A step is a process of its own, as every step is: a worker with one job that measures nothing. As a plain Ray
task it is that process and nothing else. By the engine it is ordered, guarded, judged, recorded, kept on the
node, put into the shared store and taken into the driver's own, so that nothing is lost. Both have four Ray
workers, after a first round that starts them. What a Ray task costs that starts no process is printed beside
them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from qvlfp8.source import PACKAGE

BOUND = 1.5
WORKERS = 4

WORKER = '''
"""A worker that does nothing."""


def prepare(jobs):
    return {}


def run(params, out):
    return {"counts": {}, "problems": []}
'''


def main() -> int:
    """Copy the package, whose worker then does nothing, and measure in a process that imports the copy."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1000, help="of each of the two")
    parser.add_argument("--times", type=int, default=3, help="rounds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qvlfp8-bench-") as folder:
        work = Path(folder)
        copy = work / "source" / "qvlfp8"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        (copy / "worker" / "inspect.py").write_text(WORKER, encoding="utf-8")
        shutil.copy(__file__, work / "measured.py")
        script = f"import measured; measured.measure({options.steps}, {options.times})"
        environment = {
            **os.environ,
            "PYTHONPATH": f"{copy.parent}{os.pathsep}{work}",
            "QVLFP8_NODE_STORE": str(work / "node"),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        return subprocess.run(
            [sys.executable, "-c", script], cwd=work, env=environment, check=False
        ).returncode


def measure(steps: int, times: int) -> None:
    """Print seconds and their ratio; ends the process with 1 if the bound does not hold."""
    import ray

    ray.init(  # of this machine alone, whatever else runs here
        address="local",
        num_cpus=WORKERS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    took: dict[str, list[float]] = {"engine": [], "plain": [], "nothing": []}
    for number in range(times + 1):
        count = steps if number else 2 * WORKERS
        for name, run in (("engine", by_engine), ("plain", plainly), ("nothing", emptily)):
            started = time.monotonic()
            run(count, Path(f"{name}-{number}").resolve())
            seconds = time.monotonic() - started
            if number:  # the first starts the workers
                took[name].append(seconds)
                print(f"round {number}: {name:8} {count} in {seconds:.2f} s", flush=True)
    ray.shutdown()
    ratio = statistics.median(took["engine"]) / statistics.median(took["plain"])
    for name, rounds in took.items():
        print(f"{name:8} {statistics.median(rounds) / steps * 1e3:.2f} ms a step")
    print(f"engine / plain: {ratio:.2f} (bound {BOUND})")
    sys.exit(ratio > BOUND)


def by_engine(count: int, folder: Path) -> None:
    """A plan of so many steps, carried out as `--engine ray` does."""
    from qvlfp8.cluster.connect import check_nodes
    from qvlfp8.cluster.order import Setting
    from qvlfp8.cluster.place import Cluster
    from qvlfp8.cluster.shared import SharedStore
    from qvlfp8.environments import LockPolicy, Locks
    from qvlfp8.execute import TIME_LIMIT_S
    from qvlfp8.plan import Plan, Step, Work
    from qvlfp8.progress import Progress
    from qvlfp8.run import Runner
    from qvlfp8.store import Store

    steps = {}
    work = Work(stage="inspect", environment=None, params={}, inputs={})
    for number in range(count):
        digest = hashlib.sha256(f"{folder}/{number}".encode()).hexdigest()
        steps[digest] = Step(work=work, subject=f"nothing/{number}", digest=digest)
    plan = Plan(cells=(), steps=steps, stages={}, builds={})
    store, shared = Store(folder), SharedStore(f"file://{folder}/shared")
    policy = LockPolicy()
    locks = Locks(
        python="3.11", platform="-", torch="-", exclude_newer="2026-01-01T00:00:00Z", quantize=policy,
        serve=policy,
    )  # fmt: skip
    setting = Setting(shared=shared.url, inside="venv", node_store=None, settings=locks, limits=TIME_LIMIT_S)
    with store.locked():
        place = Cluster(
            plan,
            nodes=check_nodes(shared, setting, announce=print),
            store=store,
            shared=shared,
            environments={},
            locks={},
            resources=(),
            setting=setting,
            progress=Progress(),
        )
        Runner(plan, place, progress=Progress(), lookup=place.record).run()
    # A step that read nothing is no evidence, and the store would not give its record out.
    passed = [path for path in folder.glob("steps/*/*/record.json") if '"status": "pass"' in path.read_text()]
    if len(passed) != count:
        raise RuntimeError(f"{len(passed)} of {count} steps passed")


def plainly(count: int, folder: Path) -> None:
    """The same worker as a process of a plain Ray task, each with its own spec and output."""
    import ray

    from qvlfp8.source import PACKAGE as COPY

    main_file = str(COPY / "worker" / "__main__.py")

    @ray.remote(num_cpus=1)
    def plain(number: int) -> int:
        out = folder / str(number)
        out.mkdir(parents=True)
        spec = out / "spec.json"
        job = {"id": str(number), "out": str(out), "params": {}}
        spec.write_text(json.dumps({"worker": "inspect", "time_limit_s": 60.0, "jobs": [job]}))
        done = subprocess.run([sys.executable, "-P", main_file, str(spec)], capture_output=True, check=False)
        return done.returncode

    if any(ray.get([plain.remote(number) for number in range(count)])):
        raise RuntimeError("a worker failed")
    if len(list(folder.glob("*/result.json"))) != count:
        raise RuntimeError("a worker left no result")


def emptily(count: int, _folder: Path) -> None:
    """As many Ray tasks that start no process."""
    import ray

    @ray.remote(num_cpus=1)
    def nothing() -> None:
        return None

    ray.get([nothing.remote() for _ in range(count)])


if __name__ == "__main__":
    sys.exit(main())
