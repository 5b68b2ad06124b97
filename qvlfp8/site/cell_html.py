"""What a cell's page says of the cell, as HTML: everything of it but its surroundings. Pure.

What several pages have in common comes made (:mod:`qvlfp8.site.cell_page`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qvlfp8.site.cell_view import Answer, CellPage
from qvlfp8.site.data import Elsewhere, record_name
from qvlfp8.site.mends import Mends
from qvlfp8.site.outcome import MEANINGS, WORDS, Outcome
from qvlfp8.site.pieces import commands, escaped, finding, mark, sentence

__all__ = ["content"]


def content(
    page: CellPage, *, root: str, track: str, sections: Iterable[str], chart: str, neighbours: str
) -> str:
    """The content.

    Args:
        page: what it says.
        root: the way from the page to the site's top.
        track: the links to its stages.
        sections: those of its executions.
        chart: that of its row; nothing if it is not in it.
        neighbours: the links to the other cells of its row, and its own name; nothing if it is alone.
    """
    return "".join(_content(page, root, track, sections, chart, neighbours))


def _content(
    page: CellPage, root: str, track: str, sections: Iterable[str], chart: str, neighbours: str
) -> Iterator[str]:
    yield _headline(page, root)
    if page.mends.mends:
        yield from _mends(page.mends, root)
    yield from _facts(page)
    yield f'<ol class="track" aria-label="Stages">\n{track}</ol>\n'
    if page.cell.earlier:
        yield _EARLIER
    if page.difference:
        yield f'<p class="notice"><b>Foretold otherwise.</b> {escaped(page.difference)}</p>\n'
    yield f'<h2>Repeat it</h2>\n<pre class="wrap"><code>{escaped(page.repeat)}</code></pre>\n\n'
    if page.answers:
        yield from _pictures(page, root)
    yield "\n"
    if chart:
        yield _CHART
        yield chart
    yield '\n<h2 id="stages">Stages</h2>\n'
    for section in sections:
        yield section
        yield "\n"
    yield "\n"
    if page.cell.elsewhere:
        listed = "".join([_elsewhere(other, root) for other in page.cell.elsewhere])
        yield f'<h2 id="elsewhere">On other hardware</h2>\n<ul>{listed}</ul>\n'
    yield "\n"
    if neighbours:
        yield f"{_NEIGHBOURS}<ul>{neighbours}</ul></nav>\n"


def _headline(page: CellPage, root: str) -> str:
    cell, recipe, version = page.cell, escaped(page.cell.cell.recipe.id), escaped(page.version)
    variant = cell.cell.variant.id
    at = f" (<code>{cell.at}</code>)" if cell.outcome == "fails" else ""
    because = f"<p>{commands(sentence(page.because))}.</p>" if page.because else ""
    return f"""<p class="crumbs"><a href="{root}index.html">Matrix</a> / \
<a href="{root}recipes.html#{recipe}">{recipe}</a> / {escaped(page.producer)} / vLLM {version}</p>
<div class="headline">
<h1><code>{recipe}</code> in vLLM {version}{"" if variant == "eager" else f", {escaped(variant)}"}</h1>
<p class="verdict">{_mark(cell.outcome)} {escaped(sentence(MEANINGS[cell.outcome]))}{at}.</p>
{because}</div>
"""


def _mark(outcome: Outcome) -> str:
    return mark(outcome, WORDS[outcome])


def _mends(mends: Mends, root: str) -> Iterator[str]:
    yield '<section class="mends" aria-labelledby="mends"><h2 id="mends">How to mend it</h2>\n<ul>'
    for one in mends.mends:
        yield (
            f"<li>{finding(one.finding, root)}: {escaped(one.meaning)}. "
            f"<b>Mend:</b> {commands(one.mend)}.</li>\n"
        )
    yield "</ul>\n"
    if mends.command:
        yield (
            f"<p>In a checkpoint that you have this mends {escaped(' and '.join(mends.by_command))}, without "
            f'quantizing again:</p>\n<pre class="wrap"><code>{escaped(mends.command)}</code></pre>'
        )
    yield "</section>\n"


def _facts(page: CellPage) -> Iterator[str]:
    of = page.cell.cell
    beside = f", transformers {of.serve.transformers}" if of.serve.transformers else ""
    yield '<dl class="facts">\n'
    for name, text in (
        ("recipe", of.recipe.description),
        ("quantized by", f"{page.producer}, transformers {of.quantize.transformers}"),
        ("model", of.model.id),
        ("served by", f"vLLM {page.version}{beside}, run {of.variant.id}"),
        ("run on", ", ".join(page.cell.hardware) or "nothing yet"),
    ):
        yield f"{_fact(name, text)}\n"
    if page.kv_cache:
        yield _fact("KV cache", page.kv_cache)
    yield "</dl>\n"


def _fact(name: str, text: str) -> str:
    return f"<div><dt>{name}</dt><dd>{escaped(text)}</dd></div>"


def _pictures(page: CellPage, root: str) -> Iterator[str]:
    yield f"""<h2 id="pictures">What it was shown, and what it said</h2>
<p>{page.right:,} of {page.asked:,} pictures answered rightly. Here are some, wrong answers first; \
each question is asked
about two pictures whose right answers differ.</p>
<ul class="answers">
"""
    for one in page.answers:
        yield _answer(one, root)
    yield "</ul>\n"


def _answer(one: Answer, root: str) -> str:
    prompt = escaped(one.prompt)
    right, outcome = ("right", "pass") if one.is_right else ("wrong", "fails")
    return f"""<li class="{right}">
<img src="{root}pictures/{escaped(one.picture)}" alt="Picture shown with: {prompt}" loading="lazy">
<div><p class="prompt">{prompt}</p>
<dl>{_fact("right", one.right)}{_fact("BF16", one.baseline or _NOTHING)}
<div class="said"><dt>this</dt><dd>{mark(outcome, one.answer or _NOTHING)}</dd></div></dl></div>
</li>
"""


_NOTHING = "(nothing)"


def _elsewhere(other: Elsewhere, root: str) -> str:
    record = other.record
    alike = "the same at every stage" if other.agrees else "not the same at every stage"
    link = f'<a href="{root}records/{escaped(record_name(record))}">record</a>'
    where, when = escaped(record.host.accelerator or "CPU"), escaped(record.started[:10])
    return f"<li>{where}: {_mark(other.outcome)} {alike}, {when} ({link})</li>\n"


_EARLIER = """<p class="notice"><b>† Earlier worker.</b> \
The run of vLLM was made on another machine by an earlier version of our own worker, whose source has
changed since. It stands for what was asked (recipe, model, locks, exam and options are today's), \
and is not what today's worker measured.</p>
"""

_CHART = """<h2 id="chart">Fidelity of this checkpoint</h2>
<p>A column is a vLLM version. Height is how far this checkpoint's probabilities of the next token \
are from those of BF16 in the same
vLLM: Kullback-Leibler divergence in nats, each line ten times the one below. Lower is better; \
a mark above its dashed line fails.</p>
"""

_NEIGHBOURS = """<nav class="neighbours" aria-label="The same checkpoint in other versions of vLLM">
<h2>The same checkpoint in other versions</h2>
"""
