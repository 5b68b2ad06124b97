"""The checker in a real browser, from disk: the answer of `qvlfp8 explain`, and nothing leaves the page."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jinja2 import Environment, PackageLoader, StrictUndefined

from qvlfp8.checkpoint import CONFIG, WEIGHTS
from qvlfp8.contract.samples import Sizes, samples
from qvlfp8.site import checker as written
from qvlfp8.worker.contract import write_checkpoint
from tests.browser.checking import Checker, browser, missing
from tests.unit import hostile
from tests.unit.checkpoints import (
    LM_EXCLUSIONS,
    fp8_tensors,
    inline_quantization,
    lm_fp8,
    small_config,
    write,
)
from tests.unit.test_explain import portable
from tests.unit.test_repair import naive, sharded

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ASSETS = Path(written.__file__).with_name("assets")


def render(template: str, /, **values: object) -> str:
    loader = PackageLoader("qvlfp8.site")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    return environment.get_template(template).render(**values)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    (out / "assets").mkdir()
    for name in ("site.css", "icon.svg"):
        shutil.copy(ASSETS / name, out / "assets")
    if (why := written.write_checker(out, render)) is not None:
        missing(why)
    return out


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def opened(chromium: Browser, site: Path) -> Iterator[Checker]:
    checker = Checker.open(chromium, site)
    yield checker
    checker.page.close()


@pytest.fixture
def checker(opened: Checker) -> Iterator[Checker]:
    """The page, used by one test after the other; each must leave the console clean and stay on the disk."""
    opened.console.clear()
    yield opened
    assert opened.console == []
    assert [address for address in opened.requests if not address.startswith(("file:///", "blob:"))] == []


OTHER = Sizes(layers=3, blocks=4, hidden=384, inner=640, vision=240, vision_inner=480, mergers=2)
SEVEN_BILLION = Sizes(layers=28, blocks=32, hidden=3584, inner=18944, vision=1280, vision_inner=5120)


def sample(wanted: str, sizes: Sizes = OTHER) -> Callable[[Path], object]:
    """A checkpoint as a producer writes it, at another size than the one that was shown to vLLM.

    Its data is a hole: none of 7 GB is ever read.
    """

    def make(folder: Path) -> None:
        found = next(each for each in samples() if each.name == wanted)
        write_checkpoint(folder, found.files(sizes), found.tensors(sizes))

    return make


def respelled(folder: Path) -> None:
    """An exclusion that old versions do not match: blind there."""
    tensors = fp8_tensors(small_config())
    quantization = inline_quantization(("lm_head", "model.visual*"))
    write(folder, tensors, small_config() | {"quantization_config": quantization})


def negative(folder: Path) -> None:
    tensors = fp8_tensors(small_config())
    tensors["model.layers.0.mlp.up_proj.weight_scale"] = ("F32", (), struct.pack("<f", -1.0))
    write(folder, tensors, small_config() | {"quantization_config": inline_quantization(LM_EXCLUSIONS)})


def without(make: Callable[[Path], object], *names: str) -> Callable[[Path], object]:
    def make_less(folder: Path) -> None:
        make(folder)
        for name in names:
            (folder / name).unlink()

    return make_less


def with_config(**fields: Any) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        lm_fp8(folder)
        hostile.edit(CONFIG, **fields)(folder)

    return make


def of_no_known_form(folder: Path) -> None:
    lm_fp8(folder)
    config = json.loads((folder / CONFIG).read_text())
    config["quantization_config"] |= {"quant_algo": "NVFP4"}
    (folder / CONFIG).write_text(json.dumps(config))


def one_shard(folder: Path) -> None:
    sharded(folder)
    sorted(folder.glob("*.safetensors"))[1].unlink()


CASES: dict[str, tuple[Callable[[Path], object], int]] = {
    "works-everywhere": (portable, 0),
    "lm-fp8": (lm_fp8, 1),
    "blind-in-old-versions": (respelled, 1),
    "stray-vision-kv-scales": (naive, 1),
    "negative-scale": (negative, 1),
    "sharded-with-index": (sharded, 1),
    "index-names-what-is-not-there": (one_shard, 3),
    "without-preprocessor": (without(naive, "preprocessor_config.json"), 1),
    "no-config": (without(lm_fp8, CONFIG), 3),
    "no-weights": (without(lm_fp8, WEIGHTS), 3),
    "another-model": (with_config(architectures=["LlamaForCausalLM"]), 4),
    "another-method": (with_config(quantization_config={"quant_method": "gptq"}), 4),
    "no-known-form": (of_no_known_form, 4),
    "nvfp4": (sample("modelopt-0.45.0 qwen2_5_vl nvfp4 lm no-kv untied"), 1),
    "compressed-fp8": (sample("llm-compressor-0.14.0.1 qwen2_5_vl FP8_DYNAMIC vlm kv untied"), 1),
    "compressed-nvfp4": (sample("llm-compressor-0.14.0.1 qwen2_vl NVFP4 vlm no-kv untied"), 1),
    "qwen3-vl": (sample("modelopt-0.41.0 qwen3_vl fp8 lm no-kv tied"), 1),
    "qwen3-vl-stray-scales": (sample("modelopt-0.45.0 qwen3_vl fp8 lm kv+strays untied"), 1),
    "of-seven-billion": (sample("modelopt-0.44.0 qwen2_vl fp8 lm kv tied", SEVEN_BILLION), 1),
}
"""What to make, and the exit code of the command."""


@pytest.mark.parametrize("case", CASES)
def test_the_page_says_what_the_command_says(case: str, checker: Checker, tmp_path: Path) -> None:
    make, code = CASES[case]
    make(tmp_path / case)
    checker.choose(tmp_path / case)
    assert checker.agrees(tmp_path / case) == code


@pytest.mark.parametrize(
    "case", [case for case in hostile.CASES if not case.heavy], ids=lambda case: case.name
)
def test_what_is_hostile_is_answered_as_the_command_answers(
    case: hostile.Case, checker: Checker, tmp_path: Path
) -> None:
    folder = hostile.victim(tmp_path / "victim")
    case.make(folder)
    if odd := [path.name for path in folder.iterdir() if not _is_plain(path)]:
        pytest.skip(f"a browser gives no such file: {odd}")
    checker.choose(folder)
    checker.agrees(folder)


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.name.isprintable()
