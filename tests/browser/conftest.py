"""A site made from the committed records, opened from disk in Debian's Chromium.

Without Playwright or Chromium these tests are skipped, with what is missing; with QVLFP8_TESTS_NEED_BROWSER
set they fail instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qvlfp8.project import Project
from qvlfp8.site.publishing import publish
from qvlfp8.site.pyodide import PyodideError
from tests.browser.checking import browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One browser for all tests: Playwright starts but once at a time."""
    with browser() as opened:
        yield opened


def _no_runtime() -> Mapping[str, bytes]:
    raise PyodideError("not wanted here")


@pytest.fixture(scope="session")
def published(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of the committed records, without a store and without the checker's Python."""
    root = tmp_path_factory.mktemp("published")
    publish(Project.open(ROOT / "matrix.yaml", root / "no-store"), root / "site", runtime=_no_runtime)
    return root / "site"


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page that may say nothing on its console, and ask for nothing outside its folder."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    said: list[str] = []
    opened.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    opened.on("pageerror", lambda error: said.append(f"error: {error}"))

    def failed(request: Request) -> None:
        # Who leaves a page ends what it still loads.
        if request.failure != "net::ERR_ABORTED":
            said.append(f"not loaded: {request.url}: {request.failure}")

    opened.on("requestfailed", failed)

    def asked(request: Request) -> None:
        if not request.url.startswith("file:"):
            said.append(f"asked outside: {request.url}")

    opened.on("request", asked)
    yield opened
    context.close()
    assert said == []
