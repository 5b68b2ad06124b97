"""The checker in a real browser, from disk: the answer of `qvlfp8 explain`, and nothing leaves the page."""

from __future__ import annotations

import json
import re
import shutil
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from jinja2 import Environment, PackageLoader, StrictUndefined

from qvlfp8.checkpoint import CONFIG, INDEX, WEIGHTS
from qvlfp8.contract.samples import Sizes, samples
from qvlfp8.site import checker as written
from qvlfp8.site import pyodide
from qvlfp8.worker.contract import write_checkpoint
from tests.browser.checking import Checker, missing
from tests.unit import hostile
from tests.unit.checkpoints import (
    LM_EXCLUSIONS,
    fp8_tensors,
    inline_quantization,
    lm_fp8,
    small_config,
    write,
)
from tests.unit.test_cli import qvlfp8
from tests.unit.test_explain import portable
from tests.unit.test_repair import naive, sharded

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ASSETS = Path(written.__file__).with_name("assets")


def render(template: str, /, **values: Any) -> str:
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


@dataclass(frozen=True)
class Start:
    """The page's start: what of the checker it had asked for before files came, and with its first answer."""

    before: list[str]
    again_before: bool
    after: list[str]


@pytest.fixture(scope="module")
def started(
    chromium: Browser, site: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Checker, Start]]:
    """One page for all tests: Python takes seconds to start in it."""
    checker = Checker.open(chromium, site)
    before, again = _of_checker(checker), checker.page.locator("#again").is_enabled()
    checker.choose(portable(tmp_path_factory.mktemp("first") / "a"))
    yield checker, Start(before, again, _of_checker(checker))
    checker.page.close()


def _of_checker(checker: Checker) -> list[str]:
    return [address for address in checker.requests if "/checker/" in address]


@pytest.fixture(scope="module")
def opened(started: tuple[Checker, Start]) -> Checker:
    return started[0]


@pytest.fixture
def checker(opened: Checker) -> Iterator[Checker]:
    """The page, used by one test after the other; each must leave the console clean and stay on the disk."""
    opened.console.clear()
    yield opened
    assert opened.console == []
    assert [address for address in opened.requests if not address.startswith(("file:///", "blob:"))] == []


def agrees(checker: Checker, folder: Path) -> int:
    """Hold the page's answer against the command's, field by field and line by line; give the exit code."""
    program = qvlfp8("explain", folder.name, "--json", cwd=folder.parent)
    people = qvlfp8("explain", folder.name, cwd=folder.parent)
    assert checker.code == program.returncode == people.returncode
    assert checker.explained == (json.loads(program.stdout) if program.stdout else None)
    if program.stdout:
        # A reason may have a second line, which the page shows in the same place.
        assert "\n".join(checker.lines).replace("\n  ", "\n") == people.stdout.rstrip().replace("\n  ", "\n")
    problem, _, mend = people.stderr.removeprefix("error: ").rstrip().partition("\n  mend: ")
    assert [_worded(text) for text in checker.problem] == (
        [_worded(problem), f"Mend: {mend}"] if people.stderr else []
    )
    return people.returncode


def _worded(text: str) -> str:
    """Python 3.13 words some errors of JSON otherwise; a browser's memory knows no name that is too long."""
    text = text.replace("File name too long", "No such file or directory")
    return text if sys.version_info[:2] == (3, 13) else re.sub(r"(is not valid JSON) \(.*\)", r"\1", text)


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
    assert agrees(checker, tmp_path / case) == code


_NO_FILES = ("link", "pipe", "folder", "dangling", "unprintable")
HOSTILE = [case for case in hostile.CASES if not case.heavy and not any(n in case.name for n in _NO_FILES)]
"""Those made of files that a browser can give: links and pipes it follows or leaves out."""


@pytest.mark.parametrize("case", HOSTILE, ids=[case.name for case in HOSTILE])
def test_what_is_hostile_is_answered_as_the_command_answers(
    case: hostile.Case, checker: Checker, tmp_path: Path
) -> None:
    folder = hostile.victim(tmp_path / "victim")
    case.make(folder)
    assert all(path.is_file() and not path.is_symlink() for path in folder.iterdir())
    checker.choose(folder)
    agrees(checker, folder)


