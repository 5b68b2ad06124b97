"""What several processes do: what comes back of a fork, and that none is left."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from qvlfp8.errors import UsageError, WorkerError
from qvlfp8.sharing import beside, in_shares


def test_what_another_process_raises_is_raised_here(tmp_path: Path) -> None:
    main = os.getpid()
    tried = tmp_path / "tried"

    def work(_number: int) -> None:
        if os.getpid() != main:
            tried.touch()
            raise UsageError("there", mend="look there")

    def meanwhile() -> None:
        while not tried.exists():
            os.sched_yield()

    with pytest.raises(UsageError, match="there") as raised:
        in_shares(8, work, meanwhile, count=2)
    assert raised.value.mend == "look there"


class NamedError(Exception):
    """It can be taken apart, and not be put together again."""

    def __init__(self, *, name: str) -> None:
        super().__init__(f"what is the matter with {name}")


def test_what_cannot_be_handed_on_is_told_in_words(tmp_path: Path) -> None:
    main = os.getpid()
    tried = tmp_path / "tried"

    def work(_number: int) -> None:
        if os.getpid() != main:
            tried.touch()
            raise NamedError(name="it")

    def meanwhile() -> None:
        while not tried.exists():
            os.sched_yield()

    with pytest.raises(WorkerError, match="NamedError: what is the matter with it"):
        in_shares(8, work, meanwhile, count=2)


def test_a_process_that_is_ended_from_outside_is_told(tmp_path: Path) -> None:
    main = os.getpid()
    waited = tmp_path / "taken"

    def work(_number: int) -> None:
        if os.getpid() != main:
            waited.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def meanwhile() -> None:
        while not waited.exists():
            os.sched_yield()

    with pytest.raises(WorkerError, match="exit code -9"):
        in_shares(8, work, meanwhile, count=2)


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_done_beside_gives_its_result_and_what_it_raises(count: int) -> None:
    def mistaken() -> None:
        raise UsageError("a mistake", mend="none")

    with beside(os.getpid, count=count) as made:
        assert (made() == os.getpid()) is (count == 1)
    with beside(mistaken, count=count) as failed, pytest.raises(UsageError, match="a mistake"):
        failed()


def test_what_is_done_beside_is_ended_with_what_it_is_for() -> None:
    with pytest.raises(UsageError), beside(signal.pause, count=2):
        raise UsageError("a mistake", mend="none")
    assert multiprocessing.active_children() == []
