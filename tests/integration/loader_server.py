"""Run by a serve environment's Python: what vLLM's loader does with each checkpoint that a line describes.

``python -P loader_server.py`` reads cases, a JSON object a line, and prints what preflight measures, a line
each.
"""

import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def mount(package: Path) -> None:
    """Make the package importable, and nothing else of the repository."""
    path = str(package / "worker" / "__main__.py")
    spec = importlib.util.spec_from_file_location("mount", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module._mount_package()


def main() -> None:
    """Answer until the input ends."""
    answers = sys.stdout
    # What vLLM prints is not an answer.
    sys.stdout = sys.stderr
    mount(ROOT / "qvlfp8")
    from qvlfp8.worker import contract

    answers.write(json.dumps(contract.prepare([])) + "\n")
    answers.flush()
    with tempfile.TemporaryDirectory(prefix="loader-") as scratch:
        for number, line in enumerate(sys.stdin):
            # vLLM from 0.30 on remembers by path what a checkpoint holds.
            folder = Path(scratch) / str(number)
            case = json.loads(line)
            contract.write_checkpoint(folder, case["files"], case["tensors"])
            answers.write(json.dumps(contract.examine(folder, case.get("architectures"))) + "\n")
            answers.flush()
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
