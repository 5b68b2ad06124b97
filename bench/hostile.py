"""What a hostile checkpoint costs the whole process: seconds and peak memory, beside their bounds.

    python bench/hostile.py [--only GLOB] [--folder DIR] [-- COMMAND ...]

The command is `qvlfp8 repair {folder} {out}`; another one is given after `--`, with these two placeholders.
Ends with 1 if a case takes more than 1 s or 300 MB, is killed, prints a traceback, or (for `repair`) ends
with another exit code than the tests ask for. The bound is held against seconds of CPU, the least of three
runs, as others' load on the machine does not count there; the least wall time stands beside. Ten seconds of
it end a run as hung.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.cost import measure
from tests.unit.hostile import CASES, victim

SECONDS, MEGABYTES, HUNG = 1.0, 300, 10.0
RUNS = 3
REPAIR = [sys.executable, "-m", "qvlfp8", "repair", "{folder}", "{out}"]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="*")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--make", default=None, help=argparse.SUPPRESS)
    parser.add_argument("command", nargs="*", default=REPAIR)
    options = parser.parse_args()
    if options.make is not None:
        next(case for case in CASES if case.name == options.make).make(victim(options.folder))
        return 0
    exceeded = wrong = 0
    worst_seconds = worst_memory = 0.0
    cases = [case for case in CASES if fnmatchcase(case.name, options.only)]
    for case in cases:
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="qvlfp8-bench-") as scratch:
            root = Path(scratch)
            # In a process of its own: a child's peak memory counts its parent's size at the start.
            subprocess.run(
                [sys.executable, __file__, "--make", case.name, "--folder", root / "in"], check=True
            )
            places = {"folder": str(root / "in"), "out": str(root / "out")}
            command = [part.format_map(places) for part in options.command]
            runs = []
            for _ in range(RUNS):
                runs.append(measure(command, root, hung=HUNG))
                shutil.rmtree(root / "out", ignore_errors=True)
        seconds, wall = min(run.cpu for run in runs), min(run.wall for run in runs)
        memory, codes = max(run.memory for run in runs), {run.code for run in runs}
        over = seconds > SECONDS or memory > MEGABYTES
        odd = min(codes) < 0 or any(run.traceback for run in runs)
        odd |= options.command == REPAIR and codes != {case.code}
        exceeded, wrong = exceeded + over, wrong + odd
        worst_seconds, worst_memory = max(worst_seconds, seconds), max(worst_memory, memory)
        marks = f"{'  OVER ITS BOUND' if over else ''}{f'  ENDED WITH {codes}' if odd else ''}"
        print(
            f"{case.name:32} {seconds:5.2f} s CPU {wall:5.2f} s wall {memory:4.0f} MB  "
            f"exit {min(codes)}{marks}",
            flush=True,
        )
    print(
        f"{len(cases)} cases, {exceeded} over a bound ({SECONDS} s, {MEGABYTES} MB), "
        f"{wrong} ended otherwise; worst {worst_seconds:.2f} s CPU, {worst_memory:.0f} MB"
    )
    return 1 if exceeded or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
