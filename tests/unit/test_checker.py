"""The checker without a browser: its document, the archive, Pyodide's package, the page's files."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment, PackageLoader, StrictUndefined

from qvlfp8.checked import check
from qvlfp8.checkpoint import CONFIG, INDEX, WEIGHTS
from qvlfp8.contract.samples import samples
from qvlfp8.site import checker, checker_sources, pyodide
from qvlfp8.worker.contract import write_checkpoint
from tests.unit.checkpoints import lm_fp8
from tests.unit.test_cli import qvlfp8
from tests.unit.test_explain import portable
from tests.unit.test_repair import naive, sharded


def render(template: str, /, **values: Any) -> str:
    loader = PackageLoader("qvlfp8.site")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    return environment.get_template(template).render(**values)


def of_a_form(folder: Path) -> Path:
    found = next(each for each in samples() if "qwen3_vl NVFP4" in each.name)
    write_checkpoint(folder, found.files(), found.tensors())
    return folder


# What the page says.


@pytest.mark.parametrize("make", [portable, naive, of_a_form, sharded])
def test_the_document_is_what_the_command_prints(
    make: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    found = check("a")
    program = qvlfp8("explain", "a", "--json", cwd=tmp_path)
    assert json.loads(json.dumps(found["explained"])) == json.loads(program.stdout)
    assert found["code"] == program.returncode
    lines = ["a"]
    for section in found["sections"]:
        lines += [section["title"]] if section["title"] else []
        lines += [f"  {line['text']}" for line in section["lines"]]
    assert lines == qvlfp8("explain", "a", cwd=tmp_path).stdout.splitlines()
    assert found["notes"] == []
    assert found["error"] is None


def test_versions_can_be_asked_for(tmp_path: Path) -> None:
    found = check(str(lm_fp8(tmp_path / "a")), ">=0.13,<0.15")
    assert [version["vllm"] for version in found["explained"]["versions"]] == ["0.13.0", "0.14.1"]
    assert found["summary"].endswith("a works in 2 of 2 vLLM versions")
    wrong = check(str(tmp_path / "a"), ">>1")
    assert (wrong["code"], wrong["explained"], wrong["sections"]) == (2, None, [])
    assert "no version specifier" in wrong["error"]["problem"]


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ([CONFIG], "Add config.json: "),
        (["b.safetensors"], "Add b.safetensors, of the 2 files that model.safetensors.index.json names: "),
        (["a.safetensors", "b.safetensors"], "neither types nor shapes"),
        (
            ["a.safetensors", "b.safetensors", INDEX],
            "Add the .safetensors file, or model.safetensors.index.json",
        ),
        (["tokenizer.json", "preprocessor_config.json"], "tokenizer.json, preprocessor_config.json"),
    ],
)
def test_what_to_add_is_said(gone: list[str], said: str, tmp_path: Path) -> None:
    folder = sharded(tmp_path / "a")
    for name in gone:
        (folder / name).unlink()
    notes = check(str(folder))["notes"]
    assert any(said in note for note in notes), notes


WEIGHTS_OF_TWO = ("a.safetensors", "b.safetensors")


@pytest.mark.parametrize(
    ("gone", "first"),
    [
        ((*WEIGHTS_OF_TWO, INDEX), "Add the .safetensors file, or model.safetensors.index.json "),
        (WEIGHTS_OF_TWO, "Add a.safetensors, b.safetensors, of the 2 files that "),
        ((CONFIG, *WEIGHTS_OF_TWO, INDEX), "Add config.json: "),
        ((CONFIG,), "Add config.json: "),
    ],
)
def test_for_want_of_a_file_alone_the_answer_is_what_to_add(
    gone: tuple[str, ...], first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sharded(tmp_path / "a")
    for name in gone:
        (folder / name).unlink()
    monkeypatch.chdir(tmp_path)
    found = check("a")
    assert found["wanting"]
    assert found["summary"] == "No answer yet: a file has to be added."
    assert found["notes"][0].startswith(first)
    said = qvlfp8("explain", "a", cwd=tmp_path)
    assert found["code"] == said.returncode == 3
    assert said.stderr == f"error: {found['error']['problem']}\n  mend: {found['error']['mend']}\n"


def test_what_is_wrong_besides_is_not_hidden_behind_what_to_add(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "a")
    for name in WEIGHTS_OF_TWO:
        (folder / name).unlink()
    (folder / "a.safetensors").write_bytes(b"no header")
    assert not check(str(folder))["wanting"]
    (folder / "a.safetensors").unlink()
    (folder / INDEX).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    found = check(str(folder))
    assert not found["wanting"]
    assert "pickle" in found["summary"]


def test_what_a_file_brings_cannot_act(tmp_path: Path) -> None:
    folder = lm_fp8(tmp_path / "a")
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": "\x1b]0;a\x07.safetensors"}}))
    found = check(str(folder))
    del found["source"]
    assert "\x1b" not in json.loads(json.dumps(found))["summary"] + "".join(found["notes"])


# The archive.

_BARE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from qvlfp8 import json_depth
from qvlfp8.checked import check
json_depth.bound()
found = [check(name) for name in sys.argv[2:]]
loaded = {n: m.__file__ for n, m in sys.modules.items() if n.split(".")[0] in ("qvlfp8", "packaging")}
print(json.dumps([found, loaded]))
"""


