"""Run by a serve environment's Python: vLLM is imported and made ready once, and asked in forks of it.

``python -P vllm_host.py`` reads requests, a JSON object a line, and answers with a line each; the first line
says what preflight's preparation found. Nothing that a request does to vLLM reaches the next one: it is
carried out by a child, as a job of a batch is. ``log`` of a request takes what the child prints; ``do``:

- ``batch``: carry out the preflight batch that the file ``spec`` describes.
- ``probe``: write what the module ``script`` of this package answers to ``job`` into the file ``answer``.
- ``cases``: answer ``{}``, then each line (a checkpoint, as the contract's worker takes it) with
  ``{"measured": what preflight measures}``, until an empty line.

When the child has ended, its exit ``code`` is the last answer to each.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from qvlfp8.worker import contract, generate_patches, preflight, protocol, vllm_patches
from qvlfp8.worker.vllm_patches import version_of_vllm

LIMIT_S = 900
"""For one probe, or from one case to the next; some probes take a minute."""

Facts = dict[str, Any]


def prepare() -> Facts:
    """Prepare as the preflight worker does; the CPU build, which it is not meant for, as generate does."""
    if version_of_vllm() != _version("vllm"):
        vllm_patches.PATCHES = ()
        generate_patches.apply(on_cpu=True)
        vars(preflight)["version"] = lambda name: version_of_vllm() if name == "vllm" else _version(name)
    return preflight.prepare([])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def tell(answers: TextIO, answer: object) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def batch(request: dict[str, Any], facts: Facts, _answers: TextIO) -> None:
    # It is prepared already.
    vars(preflight)["prepare"] = lambda _jobs: facts
    protocol.main([request["spec"]])


def probe(request: dict[str, Any], facts: Facts, _answers: TextIO) -> None:
    signal.alarm(LIMIT_S)
    sys.path += request["path"]
    module = importlib.import_module(f"tests.integration.{request['script']}")
    Path(request["answer"]).write_text(json.dumps(module.main(request["job"], facts)))


def cases(_request: dict[str, Any], _facts: Facts, answers: TextIO) -> None:
    tell(answers, {})
    with tempfile.TemporaryDirectory(prefix="loader-") as scratch:
        for number, line in enumerate(iter(sys.stdin.readline, "\n")):
            signal.alarm(LIMIT_S)
            # vLLM from 0.30 on remembers by path what a checkpoint holds.
            folder = Path(scratch) / str(number)
            case = json.loads(line)
            contract.write_checkpoint(folder, case["files"], case["tensors"])
            tell(answers, {"measured": contract.examine(folder, case["architectures"])})
            shutil.rmtree(folder)


DEEDS = {deed.__name__: deed for deed in (batch, probe, cases)}


def carry_out(request: dict[str, Any], facts: Facts, answers: TextIO) -> int:
    """Do it in a child; its exit code."""
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            protocol._die_with_parent()
            protocol._redirect(Path(request["log"]))
            DEEDS[request["do"]](request, facts, answers)
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # What vLLM prints is not an answer.
    os.dup2(2, 1)
    facts = prepare()
    tell(answers, facts)
    for line in iter(sys.stdin.readline, ""):
        tell(answers, {"code": carry_out(json.loads(line), facts, answers)})


if __name__ == "__main__":
    main()
