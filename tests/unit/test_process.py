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


def test_a_killed_driver_takes_what_left_the_session_with_it(tmp_path: Path) -> None:
    arguments = [str(tmp_path / "store"), ESCAPED + "time.sleep(600)", str(tmp_path / "log")]
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert driver.stdout is not None
    with driver, driver.stdout as said:
        child = int(said.readline())
        driver.kill()
        driver.wait()
    with Store(tmp_path / "store").locked():
        assert gone(child)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


# Says who it is, and ends when it is told to.
WAITS = (
    "import os, sys, time; print(os.getpid(), flush=True)\nwhile not os.path.exists({!r}): time.sleep(0.01)"
)


class InThread:
    """A command that runs meanwhile, until a file is there."""

    def __init__(self, folder: Path) -> None:
        self.told = folder / "end"
        self.lines: list[str] = []
        self.ended: list[Exit] = []
        self._folder = folder
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        code = WAITS.format(str(self.told))
        self.ended.append(
            Processes(lambda _: None).run(
                [sys.executable, "-c", code],
                environment=dict(os.environ),
                log=self._folder / "other-log",
                on_line=self.lines.append,
            )
        )

    def __enter__(self) -> InThread:
        self._thread.start()
        wait_for(lambda: bool(self.lines))
        self.pid = int(self.lines[0])
        self.guard = parent_of(self.pid)
        return self

    def __exit__(self, *_: object) -> None:
        self.told.touch()
        self._thread.join(20)


def test_a_killed_guard_takes_its_command_with_it(tmp_path: Path) -> None:
    with InThread(tmp_path) as other:
        os.kill(other.guard, 9)
        wait_for(lambda: bool(other.ended))
        assert other.ended == [Exit(code=-9)]
        assert gone(other.pid)


def test_what_guards_come_from_may_be_killed(tmp_path: Path) -> None:
    """Commands that run go on, and another one comes for those that follow."""
    with InThread(tmp_path) as other:
        os.kill(parent_of(other.guard), 9)
        assert run("print('next')", tmp_path)[:2] == (Exit(code=0), ["next\n"])
        assert not other.ended
        assert not gone(other.pid)
    assert other.ended == [Exit(code=0)]


def test_what_never_stops_talking_is_ended_at_its_limit(tmp_path: Path) -> None:
    heard: list[str] = []

    def slowly(line: str) -> None:
        heard.append(line)
        # There is always more to read; one that is never ended meets the test's own limit.
        threading.Event().wait(0.005)
        assert len(heard) < 2_000

    ended = Processes(lambda _: None).run(
        [sys.executable, "-c", "while True: print('x' * 1000)"],
        environment=dict(os.environ), log=tmp_path / "log", on_line=slowly, time_limit_s=2.0,
    )  # fmt: skip
    assert ended.timed_out


def test_lines_come_whole_whatever_they_hold(tmp_path: Path) -> None:
    said = r"a\r\n" + "x" * 70_000 + r"\n\xff\rb"
    code = f"import sys; sys.stdout.buffer.write(b'{said}'); sys.stdout.flush()"
    assert run(code, tmp_path)[1] == ["a\n", "x" * 70_000 + "\n", "\ufffd\n", "b"]


def test_a_command_has_its_variables_and_the_callers_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More variables than a socket takes at once; no input, no other descriptor."""
    run("pass", tmp_path)  # what guards come from has been in another folder since
    monkeypatch.chdir(tmp_path)
    many = {f"V{number}": "v" * 100_000 for number in range(5)}
    code = (
        "import os, sys; print(os.getcwd(), sum(len(os.environ[f'V{n}']) for n in range(5)),"
        " 'HOME' in os.environ, sys.stdin.read() == '', sorted(map(int, os.listdir('/proc/self/fd')))[:-1])"
    )
    lines: list[str] = []
    ended = Processes(lambda _: None).run(
        [sys.executable, "-c", code], environment=many, log=tmp_path / "log", on_line=lines.append
    )
    assert (ended, lines) == (Exit(code=0), [f"{tmp_path} 500000 False True [0, 1, 2]\n"])