def test_the_archive_is_all_that_is_needed_and_no_more(tmp_path: Path) -> None:
    """In a Python without any installed package, -S, and apart from this folder and its variables, -I."""
    inside, given = tmp_path / "inside", tmp_path / "given"
    given.mkdir()
    with zipfile.ZipFile(io.BytesIO(checker_sources.archive())) as packed:
        packed.extractall(inside)  # noqa: S202  (it was packed here)
    names = [str(make(given / make.__name__)) for make in (portable, naive, of_a_form)]
    done = subprocess.run(
        [sys.executable, "-S", "-I", "-c", _BARE, str(inside), *names],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, loaded = json.loads(done.stdout)
    assert found == json.loads(json.dumps([check(name) for name in names]))
    assert [document["code"] for document in found] == [0, 1, 1]
    used = {Path(file).relative_to(inside).as_posix() for file in loaded.values()}
    held = {name for name in checker_sources.files() if name.endswith(".py")}
    assert used <= held
    # What packaging imports inside functions may never be called.
    assert {name for name in held - used if not name.startswith("packaging/")} == set()


def test_the_archive_is_the_same_each_time() -> None:
    assert checker_sources.archive() == checker_sources.archive()


# Pyodide's package.


def packed(**files: bytes) -> bytes:
    """An npm package with these files, and those that the checker needs."""
    content = dict.fromkeys(pyodide.FILES, b"x") | {"pyodide-lock.json": b'{"info": {"python": "3.13.2"}}'}
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as archive:
        for name, data in (content | files).items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return held.getvalue()


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A small package, pinned in place of Pyodide's."""
    content = packed()
    monkeypatch.setattr(pyodide, "INTEGRITY", pyodide.integrity(content))
    return content


def test_what_was_pinned_is_fetched_once(pinned: bytes, tmp_path: Path) -> None:
    fetched: list[bytes] = []

    def get() -> bytes:
        fetched.append(pinned)
        return pinned

    for _ in range(2):
        assert set(pyodide.runtime(tmp_path / "cache", get)) == set(pyodide.FILES)
    assert len(fetched) == 1


def test_what_was_not_pinned_is_refused_and_not_kept(pinned: bytes, tmp_path: Path) -> None:
    del pinned
    with pytest.raises(pyodide.PyodideError, match=r"is not what was pinned: its digest is sha512-"):
        pyodide.runtime(tmp_path, lambda: packed(**{"pyodide.js": b"other"}))
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_cache_is_fetched_anew(pinned: bytes, tmp_path: Path) -> None:
    (tmp_path / f"pyodide-{pyodide.VERSION}.tgz").write_bytes(pinned[:-1])
    assert pyodide.runtime(tmp_path, lambda: pinned)["pyodide.js"] == b"x"
    assert pyodide.runtime(tmp_path, lambda: pytest.fail("it was fetched again"))


def test_npm_fetches_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text('#!/bin/sh\n[ "$1 $2" = "pack pyodide@' + pyodide.VERSION + '" ] && echo whole > it.tgz\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert pyodide.fetch() == b"whole\n"


def test_without_network_publishing_goes_on_and_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # The discard port of this machine: nobody listens, and nothing is waited for.
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "https://127.0.0.1:9")
    monkeypatch.delenv("npm_config_registry", raising=False)
    said = checker.write_checker(tmp_path / "site", render)
    assert said is not None
    assert said.startswith(f"the checker was not built: pyodide {pyodide.VERSION} cannot be fetched: ")
    assert "npm is not installed" in said
    assert "\n" not in said
    page = (tmp_path / "site" / "check.html").read_text()
    assert "The checker was not built into this copy of the site" in page
    assert "127.0.0.1" not in page
    assert "<script" not in page


# The page's files.


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # To pack the real one takes a second.
    monkeypatch.setattr(checker_sources, "archive", lambda: b"z" * 100)
    runtime = dict.fromkeys(pyodide.FILES, b"x" * 100) | {"pyodide-lock.json": b'{"info": {"a": 1}}'}
    assert checker.write_checker(tmp_path, render, runtime=lambda: runtime) is None
    return tmp_path


def test_parts_carry_what_the_worker_needs(site: Path) -> None:
    found: dict[str, bytes] = {}
    for file in (site / "assets" / "checker").iterdir():
        call = re.fullmatch(r'qvlfp8Part\("(\w+)","([\w+/=]+)"\);\n', file.read_text())
        assert call is not None
        found[call[1]] = gzip.decompress(base64.b64decode(call[2]))
        assert f"assets/checker/{file.name}" in (site / "check.html").read_text()
    assert found.pop("program").endswith(checker.WORKER.read_bytes())
    assert json.loads(found.pop("lock")) == {"info": {"a": 1}, "packages": {}}
    assert found == {"wasm": b"x" * 100, "stdlib": b"x" * 100, "project": b"z" * 100}


def test_the_page_is_light_and_nothing_is_inline(site: Path) -> None:
    page = (site / "check.html").read_text()
    assert sum(len(text) for text in [page, *_assets(site)]) < 60_000
    assert re.findall(r"<script(?! src=)", page) == []
    assert re.findall(r"<style|\sstyle=|\son\w+=|javascript:|https?://[^\"]*\.js", page) == []
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert "connect-src &#39;none&#39;" in policy[1]
    assert "unsafe-inline" not in policy[1]
    assert re.findall(r"\S*unsafe-eval\S*", policy[1]) == ["&#39;wasm-unsafe-eval&#39;;"]


def _assets(site: Path) -> list[str]:
    return [(site / "assets" / name).read_text() for name in ("check.js", "check.css")]


def test_parts_of_an_older_site_go(site: Path) -> None:
    (site / "assets" / "checker" / "wasm-old.js").write_text("old")
    before = names(site)
    runtime: dict[str, Any] = dict.fromkeys(pyodide.FILES, b"y") | {"pyodide-lock.json": b'{"info": {}}'}
    checker.write_checker(site, render, runtime=lambda: runtime)
    assert {name.split("-")[0] for name in before & names(site)} == {"project"}


def names(site: Path) -> set[str]:
    return {file.name for file in (site / "assets" / "checker").iterdir()}
