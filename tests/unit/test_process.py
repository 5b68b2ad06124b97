"""Processes end whole: real ones, with children that try to stay."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qvlfp8.engine import Exit, guard
from qvlfp8.engine.process import Processes, Stopped
from qvlfp8.errors import WorkerError
from qvlfp8.store import Store

# A child in a process group of its own, as a worker's job is, that ignores what can be ignored.
STUBBORN = """
import os, signal, sys, time
if os.fork() == 0:
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(os.getpid(), flush=True)
    time.sleep(600)
time.sleep(600)
"""


def run(code: str, tmp_path: Path, **options: object) -> tuple[Exit, list[str], str]:
    lines: list[str] = []
    log = tmp_path / "log"
    ended = Processes(lambda _: None).run(
        [sys.executable, "-c", code], environment=dict(os.environ), log=log, on_line=lines.append, **options  # type: ignore[arg-type]
    )  # fmt: skip
    return ended, lines, log.read_text()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited for 10 s"
        threading.Event().wait(0.01)


def test_output_goes_to_the_caller_and_errors_to_the_log(tmp_path: Path) -> None:
    ended, lines, log = run("import sys; print('a'); print('b', file=sys.stderr); sys.exit(3)", tmp_path)
    assert (ended, lines, log) == (Exit(code=3), ["a\n"], "b\n")


def test_a_signal_is_told_apart_from_an_exit_code(tmp_path: Path) -> None:
    ended, _, _ = run("import os; os.kill(os.getpid(), 11)", tmp_path)
    assert ended == Exit(code=-11)


def test_past_its_limit_a_process_is_ended_with_children_in_other_groups(tmp_path: Path) -> None:
    # Long enough for two interpreters to start on a busy machine.
    ended, lines, _ = run(STUBBORN, tmp_path, time_limit_s=4.0)
    assert ended.timed_out
    wait_for(lambda: gone(int(lines[0])))


def test_what_a_process_leaves_behind_is_ended_with_it(tmp_path: Path) -> None:
    leaves = STUBBORN.replace(
        "    time.sleep(600)\ntime.sleep(600)",
        "    time.sleep(600)\nos.read(0, 1)\ntime.sleep(0.3)",
    )
    code = leaves.replace("print(os.getpid(), flush=True)", "print(os.getpid(), flush=True); os.close(1)")
    ended, lines, _ = run(code, tmp_path)
    assert ended == Exit(code=0)
    wait_for(lambda: gone(int(lines[0])))


# A child in a session of its own whose parent has gone: no tree and no session leads to it.
ESCAPED = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(os.getpid(), flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("then", ["time.sleep(600)", "time.sleep(1)", "os.execlp('sleep', 'sleep', '1')"])
def test_a_child_that_left_the_session_neither_stays_nor_holds_up(tmp_path: Path, then: str) -> None:
    """It holds the output open, past the limit and past the leader's own end."""
    started = time.monotonic()
    ended, lines, _ = run(ESCAPED + then, tmp_path, time_limit_s=5.0)
    assert time.monotonic() - started < 60
    assert ended.timed_out == (then == "time.sleep(600)")
    wait_for(lambda: gone(int(lines[0])))


def test_a_program_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="/none cannot be started: no such file"):
        Processes(lambda _: None).run(["/none"], environment={}, log=tmp_path / "log")


def test_stop_ends_what_runs_and_lets_nothing_start(tmp_path: Path) -> None:
    processes = Processes(lambda _: None)
    lines: list[str] = []
    raised: list[BaseException] = []

    def target() -> None:
        try:
            processes.run(
                [sys.executable, "-c", STUBBORN], environment=dict(os.environ),
                log=tmp_path / "log", on_line=lines.append,
            )  # fmt: skip
        except Stopped as stopped:
            raised.append(stopped)

    thread = threading.Thread(target=target)
    thread.start()
    wait_for(lambda: bool(lines))
    processes.stop()
    thread.join(10)
    assert raised
    wait_for(lambda: gone(int(lines[0])))
    with pytest.raises(Stopped):
        processes.run(["true"], environment={}, log=tmp_path / "log")


# Starts a command that lives on, says so, and waits to be killed.
DRIVER = """
import os, sys
from pathlib import Path
from qvlfp8.engine.process import Processes
from qvlfp8.store import Store

store = Store(Path(sys.argv[1]))
with store.locked():
    Processes(lambda _: None, held=store.held).run(
        [sys.executable, "-c", sys.argv[2]], environment=dict(os.environ), log=Path(sys.argv[3]),
        on_line=lambda line: print(line, end="", flush=True),
    )
"""


def test_a_killed_driver_takes_its_commands_with_it_and_keeps_the_store_until_then(tmp_path: Path) -> None:
    arguments = [str(tmp_path / "store"), STUBBORN, str(tmp_path / "log")]
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert driver.stdout is not None
    with driver, driver.stdout as said:
        child = int(said.readline())
        session = os.getsid(child)
        leader_of_both = set(guard.members(session))
        driver.kill()
        driver.wait()
    # No error that says that it is busy: the killed run's commands end first.
    with Store(tmp_path / "store").locked():
        assert {session, child} <= leader_of_both
        assert all(gone(pid) for pid in leader_of_both)


def test_a_command_that_is_not_there_is_not_started(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="no-such-command cannot be started"):
        Processes(lambda _: None).run(["no-such-command"], environment={}, log=tmp_path / "log")
