"""Pieces of HTML that pages are full of: marks, links to findings, measured values. Pure.

Here and not macros of templates: a page has hundreds of them, and a macro takes ten times as long.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, lru_cache

from markupsafe import Markup, escape

from qvlfp8.results import Status
from qvlfp8.site.measured import Table, Value
from qvlfp8.site.names import slug
from qvlfp8.site.outcome import Outcome

__all__ = ["commands", "escaped", "finding", "mark", "sentence", "status", "values"]

_SPECIAL = re.compile(r"""[&<>"']""")

_MARKS: dict[Status, Outcome | str] = {
    "pass": "pass",
    "fail": "fails",
    "error": "error",
    "stale": "stale",
    "blocked": "blocked",
    "not run": "never",
}

_WIDE = ' class="wide"'
_OPEN = 6
"""Lists and tables up to this long are shown unfolded."""


def escaped(text: str) -> str:
    """Text with what means something to HTML escaped."""
    # Most text has nothing of it, and looking costs a fraction of making it markup.
    return str(escape(text)) if _SPECIAL.search(text) else text


def sentence(text: str) -> str:
    """With a capital at its beginning, unless that is a name."""
    return text if text.startswith("vLLM") else text[:1].upper() + text[1:]


def mark(outcome: str, word: str) -> Markup:
    """An outcome's mark with a word."""
    return _html(f'<span class="mark {escaped(outcome)}">{escaped(word)}</span>')


@cache
def status(value: Status) -> Markup:
    """The mark of a stage's status."""
    return mark(_MARKS[value], value)


@lru_cache(maxsize=4096)
def finding(name: str, root: str) -> Markup:
    """A link to a finding's page; ``root`` is the way to the site's top."""
    return _html(
        f'<a class="finding" href="{escaped(root)}findings/{escaped(slug(name))}.html">{escaped(name)}</a>'
    )


def commands(text: str) -> Markup:
    """Text in which what stands between backticks is code."""
    parts = escaped(text).split("`")
    return _html("".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts)))


def values(rows: Sequence[Value]) -> Markup:
    """Measured values as pairs; nothing for none."""
    if not rows:
        return _html("")
    return _html(f'<dl class="pairs">\n{"".join([_pair(row) for row in rows])}</dl>')


@lru_cache(maxsize=4096)
def _pair(row: Value) -> str:
    return f"<div{_WIDE if row.wide else ''}><dt>{escaped(row.name)}</dt><dd>{_value(row)}</dd></div>\n"


def _value(row: Value) -> str:
    if row.parts:
        parts = (f"<div><dt>{escaped(part.name)}</dt><dd>{_value(part)}</dd></div>" for part in row.parts)
        return f'<dl class="parts">{"".join(parts)}</dl>'
    if row.items:
        items = "".join(f"<li>{escaped(item)}</li>" for item in row.items)
        return f"{_folded(len(row.items), 'names')}<ul>{items}</ul></details>"
    if row.table:
        return _table(row.name, row.table)
    if row.raw:
        return f'<details><summary>as JSON</summary><pre class="wrap">{escaped(row.raw)}</pre></details>'
    return escaped(row.text)


def _table(name: str, table: Table) -> str:
    heads = "".join(f'<th scope="col">{escaped(column)}</th>' for column in table.columns)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escaped(text)}</td>' for text in cells)}</tr>" for cells in table.rows
    )
    more = f'<p class="small muted">{table.left_out} more are in the record.</p>' if table.left_out else ""
    return (
        f'{_folded(len(table.rows) + table.left_out, "rows")}<div class="scroll" tabindex="0" role="region" '
        f'aria-label="{escaped(name)}"><table class="values"><thead><tr>{heads}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>{more}</details>"
    )


def _folded(number: int, what: str) -> str:
    word = what if number != 1 else what[:-1]
    return f"<details{' open' if number <= _OPEN else ''}><summary>{number} {word}</summary>"


def _html(text: str) -> Markup:
    # Made here of literals and of what was escaped.
    return Markup(text)  # noqa: S704
