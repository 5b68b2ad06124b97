"""``python -m tests.survive``: the survival session."""

from __future__ import annotations

import argparse
import os
import pickle
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.survive import mix, processes, sabotage
from tests.survive.session import Session
from tests.survive.subjects import Real
from tests.survive.tally import Tally, by_circumstance, by_kind, ends


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a session; 0 if nothing was lost, doubled or left over."""
    options = _options(arguments)
    processes.adopt_orphans()
    # So that what was started for it is ended.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    started = time.monotonic()
    print(f"seed {options.seed}", flush=True)

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:7.1f} s] {text}", flush=True)

    if options.side_by_side > 1:
        return _side_by_side(options, started)
    root = Path(tempfile.mkdtemp(prefix="qvlfp8-survive-"))
    deadline = started + 60 * options.minutes
    tally = Tally()
    parts = mix.shares(options.kills, options.engine, lambda line: print(line, flush=True))
    for engine, kills in parts.items():
        if not kills:
            continue
        (root / engine).mkdir()
        subject, around = mix.make(engine, root / engine, options.sabotage)
        try:
            session = Session(subject, root / engine, seed=options.seed, say=say, tally=tally, around=around)
            until_found = options.sabotage is not None
            session.run(kills=tally.kills + kills, deadline=deadline, until_found=until_found)
        finally:
            around.close()
    if options.real and (missing := Real.missing()):
        print(f"real: not run, since {missing} is not built; `nox -s matrix` builds it")
    elif options.real:
        (root / "real").mkdir()
        session = Session(Real(), root / "real", seed=options.seed, say=say, tally=tally)
        session.run(kills=tally.kills + options.real, deadline=deadline)
    if options.part:
        options.part.write_bytes(pickle.dumps(tally))
    else:
        _report(tally, time.monotonic() - started)
    if options.keep or not tally.good:
        print(f"kept: {root}")
    else:
        shutil.rmtree(root, ignore_errors=True)
    return 0 if tally.good else 1


def _side_by_side(options: argparse.Namespace, started: float) -> int:
    """Sessions beside each other, each with a project of its own, as one."""
    count = options.side_by_side
    with tempfile.TemporaryDirectory(prefix="qvlfp8-survive-") as folder:
        parts = [Path(folder) / str(number) for number in range(count)]
        children = [
            subprocess.Popen([
                sys.executable, "-m", "tests.survive", "--engine", options.engine,
                "--part", str(part), "--side-by-side", "1",
                "--kills", str(-(-options.kills // count)), "--real", str(options.real if number == 0 else 0),
                "--seed", str(options.seed * count + number), "--minutes", str(options.minutes),
                *(["--keep"] if options.keep else []),
                *(["--sabotage", options.sabotage] if options.sabotage else []),
            ])
            for number, part in enumerate(parts)
        ]  # fmt: skip
        codes = [child.wait() for child in children]
        tally = Tally()
        for part in parts:
            if part.exists():
                tally.add(pickle.loads(part.read_bytes()))  # noqa: S301  (our own child wrote it)
    _report(tally, time.monotonic() - started)
    return 0 if tally.good and not any(codes) else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.survive", description=__doc__)
    parser.add_argument("--kills", type=int, default=300, help="how many, with drill workers [300]")
    parser.add_argument("--real", type=int, default=10, help="and with real ModelOpt and vLLM loaders [10]")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="[drawn, and printed]")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no more kills after these [60]")
    parser.add_argument(
        "--engine", choices=["all", *mix.SHARES], default="all", help="one alone [all that are at hand]"
    )
    parser.add_argument(
        "--side-by-side", type=int, default=max(1, (os.cpu_count() or 1) // 2),
        help="sessions at once, which share the kills [half of the CPUs]",
    )  # fmt: skip
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help="keep the folder with logs and stores")
    parser.add_argument(
        "--sabotage", choices=sorted(sabotage.BY_NAME), help="a fault in the copy, to see that it is found"
    )
    return parser.parse_args(arguments)


def _report(tally: Tally, seconds: float) -> None:
    for line in by_circumstance(tally):
        print(line)
    for heading, lines in (("lost", tally.lost), ("doubled", tally.doubled), ("left over", tally.orphans)):
        for line in lines:
            print(f"{heading}: {line}")
    print(f"{tally.rounds} rounds, {tally.runs} runs in {seconds:.0f} s; {ends(tally)}")
    print(by_kind(tally))
    print(tally.line)


if __name__ == "__main__":
    sys.exit(main())
