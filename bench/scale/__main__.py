"""How planning, a run with nothing to do, and the report grow with the matrix: a figure for each size.

    python -m bench.scale plan|rerun|site [--sizes 1000,10000] [--rounds 3] [--folder DIR]

- plan: `qvlfp8 plan --all` of up to 100,000 cells, whose bound is 5 s and 1,000 MB; and what its parts take.
- rerun: `qvlfp8 matrix` with every record in the store and nothing to do; 10,000 records: 2 s. Beside it,
  what it takes where something has changed, so that all is read and judged again.
- site: `qvlfp8 table` (Markdown, JSON) and `qvlfp8 publish`, together; 10,000 cells: 20 s.

A project is made for each size (:mod:`bench.scale.making`), and each command is a process of its own, from
its start to its end: Python's start and reading matrix.yaml, recipes and locks are in every figure. The files
were just written, so that they are in the page cache. The least of the rounds is shown, by seconds of CPU, as
others' load on the machine counts less there; the bound is held against seconds by the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.cost import Cost, measure

ROOT = Path(__file__).parents[2]

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000)
UP_TO = {"plan": 100_000, "rerun": 10_000, "site": 10_000}
"""The size that the bound is of; larger ones are measured when asked for."""
SECONDS = {"plan": 5.0, "rerun": 2.0, "site": 20.0}
MEGABYTES = 1_000
HUNG = 900.0


def main() -> int:
    """Measure and print; ends with 1 if a bound does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=(*UP_TO, "make", "parts"))
    parser.add_argument("--sizes", default="")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--like", choices=tuple(UP_TO), default="plan", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",") if size]
    if options.what == "make":
        return _make(options.folder, sizes[0], options.like)
    if options.what == "parts":
        return _parts(options.folder)
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{os.cpu_count()} CPUs, load {load}; Python {sys.version.split()[0]}", flush=True)
    held = [
        _measured(options.what, size, options.rounds, options.folder)
        for size in sizes or [size for size in SIZES if size <= UP_TO[options.what]]
    ]
    return 0 if all(held) else 1


def _measured(what: str, size: int, rounds: int, folder: Path | None) -> bool:
    with tempfile.TemporaryDirectory(dir=folder, prefix="qvlfp8-bench-") as name:
        place = Path(name)
        project = place / "project"
        made = _self("make", "--folder", str(project), "--sizes", str(size), "--like", what)
        cells, records = json.loads(made)
        print(f"{cells:,} cells, {records:,} records", flush=True)
        held = True
        if what == "plan":
            held = _shown("plan --all", _least(["plan", "--all"], project, rounds), what, size)
            _shown("plan --all --json", _least(["plan", "--all", "--json"], project, rounds), what, size)
            parts = json.loads(_self("parts", "--folder", str(project)))
            print("    parts: " + ", ".join(f"{name} {told}" for name, told in parts.items()), flush=True)
        elif what == "rerun":
            # Once with all to be read, as after records were brought in; then as after a run.
            (project / ".qvlfp8" / "unchanged.json").unlink(missing_ok=True)
            _shown("matrix, all read", _least(["matrix", "--all"], project, 1), what, 0)
            held = _shown("matrix", _least(["matrix", "--all"], project, rounds), what, size)
        else:
            report = ["table", "--all", "--format", "markdown"]
            table = ["table", "--all", "--format", "json"]
            read = _least(report, project, rounds, anew=True)
            site = _least(["publish", "--out", "site"], project, rounds)
            _shown("table, all read", read, what, 0)
            _shown("table, again", _least(report, project, rounds), what, 0)
            _shown("table, JSON", _least(table, project, rounds, anew=True), what, 0)
            _shown("publish", site, what, 0)
            held = _shown("table and publish", _sum([read, site]), what, size)
            print(f"    {_weights(project / 'site')}", flush=True)
    return held


def _least(arguments: list[str], project: Path, rounds: int, *, anew: bool = False) -> Cost:
    """Of some rounds the one that took least; ``anew``: in each, nothing is known of the one before."""
    command = [sys.executable, "-m", "qvlfp8", *arguments]
    costs = []
    for _ in range(rounds):
        if anew:
            for kept in (project / ".qvlfp8").glob("unchanged*.json"):
                kept.unlink()
        costs.append(measure(command, project, hung=HUNG))
    if any(cost.code for cost in costs):
        sys.exit(f"qvlfp8 {' '.join(arguments)} ended with {costs[0].code}:\n"
                 + (project / "stderr").read_text(encoding="utf-8")[-3000:])  # fmt: skip
    return min(costs, key=lambda cost: cost.cpu)


def _sum(costs: list[Cost]) -> Cost:
    return Cost(
        cpu=sum(cost.cpu for cost in costs),
        wall=sum(cost.wall for cost in costs),
        memory=max(cost.memory for cost in costs),
        code=0,
        traceback=False,
        out=b"",
    )


def _shown(label: str, cost: Cost, what: str, size: int) -> bool:
    """Print a figure; whether it is within the bound of its size, if it has one."""
    text = f"    {label:20} {cost.cpu:6.2f} s CPU {cost.wall:6.2f} s wall {cost.memory:5.0f} MB"
    if size != UP_TO[what]:
        print(text, flush=True)
        return True
    memory = f", {MEGABYTES} MB" if what == "plan" else ""
    print(f"{text}  bound {SECONDS[what]:g} s{memory}", flush=True)
    return cost.wall <= SECONDS[what] and (what != "plan" or cost.memory <= MEGABYTES)


def _weights(site: Path) -> str:
    import gzip

    page = (site / "index.html").read_bytes()
    files = [path.stat().st_size for path in site.rglob("*") if path.is_file()]
    return (
        f"the first page: {len(page) / 1e6:.2f} MB, "
        f"{len(gzip.compress(page, 6)) / 1e6:.2f} MB packed; "
        f"the site: {len(files):,} files, {sum(files) / 1e6:.0f} MB"
    )


def _self(*arguments: str) -> str:
    """A command of this script, in a process of its own."""
    command = [sys.executable, "-m", "bench.scale", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def _make(folder: Path, size: int, what: str) -> int:
    """Make a project, and what of it is finished; prints how many cells and records there are."""
    from bench.scale import finished, making
    from qvlfp8.project import Project

    making.make(folder, making.SIZES[size])
    project = Project.open(folder / "matrix.yaml")
    records = 0 if what == "plan" else finished.finish(project, on_gpu=what == "site")
    print(json.dumps([len(project.matrix.cells), records]))
    return 0


def _parts(folder: Path) -> int:
    """What the parts of planning take, in one process: seconds of CPU."""
    from time import process_time

    from qvlfp8.project import Project

    took = {"start": process_time()}
    clock = process_time()
    project = Project.open(folder / "matrix.yaml")
    took["Project.open"] = process_time() - clock
    clock = process_time()
    cells = project.cells(everything=True)
    locks = project.locks(cells)
    took["locks"] = process_time() - clock
    clock = process_time()
    plan = project.plan(cells, locks)
    took["plan"] = process_time() - clock
    told: dict[str, str] = {name: f"{seconds:.2f} s" for name, seconds in took.items()}
    print(json.dumps({**told, "steps": f"{len(plan.steps):,}"}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
