"""Checkpoints of a hub: huggingface_hub itself, in a process of its own, against a server on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qvlfp8 import checkpoint
from qvlfp8.checkpoint import write_safetensors
from qvlfp8.describe import as_json, describe
from qvlfp8.remote import HubId, parse_id
from tests.unit import checkpoints as make
from tests.unit.hub import COMMIT, TOKEN, Hub, serving

ROOT = Path(__file__).parents[2]

CLIENT = """
import json, sys
from qvlfp8.checkpoint import NotACheckpoint, values
from qvlfp8.describe import as_json, describe
from qvlfp8.errors import HubError
from qvlfp8.remote import opened, parse_id

assert "huggingface_hub" not in sys.modules
for text in sys.argv[1:]:
    try:
        with opened(parse_id(text)) as remote:
            found = {
                "description": as_json(describe(remote.checkpoint, remote.files)),
                "commit": remote.commit, "cached": remote.cached, "nbytes": remote.checkpoint.nbytes,
                "root": str(remote.checkpoint.root),
            }
            scales = [t for t in remote.checkpoint.tensors.values() if t.elements == 1]
            try:
                found["value"] = values(scales[0])
            except NotACheckpoint as error:
                found["value"] = error.problem
    except HubError as error:
        found = {"problem": error.problem, "mend": error.mend, "exit_code": error.exit_code}
    except NotACheckpoint as error:
        found = {"file": str(error.file), "problem": error.problem}
    print(json.dumps(found))