def answered_elsewhere(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(qvlfp8("explain", folder.name, "--json", cwd=folder.parent).stdout)
    return found


def test_nothing_is_loaded_before_files_come(started: tuple[Checker, Start]) -> None:
    start = started[1]
    assert (start.before, start.again_before) == ([], False)
    assert len(start.after) == 5


@pytest.mark.parametrize(("make", "code"), [(portable, 0), (naive, 1)], ids=["good", "bad"])
def test_a_folder_is_dropped(
    make: Callable[[Path], Path], code: int, checker: Checker, tmp_path: Path
) -> None:
    checker.drop(make(tmp_path / "dropped"))
    assert agrees(checker, tmp_path / "dropped") == code


@pytest.mark.parametrize(("make", "code"), [(portable, 0), (naive, 1)], ids=["good", "bad"])
def test_a_folder_is_chosen_by_keyboard_alone(
    make: Callable[[Path], Path], code: int, checker: Checker, tmp_path: Path
) -> None:
    folder = make(tmp_path / "chosen")
    page = checker.page
    checker.mark_old()
    page.evaluate("() => document.querySelector('.skip').focus()")
    checker.press_until("Tab", "#folder")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(folder)
    checker.wait()
    assert agrees(checker, folder) == code
    if code:
        checker.press_until("Tab", "#result a")
        assert "findings/" in page.evaluate("() => document.activeElement.getAttribute('href')")
        checker.press_until("Tab", ".command button")
        page.keyboard.press("Enter")
        page.wait_for_selector("#state:has-text('The command is')")
        assert page.evaluate("() => getSelection().toString()").startswith("qvlfp8 repair chosen")


def test_files_add_up_to_an_answer(checker: Checker, tmp_path: Path) -> None:
    folder = sharded(tmp_path / "CHECKPOINT")
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
        "chat_template.jinja",
    ):
        (folder / name).unlink()
    checker.page.click("#clear", force=True)
    checker.drop(folder / CONFIG)
    assert checker.code == 3
    assert checker.notes == [checker.page.inner_text("#result .notes").strip()]
    assert checker.notes[0].startswith("Add the .safetensors file, or model.safetensors.index.json")
    assert checker.state == "No answer yet: a file has to be added."
    # Said once: the command's own words are folded away.
    assert not checker.page.locator("#result .problem p").first.is_visible()
    checker.drop(folder / INDEX)
    assert any("neither types nor shapes" in note for note in checker.notes)
    checker.drop(*sorted(folder.glob("*.safetensors")))
    assert agrees(checker, folder) == 1
    assert any("Not among these files: tokenizer_config.json" in note for note in checker.notes)
    assert "CHECKPOINT stands for the folder" in checker.shown
    checker.page.click("#clear")
    assert (checker.shown, checker.state) == ("", "Nothing is given.")


def test_the_answer_is_announced_and_findings_are_linked(checker: Checker, tmp_path: Path) -> None:
    checker.choose(naive(tmp_path / "bad"))
    assert checker.state == "bad works in 0 of 15 vLLM versions"
    assert checker.page.get_attribute("#state", "aria-live") == "polite"
    link = checker.page.locator("#result .range a", has_text="stray-vision-kv-scale").first
    assert link.get_attribute("href") == "findings/stray-vision-kv-scale.html"
    assert checker.page.locator("#result .range .mark.fails").count() >= 1


def test_only_some_versions_are_asked_for(checker: Checker, tmp_path: Path) -> None:
    checker.choose(lm_fp8(tmp_path / "a"))
    for asked, expected in ((">=0.13,<0.15", 0), (">>1", 2), ("", 1)):
        checker.mark_old()
        checker.page.fill("#vllm", asked)
        checker.page.press("#vllm", "Enter")
        checker.wait()
        assert checker.code == expected
    assert checker.explained == answered_elsewhere(tmp_path / "a")


def test_what_a_file_is_called_is_text(checker: Checker, tmp_path: Path) -> None:
    folder = lm_fp8(tmp_path / "<b>a")
    (folder / WEIGHTS).rename(folder / "<img src=x onerror=alert(1)>.safetensors")
    hostile.edit(CONFIG, quantization_config=inline_quantization(("<script>", "lm_head")))(folder)
    checker.choose(folder)
    agrees(checker, folder)
    assert "<script>" in checker.shown
    assert checker.page.locator("#result img, #result script, #given img, #result b").count() == 0


_REFUSED = """
() => new Promise((resolve) => {
  addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
  const asked = new XMLHttpRequest();
  asked.open("POST", "https://example.org/");
  // What is forbidden ends in an error as well, after the event.
  asked.onloadend = () => setTimeout(() => resolve("allowed"), 1000);
  asked.send("a");
})
"""


def test_neither_page_nor_worker_can_connect(opened: Checker, tmp_path: Path) -> None:
    opened.choose(portable(tmp_path / "a"))
    (worker,) = opened.page.workers
    asked = len(opened.requests)
    assert opened.page.evaluate(_REFUSED) == "connect-src"
    assert worker.evaluate(_REFUSED) == "connect-src"
    # It was the test that asked.
    del opened.requests[asked:]


def test_a_site_that_is_not_whole_says_so(chromium: Browser, site: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(site, broken)
    next((broken / "assets" / "checker").glob("wasm-*")).unlink()
    checker = Checker.open(chromium, broken)
    checker.choose(portable(tmp_path / "a"))
    assert "cannot be loaded: the site is not whole" in checker.shown
    assert "qvlfp8 explain a" in checker.shown
    assert checker.state == "The checker failed."
    checker.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible_and_narrow(scheme: Literal["light", "dark"], checker: Checker, tmp_path: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = checker.page
    page.emulate_media(color_scheme=scheme)
    checker.choose(naive(tmp_path / "bad"))
    # Without preload: to fetch the style sheet once more is what the page forbids.
    found = Axe().run(page, options={"preload": False}).response["violations"]
    assert [
        (each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in {"serious", "critical"}
    ] == []
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
    page.set_viewport_size({"width": 1100, "height": 900})


def test_a_page_without_checker_is_quiet(chromium: Browser, site: Path, tmp_path: Path) -> None:
    without_it = tmp_path / "without"
    shutil.copytree(site, without_it)

    def runtime() -> Mapping[str, bytes]:
        raise pyodide.PyodideError("there is no network")

    assert written.write_checker(without_it, render, runtime=runtime) is not None
    checker = Checker.open(chromium, without_it)
    assert "The checker was not built" in (checker.page.text_content("main") or "")
    assert checker.console == []
    checker.page.close()
