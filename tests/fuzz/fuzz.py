"""Coverage-guided fuzzing of the checkpoint readers with Atheris (libFuzzer): ``nox -s fuzz -- [SECONDS]``.

    python -m tests.fuzz.fuzz [SECONDS] [--only TARGET] [--crashes DIR]

The time is shared among the targets. Prints for each how many inputs were tried, how many were accepted, and
how many edges they cover; an input that crashes a target is left in DIR, and the exit code is then 1. Inputs
that reached something new are kept in the corpus folder, so that the next run goes on from there.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_COVERED = re.compile(r"\bcov: (\d+)")
_TRIED = re.compile(r"stat::number_of_executed_units:\s*(\d+)")


def one(target: str, arguments: Sequence[str]) -> None:
    """Be the fuzzer of one target; libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["qvlfp8", "json"]):
        from tests.fuzz.targets import TARGETS, Bench

    bench = Bench()

    def try_one(data: bytes) -> None:
        TARGETS[target](bench, data)

    atheris.Setup([sys.argv[0], *arguments], try_one)
    atheris.Fuzz()


def run(target: str, seconds: int, crashes: Path, corpus: Path) -> bool:
    """Fuzz one target in a process of its own; says whether it stood."""
    from tests.fuzz.targets import seeds

    kept = corpus / target
    kept.mkdir(parents=True, exist_ok=True)
    crashes.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        first, work = Path(scratch, "seeds"), Path(scratch, "work")
        first.mkdir()
        work.mkdir()
        for number, seed in enumerate(seeds(target)):
            (first / f"{number}").write_bytes(seed)
        done = subprocess.run(
            [
                sys.executable, "-m", "tests.fuzz.fuzz", "--one", target, "--",
                str(kept), str(first), f"-max_total_time={seconds}", "-max_len=100000", "-timeout=10",
                "-rss_limit_mb=2000", "-print_final_stats=1", f"-artifact_prefix={crashes}/{target}-",
            ],
            cwd=_ROOT, env=os.environ | {"TMPDIR": str(work)}, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
    tried, covered = (_last(form, done.stdout) for form in (_TRIED, _COVERED))
    stood = done.returncode == 0
    print(
        f"{target:13} {tried:>9} inputs tried, {covered:>6} edges covered, "
        f"{'no crash' if stood else 'CRASHED'}",
        flush=True,
    )
    if not stood:
        print(done.stdout[-6_000:])
    return stood


def _last(form: re.Pattern[str], text: str) -> str:
    found = form.findall(text)
    return str(found[-1]) if found else "?"


def main() -> int:
    """Fuzz each target for its share of the time."""
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], sys.argv[4:])
    parser = argparse.ArgumentParser()
    parser.add_argument("seconds", nargs="?", type=int, default=60)
    parser.add_argument("--only", default=None)
    parser.add_argument("--crashes", type=Path, default=_ROOT / ".qvlfp8-fuzz" / "crashes")
    parser.add_argument("--corpus", type=Path, default=_ROOT / ".qvlfp8-fuzz" / "corpus")
    options = parser.parse_args()
    from tests.fuzz.targets import TARGETS

    chosen = [name for name in TARGETS if options.only in {None, name}]
    share = max(1, options.seconds // max(1, len(chosen)))
    stood = [run(name, share, options.crashes.resolve(), options.corpus.resolve()) for name in chosen]
    if not all(stood):
        print(f"the inputs that crashed are in {options.crashes}")
    return 0 if stood and all(stood) else 1


if __name__ == "__main__":
    sys.exit(main())
