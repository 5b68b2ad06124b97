"""Templates -> text. Escaping is on everywhere; a name that a template does not know is an error."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from qvlfp8.site import pieces
from qvlfp8.site.names import slug

__all__ = ["CSP", "assets", "page", "render"]

HERE = Path(__file__).parent

CSP = "; ".join(
    (
        "default-src 'none'",
        "style-src 'self'",
        "script-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
    )
)
"""What a page may load: its own files. No inline script, no inline style, nothing from elsewhere."""

_ENVIRONMENT = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    # Templates do not change while a command runs; looking takes a tenth of the rendering.
    auto_reload=False,
)
_ENVIRONMENT.filters["slug"] = slug
_ENVIRONMENT.filters["sentence"] = pieces.sentence
_ENVIRONMENT.globals |= {
    piece.__name__: piece
    for piece in (pieces.commands, pieces.finding, pieces.mark, pieces.status, pieces.values)
}


def render(template: str, *, root: str = "", here: str = "", csp: str = CSP, **values: Any) -> str:
    """One page.

    Args:
        template: its name in ``templates/``.
        root: the way from the page to the site's top: nothing, or ``../``.
        here: which page of the navigation it is.
        csp: what it may load.
        values: what the template names.

    Raises:
        jinja2.UndefinedError: the template names something else.
    """
    return _ENVIRONMENT.get_template(template).render(root=root, here=here, csp=csp, **values)


@cache
def _around(root: str, here: str) -> tuple[str, str, str]:
    """What stands before a page's title, between title and content, and behind that."""
    mark = "\N{OBJECT REPLACEMENT CHARACTER}"
    before, between, behind = render("around.html", root=root, here=here, title=mark, main=mark).split(mark)
    return before, between, behind


def page(title: str, main: str, *, root: str, here: str) -> str:
    """A page of a kind of which there are many: what surrounds its content is rendered once.

    Args:
        title: its name, as text.
        main: its content, as HTML.
        root: as for :func:`render`.
        here: as for :func:`render`.
    """
    before, between, behind = _around(root, here)
    return f"{before}{pieces.escaped(title)}{between}{main}{behind}"


def assets() -> Iterator[tuple[str, bytes]]:
    """Style sheet, scripts and pictures, by their paths in the site."""
    for path in sorted((HERE / "assets").iterdir()):
        if path.is_file():
            yield f"assets/{path.name}", path.read_bytes()
