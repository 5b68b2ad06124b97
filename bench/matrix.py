"""How long `nox -s matrix` takes and what it leaves on disk: cold, unchanged, and with one recipe changed.

    python bench/matrix.py [--all] [--keep]

Works on a fresh clone of HEAD with an empty uv cache, an empty HOME and an empty store, and prints each
figure beside its bound. Needs nox and the network; takes as long as what it measures.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Measure, print, and fail if a bound does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", action="store_true", help="every cell, not just the default slice")
    parser.add_argument("--keep", action="store_true", help="leave the clone where it is")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="qvlfp8-bench-"))
    try:
        held = measure(work, everything=options.all)
    finally:
        if options.keep:
            print(f"kept {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)
    return 0 if held else 1


def measure(work: Path, *, everything: bool) -> bool:
    """Run each case in a clone below ``work`` and print it; True if every bound held."""
    clone = work / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    (work / "home").mkdir()
    environment = {**os.environ, "HOME": str(work / "home"), "UV_CACHE_DIR": str(work / "cache")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [
        sys.executable,
        "-m",
        "nox",
        "-s",
        "matrix",
        *(["--", "--all"] if everything else []),
    ]

    def timed(*argv: str) -> float:
        started = time.monotonic()
        with (work / "log.txt").open("ab") as log:
            done = subprocess.run(argv, cwd=clone, env=environment, stdout=log, stderr=log, check=False)
        if done.returncode != 0:
            sys.exit(f"{argv} ended with {done.returncode}; see {work / 'log.txt'} (--keep)")
        return time.monotonic() - started

    print(f"{os.cpu_count()} CPUs; {'all cells' if everything else 'default slice'}")
    good = [
        show("cold `nox -s matrix`", timed(*command), 1500 if everything else 600, "s"),
        show("disk (uv cache, clone, home)", disk_gb(work), 15 if everything else 10, "GB"),
        show("nothing changed", min(timed(*command) for _ in range(3)), 3, "s"),
    ]
    recipe = clone / "recipes" / "lm-fp8.yaml"
    recipe.write_text(
        recipe.read_text(encoding="utf-8").replace("samples: 8", "samples: 7"), encoding="utf-8"
    )
    good.append(show("one recipe changed", timed(*command), 180, "s"))
    program = str(clone / ".nox" / "matrix" / "bin" / "qvlfp8")
    for arguments in (["--help"], ["plan"]):
        good.append(
            show(
                f"qvlfp8 {arguments[0]}",
                min(timed(program, *arguments) for _ in range(5)),
                0.5,
                "s",
            )
        )
    return all(good)


def show(what: str, value: float, bound: float, unit: str) -> bool:
    """Print one figure with its bound and their ratio."""
    print(f"{what:32} {value:9.2f} {unit:2}  bound {bound:7g}  ratio {value / bound:5.2f}", flush=True)
    return value <= bound


def disk_gb(folder: Path) -> float:
    """Bytes on disk below a folder, each hard-linked file once, in 10^9."""
    done = subprocess.run(["du", "-s", "-B1", str(folder)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0]) / 1e9


if __name__ == "__main__":
    sys.exit(main())
