"""vLLM's server, asked through the OpenAI client: the door that users of a checkpoint come in by."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from qvlfp8 import checkpoint as ck
from qvlfp8.worker.generate_engine import MAX_TOKENS, Reply, arguments, messages
from qvlfp8.worker.generate_log import LogMarks

if TYPE_CHECKING:
    from qvlfp8.worker.generate import Prompt

LOG = "server-log.txt"
"""What the server says, below the job's output folder."""

START_LIMIT_S = 600.0
ANSWER_LIMIT_S = 120.0
STOP_LIMIT_S = 20.0

_MODEL = "model"

_PLUGIN = "qvlfp8-patches"
"""vLLM calls a package's entry point of this kind in each of its processes, before anything else."""

_ERROR = re.compile(r"^(?:\(.*?\) )?(?:ERROR .*?\] ?)?\s*((?:\w+\.)*\w*(?:Error|Exception): .*)$")
"""A line of a log that ends a traceback."""


class ServerFailed(RuntimeError):
    """The server ended, or was not ready in time; the message ends with its last lines."""


class Server:
    """A ``vllm serve`` of this checkpoint on a free port of this machine; a context manager."""

    def __init__(self, checkpoint: ck.Checkpoint, options: Mapping[str, Any], out: Path) -> None:
        self._arguments = arguments(checkpoint, options)
        self._on_cpu = options["device"] == "cpu"
        self._log = out / LOG
        self._port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.facts: dict[str, Any] = {}

    def __enter__(self) -> Server:
        command = [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server",
            "--host", "127.0.0.1", "--port", str(self._port), "--served-model-name", _MODEL,
            *_options(self._arguments),
        ]  # fmt: skip
        environment = {
            name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"
        }
        if self._on_cpu:
            environment |= {"PYTHONPATH": str(_write_plugin(self._log.parent)), "VLLM_PLUGINS": _PLUGIN}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=environment
            )
        try:
            self._wait(self._process)
        except BaseException:
            self._stop()
            raise
        self.facts = {"arguments": {k: v for k, v in self._arguments.items() if k != "model"}}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def ask(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """Ask all prompts, one after the other."""
        from openai import OpenAI  # type: ignore[import-not-found]

        client = OpenAI(
            base_url=f"http://127.0.0.1:{self._port}/v1",
            api_key="none",
            timeout=ANSWER_LIMIT_S,
            max_retries=0,
        )
        with client:
            return [_ask(client, prompt, self._arguments["max_logprobs"]) for prompt in prompts]

    def marks(self) -> list[str]:
        """The lines of the server's log that matter."""
        found = LogMarks()
        found.look(self._log.read_text(encoding="utf-8", errors="replace"))
        return found.lines

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            if (code := process.poll()) is not None:
                raise ServerFailed(f"the server ended with exit code {code}: {self._said()}")
            if self._is_ready():
                return
            time.sleep(0.5)
        raise ServerFailed(f"the server was not ready within {START_LIMIT_S:g} s: {self._said()}")

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        return False

    def _said(self) -> str:
        """The last exception in the server's log, else its last lines."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = dict.fromkeys(found[1] for line in lines if (found := _ERROR.match(line)))
        return "\n".join(list(errors)[:4] or lines[-10:])[:1500]

    def _stop(self) -> None:
        """End the server and everything that it started."""
        if self._process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_LIMIT_S)
        self._await_end_of_group(self._process.pid)
        self._process = None

    @staticmethod
    def _await_end_of_group(group: int) -> None:
        """What was killed still holds memory for a moment."""
        deadline = time.monotonic() + STOP_LIMIT_S
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(group, 0)
                time.sleep(0.1)


def _ask(client: Any, prompt: Prompt, logprobs: int) -> Reply:
    answer = client.chat.completions.create(
        model=_MODEL, messages=messages(prompt), max_tokens=MAX_TOKENS, temperature=0.0,
        logprobs=True, top_logprobs=logprobs, extra_body={"return_tokens_as_token_ids": True},
    )  # fmt: skip
    choice = answer.choices[0]
    said = choice.logprobs.content if choice.logprobs is not None else []
    return Reply(
        text=(choice.message.content or "").strip(),
        ids=[_token(entry) for entry in said],
        logprobs=[{_token(entry): entry.logprob for entry in step.top_logprobs} for step in said],
        prompt_tokens=answer.usage.prompt_tokens,
        output_tokens=answer.usage.completion_tokens,
    )


def _token(entry: Any) -> int:
    """vLLM writes ``token_id:17`` when it is asked for ids."""
    return int(entry.token.removeprefix("token_id:"))


def _write_plugin(out: Path) -> Path:
    """A folder to import from in which vLLM finds this package's patches as a plugin."""
    folder = out / "plugin"
    metadata = folder / f"{_PLUGIN.replace('-', '_')}-1.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {_PLUGIN}\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(
        f"[vllm.general_plugins]\n{_PLUGIN} = qvlfp8.worker.generate_patches:apply_on_cpu\n"
    )
    # transformers imports torchvision before vLLM looks for plugins.
    (folder / "sitecustomize.py").write_text(
        "from qvlfp8.worker import generate_patches\n\ngenerate_patches.declare_torchvision_operators()\n"
    )
    package = folder / "qvlfp8"
    package.unlink(missing_ok=True)
    package.symlink_to(Path(__file__).resolve().parents[1], target_is_directory=True)
    return folder


def _options(named: Mapping[str, Any]) -> list[str]:
    """The command line of what vLLM's Python class takes by name."""
    options = []
    for name, value in named.items():
        option = "--" + name.replace("_", "-")
        match value:
            case True:
                options.append(option)
            case False:
                if name == "enable_prefix_caching":
                    options.append("--no-enable-prefix-caching")
            case dict():
                options += [option, json.dumps(value)]
            case _:
                options += [option, str(value)]
    return options


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
