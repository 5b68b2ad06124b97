"""What goes wrong around a run: each fault ends in a clear sentence and its own code, and loses nothing.

Slow where a real worker has to start: ModelOpt imports in about 10 s, vLLM in 15 to 40 s.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from qvlfp8 import checkpoint, reference
from qvlfp8.tensorfile import read_bytes, write_safetensors
from tests.integration.conftest import Sandbox
from tests.integration.limits import mounted, resize
from tests.integration.probing import said_by

Says = Callable[[tuple[int, str, str], int, Sequence[str]], None]

CELL = "lm-fp8/modelopt-0.47.0/seeing-untied/vllm-0.13.0"
ONE_CELL = ("matrix", "--only", CELL)
CHECKPOINT = ("model", "quantize", "inspect")
"""Stages before the loader: where the fault is after them, `nox -s matrix` has made the checkpoint."""


def wait_for(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited for {seconds:g} s"
        time.sleep(0.05)


def entries(sandbox: Sandbox, stage: str) -> list[Path]:
    return list((sandbox.store.root / "steps" / stage).glob("*/record.json"))


def workers(sandbox: Sandbox, worker: str) -> list[int]:
    """Process ids of the workers of this kind that run for this sandbox."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if not folder.name.isdigit():
                continue
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
            spec = next((Path(os.fsdecode(a)) for a in arguments if a.endswith(b".spec.json")), None)
            if (
                spec
                and spec.is_relative_to(sandbox.root)
                and json.loads(spec.read_text())["worker"] == worker
            ):
                found.append(int(folder.name))
    return found


def test_without_an_index_the_run_says_so_and_keeps_the_rest(
    sandbox: Sandbox, tmp_path: Path, says: Says
) -> None:
    (sandbox.store.root / "environments").unlink()
    offline = {"UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple", "UV_CACHE_DIR": str(tmp_path / "cache"),
               "UV_HTTP_RETRIES": "0", "PIP_FIND_LINKS": "", "UV_TORCH_BACKEND": "cpu"}  # fmt: skip
    says(sandbox.run(*ONE_CELL, **offline), 8, ["the package index does not answer", "mend: check network"])
    assert len(entries(sandbox, "model")) == 1
    assert not entries(sandbox, "quantize")


def test_an_index_without_the_version_is_told_apart(sandbox: Sandbox, tmp_path: Path, says: Says) -> None:
    (sandbox.store.root / "environments").unlink()
    empty = tmp_path / "index"
    empty.mkdir()
    index = {"UV_DEFAULT_INDEX": empty.as_uri(), "UV_CACHE_DIR": str(tmp_path / "cache"), "UV_OFFLINE": "1",
             "UV_FIND_LINKS": str(empty)}  # fmt: skip
    status, _, errors = sandbox.run(*ONE_CELL, **index)
    assert status in {8, 9}, errors
    lock = next((sandbox.root / "containers" / "locks").glob("modelopt-0.47.0*"))
    text = lock.read_text()
    assert "pillow==" in text
    lock.write_text(text.replace("pillow==", "pillow==999."))
    says(sandbox.run(*ONE_CELL), 9, ["the package index has not got what the lock names", "pillow==999."])


def test_a_killed_worker_is_an_error_and_the_next_run_finishes(sandbox: Sandbox, says: Says) -> None:
    sandbox.take(CELL, *CHECKPOINT)
    running = sandbox.start(*ONE_CELL)
    wait_for(lambda: bool(workers(sandbox, "preflight")))
    for pid in workers(sandbox, "preflight"):
        os.kill(pid, signal.SIGKILL)
    out, errors = running.communicate(timeout=300)
    says((running.returncode, out, errors), 11, ["preflight of", "ended by signal 9", "mend: run again"])
    kept = {path: path.stat().st_mtime_ns for path in entries(sandbox, "quantize")}
    assert kept
    status, out, errors = sandbox.run(*ONE_CELL)
    assert status == 0, errors
    assert "1 steps to do" in errors
    assert {path: path.stat().st_mtime_ns for path in entries(sandbox, "quantize")} == kept


def test_ctrl_c_ends_everything_at_once_and_a_rerun_continues(sandbox: Sandbox, says: Says) -> None:
    running = sandbox.start(*ONE_CELL)
    wait_for(lambda: bool(entries(sandbox, "quantize")) and bool(workers(sandbox, "preflight")))
    running.send_signal(signal.SIGINT)
    out, errors = running.communicate(timeout=20)
    says((running.returncode, out, errors), 130, ["interrupted; what was finished is kept"])
    assert not workers(sandbox, "preflight")
    status, _, errors = sandbox.run(*ONE_CELL)
    assert status == 0, errors
    assert "quantize lm-fp8" not in errors


def test_two_runs_in_one_store_do_not_mix(sandbox: Sandbox, says: Says) -> None:
    sandbox.take(CELL, *CHECKPOINT)
    first = sandbox.start(*ONE_CELL)
    wait_for(lambda: bool(workers(sandbox, "preflight")))
    says(sandbox.run(*ONE_CELL), 12, ["in use by another run", f"process {first.pid}", "mend: wait"])
    out, errors = first.communicate(timeout=600)
    assert first.returncode == 0, out + errors


