"""On a GPU host: is the GPU's memory free again when a step that hangs is ended at its time limit?

    python tests/gpu/hung_step.py [--megabytes 4096] [--limit 30]

The step holds memory of the GPU in three processes: itself, one in a group of its own, one in a session of
its own that has lost its parent. All are deaf to SIGTERM and wait for a kernel that does not end by itself.
They run as every step does, by :class:`qvlfp8.engine.process.Processes`. Needs torch and `nvidia-smi`,
nothing else, and no network. Prints one line of JSON; exit code 0 if the memory is free again and no process
is left.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from qvlfp8.engine.process import Processes
from qvlfp8.worker.run_bundle import gpus_here

STEP = """
import os, signal, sys, time

megabytes = int(sys.argv[1])
signal.signal(signal.SIGTERM, signal.SIG_IGN)
kind = "leader"
if os.fork() == 0:
    os.setpgid(0, 0)
    kind = "group"
elif os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    kind = "session"

import torch

held = torch.ones(megabytes << 18, dtype=torch.float32, device="cuda")
torch.cuda.synchronize()
# Hours of work for the GPU: whoever waits for it hangs.
torch.cuda._sleep(10**13)
os.write(1, f"{kind} {os.getpid()}\\n".encode())
torch.cuda.synchronize()
time.sleep(36000)
"""

SETTLES_S = 30.0
"""How long the driver may take to give memory back after the last process has gone."""

SLACK_MB = 64
"""What the driver's own use of memory may differ by."""


def used_mb() -> int:
    """Memory used on all GPUs that are visible, in MB."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        query.append(f"--id={visible}")
    said = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout
    return sum(int(line) for line in said.split())


def lives(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}


def main() -> int:
    """Run the step, and look."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=4096, help="held by each of three processes")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds, imports of torch included")
    chosen = parser.parse_args()
    before = used_mb()
    pids: dict[str, int] = {}
    held = 0

    def on_line(line: str) -> None:
        nonlocal held
        kind, pid = line.split()
        pids[kind] = int(pid)
        held = max(held, used_mb() - before)

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        started = time.monotonic()
        ended = Processes(lambda _: None).run(
            [sys.executable, "-c", STEP, str(chosen.megabytes)],
            environment=dict(os.environ),
            log=log,
            on_line=on_line,
            time_limit_s=chosen.limit,
        )
        seconds = time.monotonic() - started
        said = log.read_text(errors="replace")[-2000:]
    left = [kind for kind, pid in pids.items() if lives(pid)]
    freed = time.monotonic()
    while (after := used_mb()) > before + SLACK_MB and time.monotonic() < freed + SETTLES_S:
        time.sleep(0.2)
    result = {
        "held_by": sorted(pids),
        "held_mb": held,
        "used_before_mb": before,
        "used_after_mb": after,
        "timed_out": ended.timed_out,
        "exit_code": ended.code,
        "seconds": round(seconds, 1),
        "limit_s": chosen.limit,
        "free_after_s": round(time.monotonic() - freed, 1),
        "left": left,
    }
    # Each holds what was asked for; less would show that nothing was on the GPU.
    good = (
        len(pids) == 3
        and held >= 3 * chosen.megabytes * 0.9
        and after <= before + SLACK_MB
        and ended.timed_out
        and not left
    )
    where = {"gpus": gpus_here(), "torch": version("torch"), "python": platform.python_version()}
    print(json.dumps({"good": good, **result, **where, **({} if good else {"log": said})}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
