"""`python -m bench.real_sizes run|report`: see the package."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.real_sizes import jobs, records, report
from bench.real_sizes.processes import ROOT, Environment, OutOfTime, Processes, find_environment
from bench.real_sizes.running import MODELOPT, Host, Session
from bench.real_sizes.sizes import SIZES
from qvlfp8.worker import run_bundle


def main(argv: Sequence[str]) -> int:
    """0: all that was asked for is measured; 1: some is left for the next call; 2: usage."""
    parser = argparse.ArgumentParser(prog="python -m bench.real_sizes", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure what is left, on this host")
    run.add_argument(
        "--home", type=Path, required=True, help="where a bundle's pieces were laid; keeps state"
    )
    run.add_argument("--out", type=Path, required=True, help="records are copied here at the end")
    run.add_argument("--sizes", default="3b,7b", help=f"of {', '.join(SIZES)}")
    run.add_argument("--recipes", default="*", help="names of recipes, and bf16; all by default")
    run.add_argument("--phase", default=",".join(jobs.PHASES), help=f"of {', '.join(jobs.PHASES)}")
    run.add_argument("--modes", default=",".join(jobs.MODES), help="how vLLM runs when its speed is measured")
    run.add_argument("--gpus", type=int, default=1, help="checkpoints are spread over so many")
    run.add_argument("--together", action="store_true", help="measure speed on all of them at once, too")
    run.add_argument("--limit", type=float, default=570.0, help="seconds that this call may take")
    run.add_argument("--modelopt", default="modelopt-0.47.0", help="the environment that quantizes")
    run.add_argument("--llmcompressor", help="the environment of its recipes, which are not run without")
    run.add_argument("--vllm", default="vllm-0.26.0", help="the environment that serves")
    page = commands.add_parser("report", help="write README.md of the records below a folder")
    page.add_argument("folder", type=Path)
    asked = parser.parse_args(argv)
    if asked.command == "report":
        text = report.render(records.read(sorted(asked.folder.glob("*/*/*.json"))))
        (asked.folder / "README.md").write_text(text, encoding="utf-8")
        return 0
    return _run(asked)


def _run(asked: argparse.Namespace) -> int:
    started = time.monotonic()

    def show(text: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {text}", flush=True)

    processes = Processes(asked.home.absolute() / "scratch", started + asked.limit)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: processes.stop())
    try:
        producers = {MODELOPT: asked.modelopt, "llmcompressor": asked.llmcompressor}
        host = _host(asked.home.absolute(), producers, asked.vllm, show)
        steps = _steps(asked, host)
    except (run_bundle.BundleError, FileNotFoundError, KeyError) as error:
        print(error, file=sys.stderr)
        return 2
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = (visible.split(",") if visible else [str(index) for index in range(asked.gpus)])[: asked.gpus]
    show(f"{len(steps)} steps on {len(gpus)} of {len(host.facts['gpus'])} GPUs")
    try:
        Session(host, processes, gpus, show, together=asked.together).run(steps)
    except OutOfTime:
        show("the time of this call is over")
    finally:
        processes.stop()
        if host.records.exists():
            shutil.copytree(host.records, asked.out / host.records.name, dirs_exist_ok=True)
    return _summary(host, steps, show)


def _host(home: Path, producers: Mapping[str, str | None], vllm: str, show: Any) -> Host:
    specs = run_bundle.prepare(home, show)
    found = {
        exporter: find_environment(home, name, specs)
        for exporter, name in producers.items()
        if name is not None
    }
    return Host(
        home=home,
        producers=found,
        serve=find_environment(home, vllm, specs),
        facts=run_bundle.host_facts(specs),
        recipes=_recipes(found[MODELOPT]),
    )


def _recipes(environment: Environment) -> dict[str, Any]:
    said = subprocess.run(
        [environment.python, "-m", "bench.real_sizes.recipes"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found: dict[str, Any] = json.loads(said)
    return found


def _steps(asked: argparse.Namespace, host: Host) -> list[jobs.Step]:
    known = {"sizes": SIZES, "recipes": {jobs.BF16, *host.recipes}, "phase": jobs.PHASES, "modes": jobs.MODES}
    chosen: dict[str, list[Any]] = {}
    for option, names in known.items():
        text = getattr(asked, option)
        chosen[option] = list(names) if text == "*" else text.split(",")
        if unknown := [name for name in chosen[option] if name not in names]:
            raise KeyError(f"--{option}: no {unknown[0]}: name some of {', '.join(sorted(names))}")
    recipes = sorted(chosen["recipes"])
    return jobs.steps(chosen["sizes"], recipes, chosen["phase"], chosen["modes"])


def _summary(host: Host, steps: Sequence[jobs.Step], show: Any) -> int:
    """Say how each step ended; 1 if one is left."""
    left = 0
    for step in steps:
        path = records.path_of(host.records, step)
        if path.exists():
            record = records.read([path])[0]
            show(f"{step.name:40} {record['status']:8} {(record['why'] or '')[:100]}")
        else:
            left += 1
    show(f"{len(steps) - left} of {len(steps)} steps have a record")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
