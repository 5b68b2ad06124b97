"""Tells the session, through a pipe in the package's folder, when a job begins and when it ends."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qvlfp8.worker import protocol

PIPE = Path(__file__).resolve().parents[1] / "told"
"""A named pipe can be written where the folder is mounted read-only, as in a container it is."""


@contextmanager
def told(stage: str) -> Iterator[None]:
    """Say that the running job begins and, unless it is killed or raises, that it ends."""
    _tell("begin", stage)
    yield
    _tell("end", stage)


def _tell(what: str, stage: str) -> None:
    who = f"{os.getpid()} {os.getsid(0)} {socket.gethostname()}"
    line = f"{what} {stage} {protocol._channel.job} {who} {time.time()}\n"
    descriptor = os.open(PIPE, os.O_WRONLY | os.O_NONBLOCK)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def work(seconds: float) -> None:
    """Take some time, as computing does."""
    time.sleep(seconds)
