"""``python -m tests.survive``: the survival session."""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.survive import processes, project, sabotage
from tests.survive.containers import Containers
from tests.survive.session import Session, Tally, spread


@dataclass(frozen=True)
class Drilled:
    """The drill's project in one engine."""

    drill: project.Drill
    engine: str

    @property
    def told(self) -> Path:
        """The drill workers' pipe."""
        return self.drill.pipe

    def command(self, store: Path, *, again: bool) -> list[str]:
        """`qvlfp8 matrix` of the copy."""
        return [*self.drill.command(store, engine=self.engine), *(["--again"] if again else [])]

    def variables(self) -> dict[str, str]:
        """Its environment."""
        return self.drill.variables()

    def prepare(self, store: Path) -> None:
        """An empty store is ready."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a session; 0 if nothing was lost, doubled or left over."""
    options = _options(arguments)
    processes.adopt_orphans()
    started = time.monotonic()
    print(f"seed {options.seed}", flush=True)

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:7.1f} s] {text}", flush=True)

    root = Path(tempfile.mkdtemp(prefix="qvlfp8-survive-"))
    (root / "drill").mkdir()
    containers = Containers() if options.engine == "docker" else None
    drill = project.make(
        root / "drill",
        sabotage.BY_NAME[options.sabotage] if options.sabotage else None,
        image=containers.image if containers else None,
    )
    session = Session(Drilled(drill, options.engine), root, seed=options.seed, say=say, containers=containers)
    tally = session.run(kills=options.kills, deadline=started + 60 * options.minutes)
    _report(tally, time.monotonic() - started)
    if options.keep or not tally.good:
        print(f"kept: {root}")
    else:
        shutil.rmtree(root, ignore_errors=True)
    return 0 if tally.good else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.survive", description=__doc__)
    parser.add_argument("--kills", type=int, default=300, help="how many, at least [300]")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="[drawn, and printed]")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no more kills after these [60]")
    parser.add_argument("--engine", choices=["venv", "docker"], default="venv")
    parser.add_argument("--keep", action="store_true", help="keep the folder with logs and stores")
    parser.add_argument(
        "--sabotage", choices=sorted(sabotage.BY_NAME), help="a fault in the copy, to see that it is found"
    )
    return parser.parse_args(arguments)


def _report(tally: Tally, seconds: float) -> None:
    for line in spread(tally):
        print(line)
    for heading, lines in (("lost", tally.lost), ("doubled", tally.doubled), ("left over", tally.orphans)):
        for line in lines:
            print(f"{heading}: {line}")
    print(
        f"{tally.rounds} rounds, {tally.runs} runs in {seconds:.0f} s; a dead driver's processes were gone "
        f"after {tally.longest_end_s:.2f} s at most; {len(tally.orphans)} left over"
    )
    print(tally.line)


if __name__ == "__main__":
    sys.exit(main())
