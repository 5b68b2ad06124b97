"""`--hf-ptq`: which script, with which options, what its end means. That it quantizes is seen on a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qvlfp8.errors import UsageError
from qvlfp8.hf_ptq import find_script
from qvlfp8.matrix import read_matrix
from qvlfp8.recipe import Recipe
from qvlfp8.worker import hf_ptq
from tests.unit.test_cli import ROOT, fails, qvlfp8

OPTIONS = 'parser.add_argument("--calib_seq")\nparser.add_argument("--skip_generate")\n'


@pytest.fixture(scope="module")
def recipes() -> dict[str, Recipe]:
    return read_matrix(ROOT / "matrix.yaml").recipes


def checkout(root: Path, place: str = "examples/hf_ptq", text: str = OPTIONS) -> Path:
    (root / place).mkdir(parents=True)
    (root / place / "hf_ptq.py").write_text(text)
    return root


@pytest.mark.parametrize("place", ["examples/hf_ptq", "examples/llm_ptq"])
def test_the_script_is_found_where_it_was_and_is(
    tmp_path: Path, recipes: dict[str, Recipe], place: str
) -> None:
    found = find_script(checkout(tmp_path, place), recipes["lm-fp8"])
    assert found == (tmp_path / place / "hf_ptq.py").resolve()
    assert hf_ptq.described(found)["script"] == f"{place}/hf_ptq.py"


def test_a_folder_without_the_script_is_named(tmp_path: Path) -> None:
    done = qvlfp8("quantize", "lm-fp8", "--model", str(ROOT), "--out", "/x", "--hf-ptq", str(tmp_path))
    fails(done, 3)  # the model comes first
    with pytest.raises(UsageError, match=r"no examples/hf_ptq/hf_ptq\.py and no examples/llm_ptq"):
        find_script(tmp_path, read_matrix(ROOT / "matrix.yaml").recipes["lm-fp8"])


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("vlm-fp8", "more than the language model"),
        ("vision-fp8", "more than the language model"),
        ("vlm-fp8-naive", "more than the language model"),
        ("lm-fp8-image-calib", "which hf_ptq.py drops for this model"),
        ("lm-fp8-portable", "spells its exclusions"),
        ("llmcompressor-fp8-dynamic", "not made by ModelOpt"),
    ],
)
def test_what_the_script_cannot_do_is_refused(
    tmp_path: Path, recipes: dict[str, Recipe], recipe: str, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        find_script(checkout(tmp_path), recipes[recipe])


@pytest.mark.parametrize(
    ("recipe", "formats"),
    [
        ("lm-fp8", ["fp8", "fp8"]),
        ("lm-fp8-nokv", ["fp8", "none"]),
        ("lm-fp8-kv-cast", ["fp8", "fp8_cast"]),
        ("lm-nvfp4-kv-fp8", ["nvfp4", "fp8"]),
    ],
)
def test_a_recipe_in_the_options_of_the_script(
    tmp_path: Path, recipes: dict[str, Recipe], recipe: str, formats: list[str]
) -> None:
    script = find_script(checkout(tmp_path), recipes[recipe])
    meaning = recipes[recipe].meaning
    said = hf_ptq.command(script, meaning, Path("/m"), Path("/t.jsonl"), 8, 77, Path("/o"))  # type: ignore[arg-type]
    assert said[:2] == [sys.executable, str(script)]
    assert [said[said.index(option) + 1] for option in ("--qformat", "--kv_cache_qformat")] == formats
    pairs = {"--pyt_ckpt_path": "/m", "--dataset": "/t.jsonl", "--calib_size": "8", "--export_path": "/o"}
    for option, value in {**pairs, "--batch_size": "1", "--calib_seq": "77"}.items():
        assert said[said.index(option) + 1] == value
    assert "--skip_generate" in said


def test_an_older_script_is_not_given_what_it_does_not_know(
    tmp_path: Path, recipes: dict[str, Recipe]
) -> None:
    script = find_script(checkout(tmp_path, text="# neither"), recipes["lm-fp8"])
    meaning = recipes["lm-fp8"].meaning
    said = hf_ptq.command(script, meaning, Path("/m"), Path("/t"), 8, 77, Path("/o"))  # type: ignore[arg-type]
    assert "--calib_seq" not in said
    assert "--skip_generate" not in said


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ("print('first'); raise SystemExit('no such format')", RuntimeError, "exit code 1: first | no such"),
        ("raise SystemExit('CUDA out of memory. Tried')", MemoryError, "out of memory"),
        ("raise SystemExit(7)", RuntimeError, "exit code 7"),
    ],
)
def test_a_script_that_fails_says_why(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str, kind: type[Exception], says: str
) -> None:
    script = tmp_path / "hf_ptq.py"
    script.write_text(text)
    with pytest.raises(kind) as caught:
        hf_ptq._run([sys.executable, "-u", str(script)], tmp_path)
    assert says in str(caught.value)
    if "first" in text:
        assert "first\n" in capfd.readouterr().err  # the log has all of it