"""


def asked(endpoint: str, *models: str, **environment: str) -> list[dict[str, Any]]:
    """What each model is, or what was said of it."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, *models], text=True, capture_output=True, check=False, cwd=ROOT,
        env={**clean, "HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1",
             "HF_HOME": "/nonexistent", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def sharded(folder: Path, count: int) -> Path:
    """The sound export of ``lm-fp8`` in several files, with an index."""
    made = make.lm_fp8(folder)
    (made / "model.safetensors").unlink()
    tensors = list(make.fp8_tensors(make.small_config()).items())
    weight_map: dict[str, str] = {}
    for number in range(count):
        name = f"model-{number + 1:05}-of-{count:05}.safetensors"
        write_safetensors(made / name, [(n, *entry) for n, entry in tensors[number::count]])
        weight_map |= {n: name for n, _ in tensors[number::count]}
    (made / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return made


def header_end(file: Path) -> int:
    with file.open("rb") as stream:
        return 8 + int.from_bytes(stream.read(8), "little")


def test_what_is_read_of_a_sharded_model(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model", 40)
    with serving(Hub({"org/name": folder})) as hub:
        (found,) = asked(hub.url, "org/name")
    held = checkpoint.read(folder)
    assert found["description"] == json.loads(json.dumps(as_json(describe(held))))
    assert found["nbytes"] == held.nbytes
    assert (found["commit"], found["cached"]) == (COMMIT, False)
    assert not Path(found["root"]).exists()
    weights = {name: parts for name, parts in hub.sent.items() if name.endswith(".safetensors")}
    assert set(weights) == set(held.weight_files)
    for name, parts in weights.items():
        assert max(end for _, end in parts) == header_end(folder / name) < (folder / name).stat().st_size
        assert sum(end - begin for begin, end in parts) == header_end(folder / name)
    assert "tokenizer.json" not in hub.sent


def test_a_value_of_a_tensor_is_refused_not_made_up(tmp_path: Path) -> None:
    folder = make.lm_fp8(tmp_path)
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.safetensors").write_bytes(b"not for us")
    with serving(Hub({"org/name": folder})) as hub:
        (found,) = asked(hub.url, "org/name")
    assert found["value"] == "cannot be read (No such file or directory)"


def test_revisions_tokens_and_refusals(tmp_path: Path) -> None:
    folder = make.lm_fp8(tmp_path)
    models = {"org/name": folder, "org/gated": folder, "org/private": folder}
    with serving(Hub(models, gated=frozenset({"org/gated"}), private=frozenset({"org/private"}))) as hub:
        names = ("org/name@v1", "org/name@v2", "org/none", "org/gated", "org/private")
        tag, revision, none, gated, private = asked(hub.url, *names)
        friend = asked(hub.url, "org/gated", "org/private", HF_TOKEN=TOKEN)
    assert tag["commit"] == COMMIT
    assert revision["problem"] == f"org/name@v2: {hub.url} has no such revision"
    for refused in (none, private):
        assert f"{hub.url} has no such model" in refused["problem"]
        assert "HF_TOKEN" in refused["mend"]
    assert "access has to be granted first" in gated["problem"]
    assert f"{hub.url}/org/gated" in gated["mend"]
    assert {refused["exit_code"] for refused in (revision, none, gated)} == {3}
    assert all("description" in found for found in friend)


def test_no_network() -> None:
    (found,) = asked("http://127.0.0.1:9", "org/name")
    assert found["problem"].startswith("org/name: http://127.0.0.1:9 cannot be reached")
    assert "HF_ENDPOINT" in found["mend"]


def test_offline_the_cache_is_what_counts(tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "models--org--name"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(COMMIT)
    (cached / "snapshots").mkdir()
    make.lm_fp8(cached / "snapshots" / COMMIT)
    offline = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    there, not_there = asked("http://127.0.0.1:9", "org/name", "org/other", **offline)
    assert (there["commit"], there["cached"], there["value"]) == (COMMIT, True, [0.0625])
    assert "HF_HUB_OFFLINE is set" in not_there["problem"]


def test_a_proxy_that_answers_instead() -> None:
    with serving(Hub({}, portal=True)) as hub:
        (found,) = asked(hub.url, "org/name")
    assert found["problem"] == f"org/name: {hub.url} answers, but not as a hub does"


def test_a_hub_that_sends_whole_files_is_not_read_to_the_end(tmp_path: Path) -> None:
    with serving(Hub({"org/name": make.lm_fp8(tmp_path)}, ranges=False)) as hub:
        (found,) = asked(hub.url, "org/name")
    assert "sends no parts of files" in found["problem"]


BROKEN: dict[str, tuple[str, bytes | None, str]] = {
    "org/long": (
        "model.safetensors", b"\xff" * 64, "its header length is 18446744073709551615, its size 64 bytes"
    ),
    "org/empty": ("model.safetensors", b"", "its header length is -1, its size 0 bytes"),
    "org/cut": ("model.safetensors", b"\x02\0\0", "its header length is -1, its size 3 bytes"),
    "org/more": (
        "model.safetensors", b"\x02" + bytes(7) + b"{}x", "its tensors end at byte 10, the file at 11"
    ),
    "org/json": ("config.json", b"[", "is not valid JSON"),
    "org/unsaid": ("config.json", None, "cannot be read (No such file or directory)"),
    "org/weightless": ("model.safetensors", None, "there is no *.safetensors file"),
    "org/outside": (
        "model.safetensors.index.json", b'{"weight_map": {"a": "../x"}}', "its weight_map names '../x'"
    ),
    "org/gone": ("model.safetensors.index.json", b'{"weight_map": {"a": "b.safetensors"}}', "cannot be read"),
    "org/list": ("model.safetensors.index.json", b"[]", "holds a JSON list, not an object"),
}  # fmt: skip
"""What is wrong with a model, and what is said of it: a file and its content."""


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What is said of each, all asked at once."""
    root = tmp_path_factory.mktemp("broken")
    models = {}
    for name, (file, content, _) in BROKEN.items():
        models[name] = make.lm_fp8(root / name.partition("/")[2])
        (models[name] / file).unlink(missing_ok=True)
        if content is not None:
            (models[name] / file).write_bytes(content)
    with serving(Hub(models)) as hub:
        return dict(zip(models, asked(hub.url, *models), strict=True))


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_checkpoint_there_is_none_here(name: str, broken: dict[str, dict[str, Any]]) -> None:
    assert broken[name]["problem"].startswith(BROKEN[name][2])
    assert broken[name]["file"].startswith(name)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Qwen/Qwen2.5-VL-3B-Instruct", HubId("Qwen/Qwen2.5-VL-3B-Instruct")),
        ("org/name@refs/pr/1", HubId("org/name", "refs/pr/1")),
        ("name", None),
        ("a/b/c", None),
        ("./name", None),
        ("../name", None),
        ("org/name@", None),
        ("tests/unit", None),
    ],
)
def test_names(text: str, found: HubId | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert parse_id(text) == found
    assert found is None or str(found) == text
