"""Steps that hang, deaf to SIGTERM, with children in groups and sessions of their own: ended whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from qvlfp8.engine.process import MARK
from tests.integration.processed import Processed
from tests.unit.test_run import Bench

HANGS = """
import os, signal, sys, time

def prepare(jobs):
    return {}

def run(params, out):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork() == 0:
        os.setpgid(0, 0)
    elif os.fork() == 0:
        # A session of its own, and no parent that would show whose it is.
        os.setsid()
        if os.fork():
            os._exit(0)
    with open(PIDS, "a") as stream:
        stream.write(f"{os.getpid()}\\n")
    time.sleep(600)
"""


def lives(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}


def started_by_us() -> list[str]:
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and f"{MARK}=".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text())
        except OSError:
            continue
    return found


@pytest.mark.usefixtures("small_models")
def test_a_step_that_hangs_is_ended_with_everything_that_it_started(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "project")
    pids = tmp_path / "pids"
    bench.run(Processed(tmp_path / "workers", HANGS.replace("PIDS", repr(str(pids))), limit_s=6.0))
    # Two batches, whose first job hangs in three processes.
    started = [int(line) for line in pids.read_text().split()]
    assert len(started) == 6
    assert [pid for pid in started if lives(pid)] == []
    assert not [command for command in started_by_us() if str(tmp_path) in command]
    ended = {(s.status, s.because.partition(":")[0]) for v in bench.views() for s in v.stages if s.because}
    assert ("error", "timeout") in ended
    assert "fail" not in {status for status, _ in ended}
