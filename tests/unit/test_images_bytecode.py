"""The bytecode of an image: of what is imported, the same in every build."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "containers" / "bytecode.py"
PACKAGES = {
    "entry": "import used\nimport other.used\nimport json\n",
    "other": "",
    "other/used": "",
    "used": "import used.inner\n",
    "used/inner": "",
    "unused": "",
    "half": "import before\nraise ImportError('no GPU here')\n",
    "before": "",
    "ends": "raise SystemExit(3)\n",
}
USED = {"used/__init__", "used/inner"}
OTHER = {"other/__init__", "other/used"}


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An environment with a few modules."""
    root = tmp_path / "environment"
    venv.create(root, with_pip=False, symlinks=True)
    (site,) = root.glob("lib/python*/site-packages")
    for name, text in PACKAGES.items():
        packaged = any(other.startswith(f"{name}/") for other in PACKAGES)
        path = site / (f"{name}/__init__.py" if packaged else f"{name}.py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return root


def compiled(environment: Path) -> dict[str, bytes]:
    """Module -> its bytecode."""
    (site,) = environment.glob("lib/python*/site-packages")
    paths = {str(path.relative_to(site)): path for path in site.rglob("*.pyc")}
    return {name.replace("__pycache__/", "").split(".")[0]: path.read_bytes() for name, path in paths.items()}


def compile_with(environment: Path, *modules: str) -> str:
    done = subprocess.run(
        [environment / "bin" / "python", "-P", SCRIPT, *modules],
        capture_output=True, text=True, check=True, cwd=environment,
        env={"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    return done.stderr


def test_what_is_imported_is_compiled_and_nothing_else(environment: Path) -> None:
    compile_with(environment, "entry")
    assert compiled(environment).keys() == {"entry", *USED, *OTHER}
    # Outside the environment nothing is written: json is the base's.
    assert not list(environment.rglob("*json*.pyc"))


def test_a_module_that_cannot_be_imported_is_named_and_stops_nothing(environment: Path) -> None:
    said = compile_with(environment, "half", "nowhere", "ends", "entry")
    assert "half cannot be imported here: ImportError: no GPU here" in said
    assert "nowhere cannot be imported here: ModuleNotFoundError" in said
    assert "ends cannot be imported here: SystemExit: 3" in said
    assert {"half", "before", "entry"} <= compiled(environment).keys()


def test_what_is_imported_does_not_live_in_the_process_that_compiles(environment: Path) -> None:
    """Bytecode has marks of which strings lived elsewhere in that process: it would depend on all imports."""
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "meddles.py").write_text("import py_compile\npy_compile.compile = None\n")
    compile_with(environment, "meddles", "entry")
    assert {"meddles", "entry"} <= compiled(environment).keys()


def test_a_package_by_itself_and_the_rest(environment: Path) -> None:
    compile_with(environment, "--only=used", "entry")
    assert compiled(environment).keys() == USED
    for path in environment.rglob("*.pyc"):
        path.unlink()
    compile_with(environment, "--but=used", "entry")
    assert compiled(environment).keys() == {"entry", *OTHER}


def test_a_module_that_ends_python_costs_its_own_bytecode_at_most(environment: Path) -> None:
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "aborts.py").write_text("import before, os\nos.abort()\n")
    (site / "quits.py").write_text(
        "import os\nprint('no newline', end='', flush=True)\nraise KeyboardInterrupt\n"
    )
    said = compile_with(environment, "quits", "aborts", "entry")
    assert "aborts ends Python here" in said
    assert {"before", "entry", *USED, "quits"} <= compiled(environment).keys()


def test_bytecode_holds_no_time(environment: Path) -> None:
    compile_with(environment, "entry")
    first = compiled(environment)
    for path in environment.rglob("*.py"):
        path.touch()
    compile_with(environment, "entry")
    assert compiled(environment) == first
    # PEP 552: bit 0, a hash and no time; bit 1 would have the source read to check it.
    assert {int.from_bytes(code[4:8], "little") for code in first.values()} == {1}
