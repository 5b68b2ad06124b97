"""The checkpoint checker: ``check.html``, and what it runs in the browser.

There is one implementation: the page runs :mod:`qvlfp8.checked` in Pyodide. A page from disk can neither
fetch nor import modules, so whatever is no script travels as gzip in base64 inside classic scripts, which are
loaded when the first files are about to be given.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from qvlfp8.site import checker_sources, pyodide

__all__ = ["CSP", "WORKER", "Render", "write_checker"]

CSP = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src blob:; style-src 'self';"
    " img-src 'self'; connect-src 'none'; base-uri 'none'; form-action 'none'"
)
"""``wasm-unsafe-eval`` lets WebAssembly be compiled, and no text. The worker inherits it: no connection."""

ASSETS = Path(__file__).with_name("assets")

WORKER = Path(__file__).with_name("check-worker.js")
"""No asset of its own: it travels behind Pyodide's scripts."""


class Render(Protocol):
    """Renders a template of the site."""

    def __call__(self, template: str, /, *, root: str, here: str, csp: str, **values: Any) -> str:
        """Render it with the values that every page has, and its own."""
        ...


def write_checker(
    out: Path, render: Render, *, runtime: Callable[[], Mapping[str, bytes]] = pyodide.runtime
) -> str | None:
    """Write the checker into a site's folder.

    Args:
        out: the site's folder; written are ``check.html`` and files below ``assets``.
        render: renders ``check.html``.
        runtime: gives the files of Pyodide.

    Returns:
        None; or, where Pyodide cannot be had, one line that says why the page has no checker.
    """
    assets = out / "assets"
    try:
        parts, why = _parts(runtime()), None
    except pyodide.PyodideError as error:
        parts, why = {}, error.problem
    shutil.rmtree(assets / "checker", ignore_errors=True)
    (assets / "checker").mkdir(parents=True)
    for name, content in parts.items():
        (assets / "checker" / name).write_bytes(content)
    for name in ("check.css", "check.js") if parts else ("check.css",):
        (assets / name).write_bytes((ASSETS / name).read_bytes())
    page = render(
        "check.html",
        root="",
        csp=CSP,
        here="check",
        parts=[f"assets/checker/{name}" for name in parts],
        megabytes=f"{sum(map(len, parts.values())) / 1e6:.1f}",
        pyodide=pyodide.VERSION,
    )
    (out / "check.html").write_text(page, encoding="utf-8")
    return None if why is None else f"the checker was not built: {why}"


def _parts(runtime: Mapping[str, bytes]) -> dict[str, bytes]:
    """The scripts that carry what the worker needs, by file name; a changed one has another name."""
    # No package of Pyodide's is ever loaded, so of its lock file only what it says of itself is needed.
    lock = {"info": json.loads(runtime["pyodide-lock.json"])["info"], "packages": {}}
    program = [runtime["pyodide.asm.js"], runtime["pyodide.js"], WORKER.read_bytes()]
    contents = {
        "wasm": runtime["pyodide.asm.wasm"],
        "stdlib": runtime["python_stdlib.zip"],
        "lock": json.dumps(lock).encode(),
        "program": b"\n".join(program),
        "project": checker_sources.archive(),
    }
    written = {name: _script(name, content) for name, content in contents.items()}
    return {
        f"{name}-{hashlib.sha256(script).hexdigest()[:12]}.js": script for name, script in written.items()
    }


def _script(name: str, content: bytes) -> bytes:
    packed = base64.b64encode(gzip.compress(content, _LEVEL, mtime=0)).decode()
    return f'qvlfp8Part("{name}","{packed}");\n'.encode()


_LEVEL = 6
"""Of compression: 9 takes two and a half times as long for half a percent less."""
