"""An engine for tests of the runner whose quantizing is done by real processes, with nothing to import."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qvlfp8.engine import Batch, Exit, launch
from qvlfp8.engine.process import Processes
from qvlfp8.environments import Environment
from qvlfp8.locks import Lock
from qvlfp8.source import PACKAGE
from tests.unit.test_run import FakeEngine

NEEDED = ("__init__.py", "worker/__init__.py", "worker/__main__.py", "worker/protocol.py")


def package_with(root: Path, **workers: str) -> Path:
    """A qvlfp8 that has no workers but these, by name and source."""
    package = root / "qvlfp8"
    (package / "worker").mkdir(parents=True)
    for name in NEEDED:
        shutil.copy(PACKAGE / name, package / name)
    for name, source in workers.items():
        (package / "worker" / f"{name}.py").write_text(source)
    return package


class Processed(FakeEngine):
    """Quantizes in processes of the given worker, started through ``before``; the rest is made up."""

    def __init__(self, root: Path, worker: str, *before: str, limit_s: float = 60.0) -> None:
        super().__init__()
        self.package = package_with(root, quantize=worker)
        self.before = before
        self.limit_s = limit_s
        self.processes = Processes(lambda _: None)

    def run(
        self,
        environment: tuple[Environment, Lock] | None,
        batch: Batch,
        log: Path,
        on_event: Callable[[dict[str, Any]], None],
    ) -> Exit:
        """Run a batch."""
        if batch.worker != "quantize":
            return super().run(environment, batch, log, on_event)
        command = launch.command(sys.executable, launch.write_spec(batch, log), self.package)
        with launch.scrubbed(batch, log):
            return self.processes.run(
                [*self.before, *command],
                environment=dict(os.environ),
                log=log,
                on_line=launch.reader(batch, on_event),
                time_limit_s=self.limit_s,
            )

    def stop(self) -> None:
        """End every process."""
        super().stop()
        self.processes.stop()
