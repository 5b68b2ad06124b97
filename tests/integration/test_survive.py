"""The survival session, short: a sound store survives, and of a store that is not it says what was lost.

Slow: real drivers, workers and environments are killed and started again, a second or two each time.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.loader import THOROUGH

ROOT = Path(__file__).parents[2]


def survive(*options: str) -> tuple[int, str]:
    """Run a session without its real part: exit code and output."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.survive", "--real", "0", *options],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    return ended.returncode, ended.stdout + ended.stderr


def test_a_dozen_kills_lose_nothing_and_double_nothing() -> None:
    code, said = survive("--engine", "venv", "--kills", "12", "--seed", "7")
    assert code == 0, said
    assert re.search(r"^12 kills, 0 lost, 0 doubled$", said, flags=re.MULTILINE), said
    assert "seed 7" in said


@pytest.mark.parametrize(
    ("engine", "fault", "said_of_it"),
    [
        ("venv", "record-first", "lost: "),
        ("venv", "forgets", "doubled: "),
        pytest.param(
            "ray",
            "entry-first",
            "lost: .* its entry in the shared store has no whole record",
            # Minutes; tests/integration/test_ray.py kills each part of a cluster once.
            marks=pytest.mark.skipif(not THOROUGH, reason="nox -s nightly asks a cluster"),
        ),
    ],
)
def test_a_store_or_run_that_is_not_sound_is_found_out(engine: str, fault: str, said_of_it: str) -> None:
    code, said = survive("--engine", engine, "--kills", "60", "--seed", "7", "--sabotage", fault)
    assert code == 1, said
    assert re.search(rf"^{said_of_it}", said, flags=re.MULTILINE), said
