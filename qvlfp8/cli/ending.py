"""How a command ends: its exit code, and one sentence instead of a traceback."""

from __future__ import annotations

import gc
import io
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

import typer

from qvlfp8.errors import EXIT_INTERRUPTED, EXIT_UNEXPECTED, QvlError


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def run(app: typer.Typer, arguments: list[str] | None) -> int:
    """Run a command line; returns the exit code (see :data:`qvlfp8.errors.EXIT_CODES`)."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # Plans and records are many objects that live until the end: collecting often finds nothing in them.
    gc.set_threshold(200_000, 20, 100)
    code = _code(app, arguments)
    # What is left goes with the process: looking through it once more would take as long as a second.
    gc.freeze()
    if code == EXIT_INTERRUPTED:
        print("interrupted; what was finished is kept, and the same command continues", file=sys.stderr)
    return code


def _code(app: typer.Typer, arguments: list[str] | None) -> int:
    try:
        code: Any = app(args=arguments, standalone_mode=False)
    except QvlError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except typer.Exit as ended:
        return ended.exit_code
    except typer.TyperException as error:
        print(f"error: {error.format_message()}\n  mend: see `qvlfp8 --help`", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_UNEXPECTED
    return code if isinstance(code, int) else 0
