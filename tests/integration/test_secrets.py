"""Secrets reach who needs them, and nothing else: one of each kind is planted, all that was written searched.

Slow where real ModelOpt and real vLLM are imported, half a minute.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from docker import DockerClient

from qvlfp8 import digest, images
from qvlfp8.engine import Batch, Job
from qvlfp8.engine.venv import VenvEngine
from qvlfp8.environments import QuantizeEnvironment
from qvlfp8.errors import QvlError
from qvlfp8.images import daemon
from qvlfp8.locks import Lock
from qvlfp8.redaction import SHOWN
from qvlfp8.store import Store
from tests.integration.conftest import Sandbox
from tests.integration.private_index import HOST, PrivateIndex, serving
from tests.integration.processed import Processed
from tests.unit.test_run import Bench

ENVIRONMENT = QuantizeEnvironment(modelopt="0.0.3", transformers="0.0.3")
PACKAGES = ("qvlfirst", "qvlsecond")
PROXY = ("proxyuser", "planted-proxy-password")
INDEX = ("indexuser", "planted-index-p%40ssword")
CELL = "lm-fp8/modelopt-0.47.0/seeing-untied/vllm-0.13.0"

PLANTED = {
    "HF_TOKEN": "hf_plantedtokenofthehub",
    "HUGGING_FACE_HUB_TOKEN": "hf_plantedoldertoken",
    "UV_INDEX_OURS_USERNAME": "ours",
    "UV_INDEX_OURS_PASSWORD": "planted-uv-password",
    "SOME_API_KEY": "planted-api-key",
}
NETRC = "planted-netrc-password"

SECRETS = (
    PROXY[1], INDEX[1], "planted-index-p@ssword", NETRC,
    *(value for name, value in PLANTED.items() if not name.endswith("USERNAME")),
    base64.b64encode(":".join(PROXY).encode()).decode(),
    base64.b64encode(b"indexuser:planted-index-p@ssword").decode(),
)  # fmt: skip


def leaks(*texts: str | bytes) -> list[str]:
    raw = [text.encode() if isinstance(text, str) else text for text in texts]
    return [secret for secret in SECRETS if any(secret.encode() in text for text in raw)]


def leaks_in(*places: Path) -> list[str]:
    """Secrets in any file below these places, and the file."""
    files = [file for place in places for file in (place.rglob("*") if place.is_dir() else [place])]
    searched = [file for file in files if file.is_file() and not file.is_symlink()]
    assert searched
    return [f"{file}: {secret}" for file in searched for secret in leaks(file.read_bytes())]


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[PrivateIndex]:
    """A private index behind a proxy, and secrets of every kind in the environment and in files."""
    home = tmp_path / "home"
    home.mkdir()
    (home / ".netrc").write_text(f"machine elsewhere.invalid login someone password {NETRC}\n")
    (home / ".netrc").chmod(0o600)
    for name in list(os.environ):
        if name.startswith(("UV_", "PIP_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    with serving(*PACKAGES, proxy=PROXY, index=("indexuser", "planted-index-p@ssword")) as found:
        proxy = f"http://{':'.join(PROXY)}@127.0.0.1:{found.port}"
        address = f"http://{':'.join(INDEX)}@{HOST}"
        given = {
            **PLANTED, "HOME": str(home), "UV_CACHE_DIR": str(tmp_path / "cache"), "http_proxy": proxy,
            "HTTP_PROXY": proxy, "https_proxy": proxy, "PIP_INDEX_URL": f"{address}/simple",
            "PIP_FIND_LINKS": f"{address}/links", "UV_INDEX": f"ours={address}/simple",
        }  # fmt: skip
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        yield found


def lock_of(index: PrivateIndex, folder: Path) -> Lock:
    path = folder / "lock.txt"
    path.write_text(f"# python 3.11 · for a test\n{index.lock()}")
    return Lock(path=path, digest=digest.of_file(path))


def test_a_virtual_environment_is_built_with_secrets_and_keeps_none(
    index: PrivateIndex, tmp_path: Path
) -> None:
    said: list[str] = []
    store = Store(tmp_path / "store")
    log = tmp_path / "store" / "log.txt"
    with store.locked():
        engine = VenvEngine(store, python="3.11", torch="2.13.0+cpu", announce=said.append)
        engine.build(ENVIRONMENT, lock_of(index, tmp_path), log)
    assert any(path.endswith(".whl") for path in index.served)
    assert any("pip sync" in line for line in said)
    # Nothing had to be taken out of a command line, which every user of a machine can read.
    assert not any(SHOWN in line for line in said)
    log.touch()
    assert leaks_in(store.root, tmp_path / "cache") == []
    assert leaks(*said) == []


def test_an_index_that_refuses_is_told_without_secrets(
    index: PrivateIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    lock = lock_of(index, tmp_path)
    lock.path.write_text(lock.path.read_text().replace("1.0", "2.0"))
    with store.locked():
        engine = VenvEngine(store, python="3.11", torch="2.13.0+cpu", announce=lambda _: None)
        log = store.scratch("build") / "log.txt"
        with pytest.raises(QvlError) as refused:
            engine.build(ENVIRONMENT, lock, log)
    assert leaks(str(refused.value), refused.value.problem) == []
    assert leaks_in(store.root) == []


def test_an_image_is_built_with_secrets_and_keeps_none(
    index: PrivateIndex, docker_with_base: DockerClient, tmp_path: Path
) -> None:
    said: list[str] = []
    built = tmp_path / "built"
    built.mkdir()
    lock = lock_of(index, tmp_path)
    image = images.build(ENVIRONMENT, lock, log=built / "log.txt", announce=said.append, no_cache=True)
    try:
        assert any(path.endswith(".whl") for path in index.served)
        saved = tmp_path / "image.tar"
        with saved.open("wb") as stream:
            stream.writelines(docker_with_base.images.get(image.id).save())
        assert b"qvlsecond.py" in saved.read_bytes()
        assert leaks_in(saved, built) == []
        history = json.dumps(docker_with_base.images.get(image.id).history())
        assert leaks(history, json.dumps(daemon.inspect(docker_with_base, image.id)), *said) == []
        assert HOST not in history
    finally:
        docker_with_base.images.remove(image.id, force=True)


CHATTY = """
import os, sys

