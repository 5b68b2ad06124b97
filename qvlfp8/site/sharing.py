"""Work in shares, done by several processes: forks of this one, each taking what no other has taken."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

from qvlfp8.errors import WorkerError

__all__ = ["in_shares", "processes"]


def processes() -> int:
    """How many can work at once on this machine: a fork for each of its CPUs, and not very many."""
    return min(len(os.sched_getaffinity(0)), _MOST)


_MOST = 4
"""Each fork comes to have memory of its own for what it reads."""


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
    context = multiprocessing.get_context("fork")
    taken = context.Value("i", 0)

    def mine() -> Iterator[int]:
        while True:
            with taken.get_lock():
                number = taken.value
                taken.value = number + 1
            if number >= shares:
                return
            yield number

    forks: list[tuple[ForkProcess, Connection]] = []
    with _for_forks():
        try:
            for _ in range(min(count - 1, shares)):
                receiver, sender = context.Pipe(duplex=False)
                fork = context.Process(target=_fork, args=(mine, work, os.getpid(), sender), daemon=True)
                fork.start()
                sender.close()
                forks.append((fork, receiver))
            meanwhile()
            for number in mine():
                work(number)
            for fork, receiver in forks:
                _raise_for(fork, receiver)
        finally:
            for fork, receiver in forks:
                fork.terminate()
                fork.join()
                receiver.close()


def _fork(
    mine: Callable[[], Iterator[int]], work: Callable[[int], None], parent: int, sender: Connection
) -> None:
    """What a fork does; it says at its end what was raised, or None."""
    # Ctrl-C reaches all of a terminal's processes: the first one says so, and ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raised: Exception | None = None
    try:
        for number in mine():
            if os.getppid() != parent:
                # Killed: nobody waits for what is made here.
                return
            work(number)
    except Exception as error:  # raised again by who started this
        raised = _carried(error)
    sender.send(raised)


def _carried(error: Exception) -> Exception:
    """The error as it arrives in another process; in words, if it cannot."""
    try:
        arrived: Exception = ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception as fault:  # of many kinds: what a class makes of being taken apart and put together
        said = f"{type(error).__name__}: {error}"
        return WorkerError(said, mend=f"report this; it could not be handed on ({type(fault).__name__})")
    return arrived


def _raise_for(fork: ForkProcess, receiver: Connection) -> None:
    try:
        raised: Any = receiver.recv()
    except EOFError:
        fork.join()
        raise WorkerError(
            f"a process that helps to write the site was ended (exit code {fork.exitcode})",
            mend="see whether memory is left on this machine, and run again",
        ) from None
    if raised is not None:
        raise raised


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
