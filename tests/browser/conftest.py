"""A site made from the committed records, opened from disk in Debian's Chromium.

Without Playwright or Chromium these tests are skipped, with what is missing; with QVLFP8_TESTS_NEED_BROWSER
set they fail instead.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qvlfp8.project import Project
from qvlfp8.site.publishing import publish

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request

ROOT = Path(__file__).parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome")


def _missing(what: str) -> None:
    if os.environ.get("QVLFP8_TESTS_NEED_BROWSER"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, by Playwright."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("the Python package playwright is missing: uv sync --group browser")
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        _missing("no Chromium is installed: apt-get install chromium")
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not start for root.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = playwright.chromium.launch(executable_path=program, args=options)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def site(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of the committed records, without a store."""
    root = tmp_path_factory.mktemp("published")
    publish(Project.open(ROOT / "matrix.yaml", root / "no-store"), root / "site")
    return root / "site"


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that may say nothing on its console, and ask for nothing outside its folder."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    said: list[str] = []
    opened.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    opened.on("pageerror", lambda error: said.append(f"error: {error}"))
    opened.on("requestfailed", lambda request: said.append(f"not loaded: {request.url}"))

    def asked(request: Request) -> None:
        if not request.url.startswith("file:"):
            said.append(f"asked outside: {request.url}")

    opened.on("request", asked)
    yield opened
    context.close()
    assert said == []
