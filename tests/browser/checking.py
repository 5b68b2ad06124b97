"""The checker's page in a real browser, and the command beside it."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from tests.unit.test_cli import qvlfp8

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PATIENCE = 180_000
"""Milliseconds: the first answer takes seconds on an idle machine, and minutes on one that is busy."""

ANSWERED = "#result:not([aria-busy]) h2, #result:not([aria-busy]) .problem"


def missing(what: str) -> NoReturn:
    """Skip with one line, or fail where the browser tests must run."""
    if os.environ.get("QVLFP8_TESTS_NEED_BROWSER"):
        pytest.fail(what)
    pytest.skip(what)


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

    def agrees(self, folder: Path) -> int:
        """Hold the page's answer against the command's, field by field and line by line; the exit code."""
        program = qvlfp8("explain", folder.name, "--json", cwd=folder.parent)
        people = qvlfp8("explain", folder.name, cwd=folder.parent)
        assert self.code == program.returncode == people.returncode
        assert self.explained == (json.loads(program.stdout) if program.stdout else None)
        if program.stdout:
            assert self.lines == [line.removeprefix("  ") for line in people.stdout.splitlines()]
        expected = people.stderr.removeprefix("error: ").rstrip("\n").split("\n  mend: ")
        assert [_json_error(text) for text in self.problem] == (
            [_json_error(expected[0]), f"Mend: {expected[1]}"] if people.stderr else []
        )
        return people.returncode


def _json_error(text: str) -> str:
    """Python 3.13, which runs in the browser, words errors of JSON otherwise than others."""
    if sys.version_info[:2] == (3, 13):
        return text
    return re.sub(r"is not valid JSON \(.*\)", "is not valid JSON", text)
