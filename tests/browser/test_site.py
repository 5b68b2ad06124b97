"""The site as somebody meets it who opens index.html from disk."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.checking import missing

try:
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import expect
except ImportError:
    missing("playwright is not installed: uv sync --group browser")

if TYPE_CHECKING:
    from playwright.sync_api import Page

BLIND = "lm-fp8~modelopt-0.41.0~seeing-untied~vllm-0.10.2"
SEES = "lm-fp8~modelopt-0.41.0~seeing-untied~vllm-0.26.0"


@pytest.fixture(scope="module")
def site(published: Path) -> Path:
    return published


def counted(page: Page) -> tuple[int, int, int]:
    """Cells shown, of how many, in how many rows: as the page says."""
    found = re.findall(r"[\d,]+", page.locator("#count").inner_text())
    return tuple(int(number.replace(",", "")) for number in found)  # type: ignore[return-value]


def shown(page: Page) -> list[str]:
    """The accessible names of the marks that are shown."""
    names: list[str] = page.eval_on_selector_all(
        "#matrix td:not(.off) .mark", "all => all.filter(m => m.checkVisibility()).map(m => m.ariaLabel)"
    )
    return names


def told(site: Path) -> dict[str, Any]:
    """The API's document, which the page must agree with."""
    found: dict[str, Any] = json.loads((site / "api/v1/site.json").read_text())
    return found


def open_matrix(page: Page, site: Path, state: str = "") -> None:
    page.goto(f"{(site / 'index.html').as_uri()}{state}")
    expect(page.locator("#filters")).to_be_visible()


def test_all_cells_are_shown_as_the_records_say(page: Page, site: Path) -> None:
    open_matrix(page, site)
    cells = told(site)["cells"]
    assert counted(page)[:2] == (len(cells), len(cells))
    marks = shown(page)
    for word in ("sees", "blind", "fails", "never"):
        label = "not run" if word == "never" else word
        assert sum(mark.startswith(label) for mark in marks) == sum(c["outcome"] == word for c in cells)


def test_typing_filters_and_the_address_keeps_it(page: Page, site: Path) -> None:
    open_matrix(page, site)
    page.get_by_label("Any text").press_sequentially("lm-fp8/ blind 0.10.2")
    cells, _, rows = counted(page)
    wanted = [
        cell["id"]
        for cell in told(site)["cells"]
        if cell["id"].startswith("lm-fp8/") and cell["outcome"] == "blind" and "0.10.2" in cell["vllm"]
    ]
    assert cells == len(wanted) == len(shown(page)) > 0
    assert rows == len({name.rpartition("/")[0] for name in wanted})
    address = page.url
    page.reload()
    assert page.url == address
    assert counted(page)[0] == cells
    page.get_by_role("button", name="Clear").first.click()
    assert counted(page)[0] == len(told(site)["cells"])
    assert page.url.endswith("#")


@pytest.mark.parametrize(
    ("label", "key", "value", "holds"),
    [
        ("vLLM", "vllm", "0.26.0", lambda c: c["id"].split("/")[-1].split("+")[0] == "vllm-0.26.0"),
        ("Quantized by", "by", "ModelOpt 0.47.0", lambda c: c["quantize"] == "modelopt-0.47.0"),
        ("transformers", "tf", "4.56.2", lambda c: c["quantize"] == "modelopt-0.37.0"),
        ("Model", "model", "seeing-tied", lambda c: c["model"] == "seeing-tied"),
        ("Run on", "gpu", "NVIDIA H100 80GB HBM3", lambda c: "NVIDIA H100 80GB HBM3" in c["hardware"]),
        ("Ended at", "stage", "load", lambda c: c["executed"] and c["at"] == "load"),
        ("Outcome", "out", "sees", lambda c: c["outcome"] == "sees"),
        (
            "Finding", "finding", "diverges",
            lambda c: any("diverges" in stage["findings"] for stage in c["stages"]),
        ),
    ],
)  # fmt: skip
def test_each_filter_shows_what_has_it(
    page: Page, site: Path, label: str, key: str, value: str, holds: Callable[[dict[str, Any]], bool]
) -> None:
    open_matrix(page, site)
    page.get_by_label(label, exact=True).select_option(value)
    wanted = sum(holds(cell) for cell in told(site)["cells"])
    assert counted(page)[0] == len(shown(page)) == wanted > 0
    # The same by the address alone.
    address = page.url
    assert f"{key}=" in address
    page.goto("about:blank")
    page.goto(address)
    assert counted(page)[0] == wanted


def test_nothing_found_is_said(page: Page, site: Path) -> None:
    open_matrix(page, site, "#q=there+is+no+such+thing")
    expect(page.get_by_text("No cell is like that.")).to_be_visible()
    page.locator("#clear").click()
    assert counted(page)[0] == len(told(site)["cells"])