def prepare(jobs):
    print(dict(os.environ), file=sys.stderr, flush=True)
    return {"variables": dict(os.environ)}

def run(params, out):
    print(dict(os.environ), file=sys.stderr, flush=True)
    if params["recipe"]["id"] == "vlm-fp8":
        raise RuntimeError(f"cannot log in with {os.environ['HF_TOKEN']} by {os.environ['http_proxy']}")
    (out / "checkpoint").mkdir()
    (out / "checkpoint" / "weights").write_text("x")
    return {"token": os.environ["HF_TOKEN"]}
"""


@pytest.mark.usefixtures("small_models")
def test_what_a_worker_that_dies_has_said_is_not_kept(index: PrivateIndex, tmp_path: Path) -> None:
    """Its parent is killed: nobody reports that the job has ended."""
    bench = Bench(tmp_path / "project")
    dies = CHATTY.replace("raise RuntimeError(", "os.kill(os.getppid(), 9)\n        print(")
    bench.run(Processed(tmp_path / "workers", dies))
    assert "error" in bench.statuses("quantize")
    assert leaks_in(bench.project.store.root) == []


@pytest.mark.usefixtures("small_models")
def test_what_a_worker_says_of_secrets_is_not_kept(index: PrivateIndex, tmp_path: Path) -> None:
    """A worker that was given everything, and says everything, in logs, exceptions and results."""
    bench = Bench(tmp_path / "project")
    bench.run(Processed(tmp_path / "workers", CHATTY))
    root = bench.project.store.root
    assert bench.statuses("quantize") == {"pass", "fail"}
    assert leaks_in(root) == []
    logs = [path.read_text() for path in root.glob("steps/quantize/*/log.txt")]
    assert len(logs) == 4
    assert all(SHOWN in text and "HF_TOKEN" in text for text in logs)


def test_a_step_that_may_not_use_the_hub_is_given_no_secret(index: PrivateIndex, tmp_path: Path) -> None:
    """By the real engine, in an environment that it built: what a process there sees."""
    store, lock = Store(tmp_path / "store"), lock_of(index, tmp_path)
    seen: dict[bool, str] = {}
    with store.locked():
        for offline in (True, False):
            engine = VenvEngine(
                store, python="3.11", torch="2.13.0+cpu", announce=lambda _: None, offline=offline
            )
            if not engine.built(ENVIRONMENT, lock):
                engine.build(ENVIRONMENT, lock, store.scratch("build") / "log.txt")
            out = store.scratch("job")
            python = store.environments / f"{ENVIRONMENT.id}-{lock.digest[:12]}" / "bin" / "python"
            real = python.resolve()
            python.unlink()
            # The environment's Python says what it is given, and ends.
            python.write_text(f"#!/bin/sh\nenv > {out}/env\nexec {real} -c pass\n")
            python.chmod(0o755)
            job = Job(id="a", params={}, out=out)
            batch = Batch(worker="quantize", jobs=(job,), time_limit_s=20.0)
            engine.run((ENVIRONMENT, lock), batch, out / "log.txt", lambda _: None)
            seen[offline] = (out / "env").read_text()
            python.unlink()
            python.symlink_to(real)
    assert leaks(seen[True]) == []
    assert PLANTED["HF_TOKEN"] in seen[False]
    assert PROXY[1] in seen[False]
    assert not {INDEX[1], NETRC, PLANTED["UV_INDEX_OURS_PASSWORD"], PLANTED["SOME_API_KEY"]} & set(
        leaks(seen[False])
    )


def test_a_whole_run_and_its_site_keep_no_secret(
    sandbox: Sandbox, tmp_path: Path, says: Callable[[tuple[int, str, str], int, Sequence[str]], None]
) -> None:
    """Real quantize, inspect and preflight with all commands shown, and the site of it."""
    proxy = f"http://{':'.join(PROXY)}@127.0.0.1:9"
    given = {
        **PLANTED, "http_proxy": proxy, "https_proxy": proxy, "HTTPS_PROXY": proxy,
        "PIP_INDEX_URL": f"https://{':'.join(INDEX)}@{HOST}/simple",
        "PIP_FIND_LINKS": f"https://{':'.join(INDEX)}@{HOST}/links",
    }  # fmt: skip
    status, out, errors = sandbox.run("matrix", "--only", CELL, "--verbose", **given)
    assert status == 0, errors
    assert leaks(out, errors) == []
    site = tmp_path / "site"
    published = sandbox.run("publish", "--out", str(site), **given)
    says(published, 0, [])
    assert leaks(*published[1:]) == []
    (sandbox.store.root / "environments").unlink()
    assert leaks_in(sandbox.root, site) == []
