"""vLLM's loader in the serve environments that are built: started once each, asked by every test.

vLLM takes 15 to 55 s to import. Tests of one environment are kept together
(:mod:`tests.integration.grouping`), so that one process has it imported; :mod:`tests.integration.vllm_host`
is that process.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qvlfp8.engine import Batch, launch
from qvlfp8.locks import find_lock
from qvlfp8.project import Project
from tests.contract_cases import Made

ROOT = Path(__file__).parents[2]
HOST = Path(__file__).with_name("vllm_host.py")

THOROUGH = os.environ.get("QVLFP8_TESTS_THOROUGH") == "1"
"""Whether vLLM is asked about everything (`nox -s nightly`), or about some of what is alike."""

Ask = Callable[..., dict[str, Any]]
"""What preflight measures of a checkpoint; ``architectures`` as the contract's worker takes them."""


class Host:
    """One environment's vLLM, imported; each question is put to a fork of it."""

    def __init__(self, folder: Path, root: Path) -> None:
        root.mkdir()
        self._root = root
        self._log = (root / "log.txt").open("w")
        self._questions = 0
        nothing = Batch(worker="preflight", jobs=(), time_limit_s=0, threads=1)
        variables = {
            **launch.kept_variables(),
            **launch.variables(nothing, offline=True),
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            # As the engine has it: what vLLM keeps of one version does not serve another.
            "VLLM_CACHE_ROOT": str(root / "cache"),
        }
        self._process = subprocess.Popen(
            [str(folder / "bin" / "python"), "-P", str(HOST)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=variables,
        )  # fmt: skip
        self.facts = self._answer()
        """What preflight's preparation says; with ``fault`` the environment judges nothing."""

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _answer(self, log: Path | None = None) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, _end_of(log or Path(self._log.name))
        found: dict[str, Any] = json.loads(line)
        return found

    def _request(self, do: str, **more: object) -> Path:
        """Send it; returns where the child's output goes."""
        self._questions += 1
        log = self._root / f"{self._questions}-{do}.txt"
        self._say(json.dumps({"do": do, "log": str(log), **more}))
        return log

    def _end(self, log: Path) -> None:
        answer = self._answer(log)
        assert answer == {"code": 0}, (answer, _end_of(log))

    @contextmanager
    def cases(self) -> Iterator[Ask]:
        """Checkpoints without data, one at a time."""
        assert "fault" not in self.facts, self.facts["fault"]
        log = self._request("cases")
        answer = self._answer(log)

        def ask(made: Made, architectures: Sequence[Any] | None = None) -> dict[str, Any]:
            nonlocal answer
            assert "code" not in answer, (answer, _end_of(log))
            case = {"files": made.files, "tensors": made.tensors, "architectures": architectures}
            self._say(json.dumps(case))
            answer = self._answer(log)
            assert "code" not in answer, (answer, _end_of(log))
            measured: dict[str, Any] = answer["measured"]
            return measured

        try:
            yield ask
        finally:
            if "code" not in answer:
                self._say("")
                self._end(log)

    def probe(self, script: str, job: Mapping[str, Any], path: Sequence[Path] = ()) -> dict[str, Any]:
        """What a script of this package answers; ``path`` is what it can import beside the repository."""
        answer = self._root / f"{script}-{self._questions}.json"
        places = [str(place) for place in path]
        self._end(self._request("probe", script=script, job=job, path=places, answer=str(answer)))
        result: dict[str, Any] = json.loads(answer.read_text())
        return result

    def preflight(self, batch: Batch) -> None:
        """Carry out a batch of preflight; the jobs' folders have the results."""
        spec = launch.write_spec(batch, self._root / f"batch-{self._questions}.txt")
        self._end(self._request("batch", spec=str(spec)))

    def close(self) -> None:
        """End it, whatever it is at."""
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def _end_of(log: Path) -> str:
    return f"{log}: {log.read_text(errors='replace')[-3000:] if log.exists() else 'not written'}"


class Hosts:
    """The environments' hosts, one at a time: each holds a gigabyte or two of memory."""

    def __init__(self, shipped: Project, root: Path) -> None:
        self._shipped = shipped
        self._root = root
        self._started = 0
        self._running: tuple[str, Host] | None = None

    def _folder(self, environment: str) -> Path | None:
        found = self._shipped.environments[environment]
        lock = find_lock(self._shipped.matrix, found)
        folder = self._shipped.store.environments / f"{environment}-{lock.digest[:12]}"
        return folder if (folder / "complete.json").exists() else None

    def of(self, environment: str) -> Host | None:
        """The host of a serve environment; None if it is not built."""
        if self._running and self._running[0] == environment:
            return self._running[1]
        folder = self._folder(environment)
        if folder is None:
            return None
        self.close()
        self._started += 1
        host = Host(folder, self._root / f"{self._started}-{environment}")
        self._running = environment, host
        return host

    def close(self) -> None:
        """End the one that runs."""
        if self._running:
            self._running[1].close()
            self._running = None