def test_by_keyboard_alone(page: Page, site: Path) -> None:
    open_matrix(page, site)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    while not page.evaluate("document.activeElement.id === 'q'"):
        page.keyboard.press("Tab")
    page.keyboard.type("lm-fp8/modelopt-0.41.0/")
    page.keyboard.press("Tab")
    page.keyboard.type("sees")  # the select of outcomes
    assert counted(page)[0] < len(told(site)["cells"])
    stops = 0
    while not page.evaluate("document.activeElement.closest('#matrix') !== null"):
        page.keyboard.press("Tab")
        stops += 1
        assert stops < 15
    name = "document.activeElement.ariaLabel"
    first = page.evaluate(name)
    assert first.startswith("sees, passed speed: lm-fp8/modelopt-0.41.0/seeing-untied in vLLM ")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(name) != first
    page.keyboard.press("Home")
    assert page.evaluate(name) == first
    page.keyboard.press("Control+End")
    page.keyboard.press("Control+Home")
    assert page.evaluate(name) == first
    page.keyboard.press("Enter")
    page.wait_for_url("**/cells/*")
    assert "lm-fp8" in page.title()


def test_the_matrix_is_one_stop_of_the_tab_key(page: Page, site: Path) -> None:
    open_matrix(page, site)
    assert page.locator("#matrix .mark[tabindex='0']").count() == 1
    page.locator("#matrix a.mark").nth(5).focus()
    assert page.locator("#matrix .mark[tabindex='0']").count() == 1
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.classList.contains('mark')")


def test_from_a_cell_to_its_finding_and_back(page: Page, site: Path) -> None:
    open_matrix(page, site, "#out=blind")
    page.locator(f"a[href='cells/{BLIND}.html']").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("lm-fp8 in vLLM 0.10.2")
    pictures = page.locator(".answers img")
    assert pictures.count() >= 6
    for index in range(pictures.count()):
        pictures.nth(index).scroll_into_view_if_needed()
        page.wait_for_function(
            "all => all.complete && all.naturalWidth > 0", arg=pictures.nth(index).element_handle()
        )
    expect(page.locator(".answers .said .fails").first).to_be_visible()
    page.get_by_role("link", name="blind", exact=True).first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("blind")
    expect(page.get_by_text("NVIDIA")).to_have_count(0)
    page.locator(f"a[href='../cells/{BLIND}.html']").click()
    assert BLIND in page.url
    page.go_back()
    page.go_back()
    page.go_back()
    assert page.url.endswith("#out=blind")
    assert counted(page)[0] == sum(cell["outcome"] == "blind" for cell in told(site)["cells"])


def test_a_cells_chart_has_its_numbers_as_a_table(page: Page, site: Path) -> None:
    page.goto((site / f"cells/{SEES}.html").as_uri())
    points = page.locator(".chart .point")
    rows = page.locator(".chart + .scroll tbody tr")
    assert points.count() == 2 * rows.count() > 2
    expect(page.locator("tr.is-here th")).to_have_text("0.26.0")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
@pytest.mark.parametrize(
    "path",
    ["index.html", f"cells/{BLIND}.html", f"cells/{SEES}.html", "findings.html", "findings/blind.html",
     "recipes.html", "api.html"],
)  # fmt: skip
def test_no_serious_barrier_and_nothing_beside_the_screen(
    page: Page, site: Path, path: str, width: int, scheme: str
) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.goto((site / path).as_uri())
    for narrow in (320, width):
        page.set_viewport_size({"width": narrow, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= narrow
    if path == "index.html":
        # A part of the matrix has every kind of element, and is quick to look at.
        page.get_by_label("Any text").fill("lm-fp8/modelopt-0.4")
    # It would ask for the style sheet by itself, which the page's policy forbids everybody.
    found = Axe().run(page, options={"preload": False}).response["violations"]
    serious = {
        one["id"]: [node["html"][:200] for node in one["nodes"][:3]]
        for one in found
        if one["impact"] in {"serious", "critical"}
    }
    assert serious == {}


def test_dark_is_dark(page: Page, site: Path) -> None:
    luminance = """() => {
      const [r, g, b] = getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number);
      return (r + g + b) / 765; }"""
    page.goto((site / "index.html").as_uri())
    page.emulate_media(color_scheme="light")
    assert page.evaluate(luminance) > 0.9
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(luminance) < 0.15


def test_without_javascript_the_table_is_whole(site: Path, page: Page) -> None:
    browser = page.context.browser
    assert browser is not None
    context = browser.new_context(java_script_enabled=False)
    try:
        plain = context.new_page()
        plain.goto((site / "index.html").as_uri())
        assert plain.locator("#matrix .mark").count() == len(told(site)["cells"])
        expect(plain.locator("#filters")).to_be_hidden()
        plain.locator(f"a[href='cells/{SEES}.html']").click()
        expect(plain.get_by_role("heading", level=1)).to_have_text("lm-fp8 in vLLM 0.26.0")
    finally:
        context.close()


def test_filtering_hundreds_of_rows_is_quick(page: Page, site: Path) -> None:
    open_matrix(page, site)
    took = page.evaluate("""() => {
      const q = document.getElementById("q");
      let slowest = 0;
      for (const text of ["b", "bl", "blind", "blind 0.1", ""]) {
        q.value = text;
        const before = performance.now();
        q.dispatchEvent(new Event("input", { bubbles: true }));
        slowest = Math.max(slowest, performance.now() - before);
        document.body.getBoundingClientRect();
      }
      return slowest; }""")
    # The script's part; some 10 to 30 ms on two cores. What the browser lays out is its own.
    assert took < 200
