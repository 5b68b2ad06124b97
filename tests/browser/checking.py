"""The checker's page in a real browser, and the command beside it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PATIENCE = 180_000
"""Milliseconds: the first answer takes seconds on an idle machine, and minutes on one that is busy."""

ANSWERED = "#result:not([aria-busy]) h2, #result:not([aria-busy]) .problem"


def missing(what: str) -> NoReturn:
    """Skip with one line, or fail where the browser tests must run."""
    if os.environ.get("QVLFP8_TESTS_NEED_BROWSER"):
        pytest.fail(what)
    pytest.skip(what, allow_module_level=True)


@contextmanager
def browser() -> Iterator[Browser]:
    """Debian's Chromium, driven by Playwright."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed: uv sync --group browser")
    found = os.environ.get("QVLFP8_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        missing("there is no chromium: apt-get install chromium, or name one in QVLFP8_CHROMIUM")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@dataclass
class Checker:
    """The page, opened from disk, and all that it said and asked for."""

    page: Page
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, browser: Browser, site: Path) -> Checker:
        checker = cls(page=browser.new_page(viewport={"width": 1100, "height": 900}))
        page = checker.page
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: checker.console.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: checker.console.append(f"error: {error}"))
        page.on("request", lambda request: checker.requests.append(request.url))
        page.goto((site / "check.html").as_uri())
        return checker

    def choose(self, folder: Path) -> None:
        """Choose a folder by the picker, and wait for the answer."""
        self.mark_old()
        self.page.set_input_files("#folder", folder)
        self.wait()

    def drop(self, *paths: Path) -> None:
        """Drop files or a folder of the disk on the page, as a person does, and wait for the answer."""
        self.mark_old()
        box = self.page.locator("#checker").bounding_box()
        assert box is not None
        devtools = self.page.context.new_cdp_session(self.page)
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        place = {"x": box["x"] + 20, "y": box["y"] + 20, "data": data}
        for kind in ("dragEnter", "dragOver", "drop"):
            devtools.send("Input.dispatchDragEvent", {"type": kind, **place})
        devtools.detach()
        self.wait()

    def press_until(self, key: str, selector: str) -> None:
        """Press a key until an element has the focus."""
        for _ in range(60):
            if self.page.evaluate("s => document.activeElement.matches(s)", selector):
                return
            self.page.keyboard.press(key)
        raise AssertionError(f"{key} does not lead to {selector}")

    def mark_old(self) -> None:
        """Forget the answer that is there, so that the next one is waited for."""
        self.page.evaluate("() => document.getElementById('result').replaceChildren()")

    def wait(self) -> None:
        self.page.wait_for_selector(ANSWERED)

    @property
    def state(self) -> str:
        return self.page.text_content("#state") or ""

    @property
    def shown(self) -> str:
        return self.page.text_content("#result") or ""

    @property
    def code(self) -> int:
        return int(self.page.get_attribute("#result", "data-code") or "-1")

    @property
    def explained(self) -> dict[str, Any] | None:
        """The JSON of the answer, as the page shows it."""
        if (found := self.page.query_selector("#json")) is None:
            return None
        shown: dict[str, Any] = json.loads(found.text_content() or "")
        return shown

    @property
    def lines(self) -> list[str]:
        """What the page shows of an explanation, line by line."""
        kinds = ("> h2", "> section > h3", "> section li", "> section pre")
        return self._texts(", ".join(f"#result {kind}" for kind in kinds))

    @property
    def problem(self) -> list[str]:
        """The error: the problem and the mend."""
        return self._texts("#result .problem p")

    @property
    def notes(self) -> list[str]:
        """What to add."""
        return self._texts("#result .notes li")

    def _texts(self, selector: str) -> list[str]:
        found: list[str] = self.page.eval_on_selector_all(selector, "f => f.map(each => each.textContent)")
        return found
