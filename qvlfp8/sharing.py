"""Work that several processes do: forks of this one. Of shares each takes what no other has taken."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

from qvlfp8.errors import WorkerError

__all__ = ["beside", "in_shares", "processes"]

Made = TypeVar("Made")


def processes() -> int:
    """How many can work at once on this machine: a fork for each of its CPUs, and not very many."""
    return min(len(os.sched_getaffinity(0)), _MOST)


_MOST = 4
"""Each fork comes to have memory of its own for what it reads."""

_END_S = 5.0
"""How long a fork may take to end what it has started."""


def in_shares(shares: int, work: Callable[[int], None], meanwhile: Callable[[], None], *, count: int) -> None:
    """Do all shares, and something else, in ``count`` processes.

    Nothing comes back of a fork: ``work`` leaves files. Which process does a share is chance; so what is
    made of it must not depend on what was done before.

    Args:
        shares: how many there are.
        work: does the one of that number.
        meanwhile: is done by this process before it takes its first share.
        count: 1: everything is done here.

    Raises:
        WorkerError: a fork was ended from outside, by want of memory for example.
        Exception: what ``work`` or ``meanwhile`` raise; the forks are ended.
    """
    taken = _FORKS.Value("i", 0)

    def mine() -> Iterator[int]:
        while True:
            with taken.get_lock():
                number = taken.value
                taken.value = number + 1
            if number >= shares:
                return
            yield number

    parent = os.getpid()

    def help_out() -> None:
        for number in mine():
            if os.getppid() != parent:
                # Killed: nobody waits for what is made here.
                return
            work(number)

    with contextlib.ExitStack() as ending, _for_forks():
        helpers = [ending.enter_context(_fork(help_out)) for _ in range(min(count - 1, shares))]
        meanwhile()
        for number in mine():
            work(number)
        for result in helpers:
            result()


@contextmanager
def beside(work: Callable[[], Made], *, count: int) -> Iterator[Callable[[], Made]]:
    """Have something else done in a fork.

    Args:
        work: what is done; its files and what it returns come back.
        count: how many processes there may be. 1: it is done here, when it is asked for.

    Yields:
        What waits for the fork, and returns what ``work`` returns.

    Raises:
        WorkerError: as of :func:`in_shares`, as soon as it is asked for.
        Exception: what ``work`` raises, then as well.
    """
    if count == 1:
        yield work
        return
    with _for_forks():
        helper = _fork(work)
    with helper as result:
        yield result


_FORKS = multiprocessing.get_context("fork")


def _fork(work: Callable[[], Made]) -> AbstractContextManager[Callable[[], Made]]:
    """Start a fork that does something; what is entered gives its result, what is left ends it."""
    receiver, sender = _FORKS.Pipe(duplex=False)
    fork = _FORKS.Process(target=_in_fork, args=(work, sender), daemon=True)
    fork.start()
    sender.close()
    return _helped(fork, receiver)


@contextmanager
def _helped(fork: ForkProcess, receiver: Connection) -> Iterator[Callable[[], Any]]:
    try:
        yield partial(_result, fork, receiver)
    finally:
        # It ends what it has started; but one that has just begun loses the signal.
        fork.terminate()
        fork.join(_END_S)
        fork.kill()
        fork.join()
        receiver.close()


def _in_fork(work: Callable[[], object], sender: Connection) -> None:
    """What a fork does; it says at its end what was returned, and what was raised or None."""
    # Ctrl-C reaches all of a terminal's processes: the first one says so, and ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    returned, raised = None, None
    try:
        returned = work()
    except Exception as error:  # raised again by who started this
        raised = _carried(error)
    sender.send((returned, raised))


def _carried(error: Exception) -> Exception:
    """The error as it arrives in another process; in words, if it cannot."""
    try:
        arrived: Exception = ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception as fault:  # of many kinds: what a class makes of being taken apart and put together
        said = f"{type(error).__name__}: {error}"
        return WorkerError(said, mend=f"report this; it could not be handed on ({type(fault).__name__})")
    return arrived


def _result(fork: ForkProcess, receiver: Connection) -> Any:
    try:
        returned, raised = receiver.recv()
    except EOFError:
        fork.join()
        raise WorkerError(
            f"a process that helped was ended (exit code {fork.exitcode})",
            mend="see whether memory is left on this machine, and run again",
        ) from None
    if raised is not None:
        raise raised
    return returned


@contextmanager
def _for_forks() -> Iterator[None]:
    """What is there before a fork stays as it is: collecting would write to all of it, and so copy it."""
    gc.freeze()
    try:
        with warnings.catch_warnings():
            # The threads are numpy's, which drew the pictures, and idle; no fork asks them for anything.
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        gc.unfreeze()
