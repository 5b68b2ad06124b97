"""A bundle of fake packages: packed, split, laid together again, unpacked and run by this Python."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from qvlfp8 import fatbin, source
from qvlfp8.bundle import archives, jobs, packages
from qvlfp8.errors import UsageError
from qvlfp8.plan import Plan, Step, Work
from qvlfp8.worker import run_bundle
from qvlfp8.worker.run_bundle import BundleError, sums

ROOT = Path(__file__).parents[2]
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"

LOCK = """\
# vllm-1.0: a comment
six==1.16.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
torch==2.11.0 \\
    --hash=sha256:cc
tilelang==0.1 \\
    --hash=sha256:dd
numba==0.65.0 ; platform_machine == 'x86_64' \\
    --hash=sha256:ee
vllm==1.0 \\
    --hash=sha256:ff
"""

HOST = "Torch==2.11.0+cu130\nnumba==0.99\nsix==1.17.0\nNvidia_CUDNN-cu13==9.1\n-e git+x\n"

WORKER = """\
import os, signal, subprocess, time

def prepare(jobs):
    return {"python": "fake"}

def run(params, out):
    if params["do"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if params["do"] == "hang":
        child = subprocess.Popen(["sleep", "60"], start_new_session=False)
        (out / "child").write_text(str(child.pid))
        time.sleep(60)
    import fakepkg
    print("to the log")
    return {"says": fakepkg.SAYS, "gpu": os.environ["CUDA_VISIBLE_DEVICES"], "variable": os.environ["FAKE"],
            "read": open(params["file"]).read()}
"""


def rule(**fields: Any) -> packages.Rule:
    return packages.Rule.model_validate({"environments": "*", **fields})


def write(root: Path, files: Mapping[str, str]) -> dict[str, Path]:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {name: root / name for name in files}


def environment(name: str, files: Mapping[str, Path], **fields: Any) -> archives.Tree:
    spec = {
        "python": HERE,
        "lock": "0" * 64,
        "brought": {name: "1"},
        "host": {},
        "variables": {"FAKE": "yes:{inherited}"},
    }
    return archives.Tree(name=name, files=files, environment=spec | fields)


def lay_together(pieces: list[Path], folder: Path) -> Path:
    for piece in reversed(pieces):
        shutil.copytree(piece, folder, dirs_exist_ok=True)
    return folder


def start(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "start.sh", *options], cwd=folder, capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "PYTHON": sys.executable, "FAKE": "own"},
    )  # fmt: skip


def test_a_package_travels_unless_the_host_has_it_or_nothing_needs_it() -> None:
    without = [{"packages": ["tile*"], "reason": "no"}]
    found = packages.sort_lock(LOCK, packages.read_have(HOST), rule(without=without, borrow=["numba"]))
    assert found.brought == {"six": "1.16.0", "vllm": "1.0"}
    assert found.host == {"torch": "2.11.0", "numba": None}
    assert found.requirements == (
        "six==1.16.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\nvllm==1.0 \\\n    --hash=sha256:ff\n"
    )


def test_what_is_to_be_borrowed_has_to_be_there() -> None:
    with pytest.raises(UsageError, match="numba is to be borrowed"):
        packages.sort_lock(LOCK, {}, rule(borrow=["numba"]))
    # A package that only stands in for one of another name may be missing where the lock has no need of it.
    have = {"nvidia-cudnn-cu13": "9.1"}
    found = packages.sort_lock(LOCK, have, rule(borrow=["nvidia-cudnn-cu13", "nvidia-curand"]))
    assert found.host == {"nvidia-cudnn-cu13": None}


def test_rules_that_match_hold_together() -> None:
    file = packages.BundleFile.model_validate(
        {
            "rules": [
                {"environments": "vllm-*", "borrow": ["a"], "variables": {"X": "1", "Y": "1"}},
                {
                    "environments": "vllm-0.1*",
                    "borrow": ["b"],
                    "variables": {"X": "2"},
                    "compute_capability": 90,
                },
                {"environments": "other", "borrow": ["c"]},
            ]
        }
    )
    both, one = file.rule("vllm-0.10.2"), file.rule("vllm-0.26.0")
    assert (both.borrow, both.variables, both.compute_capability) == (("a", "b"), {"X": "2", "Y": "1"}, 90)
    assert (one.borrow, one.variables, one.compute_capability) == (("a",), {"X": "1", "Y": "1"}, None)


def test_the_shipped_rules_say_why_for_everything_left_out() -> None:
    file = packages.read_bundles(ROOT / "bundles.yaml")
    for name in ("vllm-0.10.2", "vllm-0.12.0", "vllm-0.22.1", "vllm-0.26.0", "modelopt-0.47.0"):
        assert all(item.reason and (item.packages or item.files) for item in file.rule(name).without)
    assert file.rule("vllm-0.10.2").compute_capability == 90


def test_files_that_nothing_needs_stay_behind(tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys(["a/b/c.so", "a/keep.so", "bin/x", "a[1]/y", "abin/x"], ""))
    without = [{"files": ["a/b/*", "bin/*", "a[1]/?"], "reason": "no"}]
    assert list(packages.files_of(tmp_path, rule(without=without))) == ["a/keep.so", "abin/x"]


@pytest.mark.parametrize(("text", "bytes_"), [("58M", 58_000_000), ("1G", 10**9), ("12kB", 12_000), ("7", 7)])
def test_sizes(text: str, bytes_: int) -> None:
    assert archives.size(text) == bytes_


def test_a_size_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="not a size"):
        archives.size("58 MiB")


@pytest.fixture
def pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two environments that share a file of several parts, an executable, and work; split into pieces."""
    monkeypatch.setattr(archives, "PART_BYTES", 8_000)
    noise = os.urandom(30_000).hex()
    one = write(
        tmp_path / "one",
        {
            "fakepkg/__init__.py": "SAYS = 'one'",
            "data/noise": noise,
            "data/tool": "t",
        },
    )
    two = write(tmp_path / "two", {"fakepkg/__init__.py": "SAYS = 'two'", "elsewhere/noise": noise})
    one["data/tool"].chmod(0o755)
    work = write(tmp_path / "work", {"jobs/x.json": "{}", "note": "hello"})
    trees = [environment("one", one), environment("two", two), archives.Tree(name="work", files=work)]
    return archives.write_bundle(tmp_path / "bundle", trees, split=30_000)


def common_of(folder: Path) -> Path:
    (found,) = folder.glob("archives/common-*")
    return found


def files_below(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_pieces_in_any_order_make_the_same_trees(pieces: list[Path], tmp_path: Path) -> None:
    assert len(pieces) > 2
    sizes = [sum(p.stat().st_size for p in piece.rglob("*") if p.is_file()) for piece in pieces]
    assert max(sizes) <= 30_000
    folder = lay_together(pieces, tmp_path / "host")
    said: list[str] = []
    usable = run_bundle.prepare(folder, said.append)
    assert sorted(usable) == ["one", "two"]
    for name in usable:
        site = folder / "environments" / name / "lib" / f"python{HERE}" / "site-packages"
        assert files_below(site) == files_below(tmp_path / name)
        assert (site / "fakepkg/__init__.py").stat().st_mode & 0o111 == 0
    assert os.access(
        folder / "environments/one" / "lib" / f"python{HERE}" / "site-packages/data/tool", os.X_OK
    )
    assert (folder / "note").read_text() == "hello"
    # What both hold travelled once.
    common = json.loads((common_of(folder) / "archive.json").read_text())
    assert common["environment"] is None
    packed = {a.name: sum(p.stat().st_size for p in a.glob("*.xz")) for a in (folder / "archives").iterdir()}
    assert packed[common_of(folder).name] > 20_000 > packed["one"] + packed["two"] + packed["work"]


def test_unpacking_again_does_nothing(pieces: list[Path], tmp_path: Path) -> None:
    folder = lay_together(pieces, tmp_path / "host")
    run_bundle.prepare(folder, lambda _: None)
    said: list[str] = []
    assert sorted(run_bundle.prepare(folder, said.append)) == ["one", "two"]
    assert said == []


def test_an_archive_that_is_not_whole_is_left_out_with_what_needs_it(
    pieces: list[Path], tmp_path: Path
) -> None:
    folder = lay_together(pieces, tmp_path / "host")
    common = common_of(folder)
    (common / "0001.xz").unlink()
    said: list[str] = []
    assert run_bundle.prepare(folder, said.append) == {}
    assert f"{common.name}: left out: 1 of its files are not here (0001.xz …)" in said
    assert f"one: left out: it needs {common.name}" in said


def test_a_damaged_part_stops_and_is_named(pieces: list[Path], tmp_path: Path) -> None:
    folder = lay_together(pieces, tmp_path / "host")
    part = common_of(folder) / "0001.xz"
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match=r"common-[0-9a-f]{8}/0001\.xz: damaged"):
        run_bundle.prepare(folder, lambda _: None)


@pytest.mark.parametrize("content", [b"", bytes(3 << 20), b"a" + bytes(3 << 20), bytes(2 << 20) + b"a"])
def test_zeros_are_zeros_again(tmp_path: Path, content: bytes) -> None:
    with (tmp_path / "made").open("wb") as made:
        run_bundle._copy(io.BytesIO(content), made)
    assert (tmp_path / "made").read_bytes() == content


def test_a_folder_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is there already"):
        archives.write_bundle(tmp_path, [])


def test_a_piece_that_holds_not_even_one_part_is_refused(tmp_path: Path) -> None:
    tree = archives.Tree(name="work", files=write(tmp_path / "w", {"a": os.urandom(9000).hex()}))
    with pytest.raises(UsageError, match="larger pieces"):
        archives.write_bundle(tmp_path / "b", [tree], split=100)


def test_an_environment_shows_what_was_brought_and_the_named_packages_of_the_host_only(
    tmp_path: Path,
) -> None:
    # Both `rich` of the host and what was brought lie in one folder: it is linked one level further down.
    brought = write(tmp_path / "t", {"rich/brought_too.py": "", "fakepkg.py": ""})
    host = {"rich": version("rich"), "pygments": None, "markdown-it-py": None, "mdurl": None}
    tree = {name: run_bundle_object(path, tmp_path / "objects") for name, path in brought.items()}
    folder = tmp_path / "environments" / "e"
    folder.parent.mkdir()
    run_bundle.make_environment(folder, tree, tmp_path / "objects", {"python": HERE, "host": host})
    code = (
        "import fakepkg, rich.brought_too, rich.text, importlib.metadata as m, importlib.util as u;"
        "print(m.version('rich'), u.find_spec('pydantic'))"
    )
    said = subprocess.run(
        [str(folder / "bin/python"), "-c", code], capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == [version("rich"), "None"]


def run_bundle_object(path: Path, objects: Path) -> str:
    objects.mkdir(exist_ok=True)
    name = path.name + "-object"
    shutil.copyfile(path, objects / name)
    return name


def test_a_host_that_lacks_something_is_told_all_of_it(tmp_path: Path) -> None:
    spec = {"python": "2.7", "host": {"rich": "0.1", "no-such-package": "1.0", "pygments": None}}
    with pytest.raises(BundleError) as caught:
        run_bundle.make_environment(tmp_path / "e", {}, tmp_path, spec)
    assert f"Python is {HERE} here, 2.7 in the lock" in str(caught.value)
    assert f"rich is {version('rich')} here, 0.1 in the lock" in str(caught.value)
    assert "no-such-package 1.0 is not installed here" in str(caught.value)
    assert "pygments" not in str(caught.value)


def test_a_local_version_is_the_same_release() -> None:
    assert run_bundle.check_host({"torch": "2.11.0"}, {"torch": "2.11.0+cu130"}) == []


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A bundle with the fake worker, unpacked on nothing yet."""
    site = write(tmp_path / "site", {"fakepkg/__init__.py": "SAYS = 'brought'"})
    files = write(tmp_path / "work", {"qvlfp8/worker/fake.py": WORKER, "checkpoints/c": "weights"})
    batches = {
        "many": batch("fine", "die", "raise"),
        "hangs": batch("hang") | {"time_limit_s": 0.3, "import_limit_s": 0.3},
        "elsewhere": batch("fine") | {"environment": "other"},
    }
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    source = jobs.worker_files(["inspect"])
    work = jobs.work_tree(
        {name: b | {"worker": "inspect"} for name, b in batches.items()}, source | files, scratch
    )
    for name in batches:
        path = scratch / f"{name}.json"
        path.write_text(path.read_text().replace('"inspect"', '"fake"'))
    archives.write_bundle(tmp_path / "host", [environment("env", site), work])
    return tmp_path / "host"


def batch(*does: str) -> dict[str, Any]:
    jobs = []
    for do in does:
        file = "checkpoints/none" if do == "raise" else "checkpoints/c"
        jobs.append({"id": do, "out": f"out/{do}", "params": {"do": do, "file": file}})
    return {"environment": "env", "worker": "fake", "time_limit_s": 20, "jobs": jobs}


def result(folder: Path, job: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "out" / job / "result.json").read_text())
    return value


def running(process: int) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_every_job_gets_a_result_and_a_second_run_has_nothing_to_do(host: Path) -> None:
    said = start(host)
    assert "elsewhere: not run: no environment other" in said.stdout
    assert "many: 3/3 raise raised" in said.stdout
    assert said.returncode == 1, said.stderr  # one job, the one that hung, left no result of its own

    assert result(host, "fine")["measured"] == {
        "says": "brought", "gpu": "0", "variable": "yes:own", "read": "weights",
    }  # fmt: skip
    assert "to the log" in (host / "out/fine/log.txt").read_text()
    assert result(host, "die")["failure"]["kind"] == "SIGKILL"
    assert result(host, "raise")["failure"]["kind"] == "FileNotFoundError"
    hung = result(host, "hang")
    assert (hung["outcome"], hung["failure"]["kind"]) == ("timeout", "timeout")
    assert not running(int((host / "out/hang/child").read_text()))

    ran = json.loads((host / "out/fine/ran.json").read_text())
    assert (ran["job"], ran["environment"], ran["lock"], ran["worker"]) == ("fine", "env", "0" * 64, "fake")
    assert len(ran["worker_source"]) == 64
    facts = json.loads((host / "out/host.json").read_text())
    assert facts["environments"]["env"]["brought"] == {"env": "1"}
    check = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=host / "out", check=False)
    assert check.returncode == 0
    assert "fine/result.json" in sums((host / "out/SHA256SUMS").read_text())

    before = (host / "out/fine/result.json").stat().st_mtime_ns
    again = start(host)
    assert again.returncode == 0
    assert "no job is left to run" in again.stdout
    assert (host / "out/fine/result.json").stat().st_mtime_ns == before


def test_only_the_jobs_without_a_result_are_run(host: Path) -> None:
    (host / "out/die").mkdir(parents=True)
    (host / "out/die/result.json").write_text("{}")
    said = start(host, "--only", "many.json", "--gpus", "2")
    assert said.returncode == 0, said.stdout + said.stderr
    assert "many: 2 jobs on GPU" in said.stdout
    assert (host / "out/die/result.json").read_text() == "{}"
    assert not (host / "out/hang").exists()


def test_batches_name_what_they_read_by_places_in_the_bundle(tmp_path: Path) -> None:
    def step(stage: Any, digest: str, *needs: str, params: dict[str, Any] | None = None) -> Step:
        work = Work(stage=stage, environment="vllm-1", params=params or {}, inputs={})
        return Step(work=work, subject=f"the {digest}", digest=digest, needs=needs)

    options = {"exam": {"seed": 1}, "options": {"device": "cuda"}}
    steps = (
        step("build", "b"), step("model", "m"), step("quantize", "q"),
        step("generate", "base", "b", "m", params=options),
        step("generate", "run", "b", "q", "base", params=options),
        step("generate", "unwanted", "b", "q", "base", params=options),
    )  # fmt: skip
    plan = Plan(cells=(), steps={s.digest: s for s in steps}, stages={}, builds={})
    for name in "mq":
        write(tmp_path / name, {"config.json": "{}", "sub/weights": name})
    batches, files = jobs.generate_batches(plan, [steps[4]], lambda s: tmp_path / s.digest, 60)
    assert list(batches) == ["vllm-1"]
    assert batches["vllm-1"] | {"jobs": 0} == {
        "environment": "vllm-1", "worker": "generate", "time_limit_s": 60, "jobs": 0,
    }  # fmt: skip
    base, run = batches["vllm-1"]["jobs"]
    assert base == {
        "id": "base", "label": "the base", "out": "out/base",
        "params": options | {"checkpoint": "checkpoints/m", "baseline": None},
    }  # fmt: skip
    assert run["params"] == options | {"checkpoint": "checkpoints/q", "baseline": "out/base"}
    assert files["checkpoints/q/sub/weights"] == tmp_path / "q/sub/weights"
    assert len(files) == 4


def test_the_source_that_travels_is_the_source_that_is_digested() -> None:
    files = jobs.worker_files(["preflight"])
    for name in ("worker/__main__", "worker/protocol", "worker/preflight", "source", "digest", "__init__"):
        assert f"qvlfp8/{name}.py" in files
    assert not {"qvlfp8/matrix.py", "qvlfp8/cli/__init__.py"} & files.keys()
    for name in source.closure("worker.__main__", "worker.protocol", "worker.preflight"):
        path = f"qvlfp8/{name.replace('.', '/')}"
        assert {f"{path}.py", f"{path}/__init__.py"} & files.keys()
    assert all(path.is_file() for path in files.values())


CONTAINER = struct.Struct("<IHHQ")


def entry(kind: int, capability: int, payload: bytes) -> bytes:
    return struct.pack("<HHIQ12xI32x", kind, 1, 64, len(payload), capability) + payload


def container(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return CONTAINER.pack(0xBA55ED50, 1, 16, len(body)) + body


def test_code_for_other_gpus_is_zeroed_and_the_rest_stays(tmp_path: Path) -> None:
    code = b"".join(
        [
            b"\x7fELF....",
            container(
                entry(2, 80, b"A" * 8),
                entry(2, 90, b"B" * 8),
                entry(1, 90, b"C" * 8),
                entry(1, 120, b"D" * 8),
            ),
            b"\x50\xed\x55\xba, which only looks like one",
            # No machine code for 9.0: PTX that can be compiled for it stays.
            container(entry(2, 80, b"E" * 8), entry(1, 80, b"F" * 8), entry(2, 100, b"G" * 8)),
        ]
    )
    library, target = tmp_path / "a.so", tmp_path / "b.so"
    library.write_bytes(code)
    assert fatbin.keep_only(library, target, 90) == 5 * 8
    expected = code
    for letter in b"ACDEG":
        expected = expected.replace(bytes([letter]) * 8, bytes(8))
    assert target.read_bytes() == expected


def test_a_library_without_cuda_code_is_not_copied(tmp_path: Path) -> None:
    library = tmp_path / "a.so"
    library.write_bytes(b"\x7fELF" * 100)
    assert fatbin.keep_only(library, tmp_path / "b.so", 90) == 0
    assert not (tmp_path / "b.so").exists()
    (tmp_path / "scratch").mkdir()
    files = {"a.so": library}
    assert packages.for_one_gpu(files, 90, tmp_path / "scratch") == files