def test_a_half_written_entry_is_made_again(sandbox: Sandbox) -> None:
    sandbox.take(CELL, *CHECKPOINT, "preflight")
    status, _, errors = sandbox.run(*ONE_CELL)
    assert (status, "steps to do" in errors) == (0, False), errors
    (record,) = entries(sandbox, "inspect")
    record.write_text(record.read_text()[:100])
    status, _, errors = sandbox.run(*ONE_CELL)
    assert status == 0, errors
    assert "1 steps to do" in errors
    assert json.loads(record.read_text())["status"] == "pass"


def test_a_read_only_disk_is_said_at_once(sandbox: Sandbox, tmp_path: Path, says: Says) -> None:
    store = tmp_path / "disk"
    with mounted(store, "ro"):
        ended = sandbox.run(*ONE_CELL, "--store", str(store / "store"))
    says(ended, 13, ["read-only file system", "--store"])


def test_a_full_disk_is_said_and_what_was_kept_stays(sandbox: Sandbox, tmp_path: Path, says: Says) -> None:
    store = tmp_path / "disk"
    # Room for the reference model (8 MB), not for a checkpoint beside it.
    with mounted(store, "size=12m"):
        (store / "environments").symlink_to((sandbox.store.root / "environments").resolve())
        # What the loader says of the checkpoint is no matter here, and small.
        sandbox.take(CELL, "preflight")
        shutil.copytree(sandbox.store.root / "steps", store / "steps")
        ended = sandbox.run(*ONE_CELL, "--store", str(store))
        says(ended, 13, ["No space left on device", "mend: free some space"])
        assert len(list((store / "steps" / "model").glob("*/record.json"))) == 1
        resize(store, "200m")
        status, _, errors = sandbox.run(*ONE_CELL, "--store", str(store))
        assert status == 0, errors
        assert "model seeing-untied" not in errors


def without_language_layers(folder: Path) -> Path:
    """A model whose language model has no layer, and so no linear module to quantize."""
    reference.write_random(folder, seed=0, tied=False)
    kept = [t for t in checkpoint.read(folder).tensors.values() if not t.name.startswith("model.layers.")]
    entries = [(t.name, t.dtype, t.shape, read_bytes(t)) for t in kept]
    write_safetensors(folder / "model.safetensors", entries, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 0}))
    return folder


def test_a_model_without_language_layers_is_4_and_leaves_nothing(
    sandbox: Sandbox, tmp_path: Path, says: Says
) -> None:
    model = without_language_layers(tmp_path / "model")
    out = tmp_path / "out"
    ended = sandbox.run("quantize", "lm-fp8", "--model", str(model), "--out", str(out))
    says(ended, 4, ["lm-fp8: ", "num_hidden_layers", "is 0"])
    assert {path.name for path in tmp_path.iterdir()} == {"model", "project"}


MATCHES_NOTHING = """
import json, sys, torch
from qvlfp8.worker import audit
from qvlfp8.worker.protocol import Refused

model = torch.nn.ModuleDict({"text": torch.nn.Embedding(2, 2), "visual": torch.nn.Linear(2, 2)})
recipe = json.loads(sys.argv[1])
try:
    audit.check(model, recipe, {"language_model": "text", "vision": "visual"})
except Refused as refused:
    print(refused.kind, str(refused))
"""


def test_a_recipe_that_matches_no_module_is_refused_with_the_part(sandbox: Sandbox) -> None:
    """On real torch and ModelOpt; no valid Qwen2.5-VL lacks a part, so the model is made up."""
    project = sandbox.project()
    python = next((sandbox.store.environments).glob("modelopt-0.47.0-*")) / "bin" / "python"
    recipe = project.matrix.recipes["lm-fp8"].model_dump_json()
    said = "\n".join(said_by(python, MATCHES_NOTHING, recipe))
    assert said.startswith("recipe-matches-no-module recipe lm-fp8 names language_model")


def test_a_recipe_that_calibration_never_reaches_is_7(sandbox: Sandbox, tmp_path: Path, says: Says) -> None:
    model = tmp_path / "model"
    reference.write_random(model, seed=0, tied=False)
    recipe = sandbox.root / "recipes" / "vlm-fp8.yaml"
    recipe.write_text(recipe.read_text().replace("modality: image+text", "modality: text"))
    ended = sandbox.run("quantize", "vlm-fp8", "--model", str(model), "--out", str(tmp_path / "out"))
    says(ended, 7, ["vlm-fp8: ", "saw no value while calibrating on text", "visual"])


def test_a_users_model_is_quantized_inspected_and_recorded(sandbox: Sandbox, tmp_path: Path) -> None:
    model = tmp_path / "model"
    reference.write_random(model, seed=3, tied=True)
    out = tmp_path / "new" / "out"
    status, _, errors = sandbox.run("quantize", "lm-fp8", "--model", str(model), "--out", str(out))
    assert status == 0, errors
    record = json.loads((out / "qvlfp8-record.json").read_text())
    assert record["status"] == "pass"
    assert record["measured"]["scope_quantized"] == {"language_model": [21, 21], "vision": [0, 17]}
    assert {"config.json", "hf_quant_config.json", "preprocessor_config.json"} <= {
        p.name for p in out.iterdir()
    }
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert sandbox.run("quantize", "lm-fp8", "--model", str(model), "--out", str(out))[0] == 2
