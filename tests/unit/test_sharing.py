"""What several processes do: what comes back of a fork, and that none is left."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from qvlfp8.errors import UsageError, WorkerError
from qvlfp8.sharing import beside, in_shares


def in_the_fork(tmp_path: Path, act: Callable[[], None]) -> None:
    """Have the fork of :func:`in_shares` do something; this process takes no share before that has begun."""
    main, begun = os.getpid(), tmp_path / "begun"

    def work(_number: int) -> None:
        if os.getpid() != main:
            begun.touch()
            act()

    def meanwhile() -> None:
        while not begun.exists():
            os.sched_yield()

    in_shares(8, work, meanwhile, count=2)


def test_what_another_process_raises_is_raised_here(tmp_path: Path) -> None:
    def mistaken() -> None:
        raise UsageError("there", mend="look there")

    with pytest.raises(UsageError, match="there") as raised:
        in_the_fork(tmp_path, mistaken)
    assert raised.value.mend == "look there"


class NamedError(Exception):
    """It can be taken apart, and not be put together again."""

    def __init__(self, *, name: str) -> None:
        super().__init__(f"what is the matter with {name}")


def test_what_cannot_be_handed_on_is_told_in_words(tmp_path: Path) -> None:
    def mistaken() -> None:
        raise NamedError(name="it")

    with pytest.raises(WorkerError, match="NamedError: what is the matter with it"):
        in_the_fork(tmp_path, mistaken)


def test_a_process_that_is_ended_from_outside_is_told(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="exit code -9"):
        in_the_fork(tmp_path, lambda: os.kill(os.getpid(), signal.SIGKILL))


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
