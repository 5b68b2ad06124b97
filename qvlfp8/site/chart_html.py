"""The chart of a checkpoint's fidelity as HTML: its drawing (SVG), and its numbers as a table. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from qvlfp8.site.chart import Chart, Fidelity, Point
from qvlfp8.site.pieces import escaped

__all__ = ["figure"]


def figure(chart: Chart) -> str:
    """The drawing with its caption, and the table."""
    return "".join(_figure(chart))


def _figure(c: Chart) -> Iterator[str]:
    summary = escaped(c.summary)
    yield f"""<figure class="chart">
<svg viewBox="0 0 {c.width} {c.height}" role="img" aria-labelledby="chart-title chart-text">
<title id="chart-title">Divergence from BF16 by vLLM version, logarithmic</title>
<desc id="chart-text">{summary} All numbers are in the table below.</desc>
"""
    across = f'x1="{c.left}" x2="{c.right}"'
    for tick in c.ticks:
        yield (
            f'<line class="grid" {across} y1="{tick.at}" y2="{tick.at}"/><text class="tick" '
            f'x="{c.left - 8}" y="{tick.at + 4}" text-anchor="end">{escaped(tick.text)}</text>\n'
        )
    for bound in c.bounds:
        down = 9 if bound.kind == "mean" else -1
        yield (
            f'<line class="bound {bound.kind}" {across} y1="{bound.at}" y2="{bound.at}"/><text '
            f'class="bound-text" x="{c.right + 6}" y="{bound.at + down}">{escaped(bound.text)}</text>\n'
        )
    for one in c.columns:
        if one.here:
            size = f'y="{c.top}" height="{c.bottom - c.top}"'
            yield f'<rect class="here" x="{one.at - 24}" width="48" {size}/>'
        yield (
            f'<text class="tick{" strong" if one.here else ""}" x="{one.at}" y="{c.bottom + 18}" '
            f'text-anchor="middle">{escaped(one.text)}</text>\n'
        )
    yield from map(_point, c.points)
    yield f"""</svg>
<figcaption>{summary} ● is the mean over all tokens that were compared, + the 99th percentile.</figcaption>
</figure>
{_TABLE}
<tbody>"""
    yield from map(_row, c.rows)
    yield "</tbody></table></div>\n"


def _point(point: Point) -> str:
    title = f"<title>{escaped(point.text)}</title>"
    here = " is-here" if point.here else ""
    if point.kind == "mean":
        return f'<circle class="point{here}" cx="{point.x}" cy="{point.y}" r="4.6">{title}</circle>'
    cross = f"M{point.x - 5} {point.y}h10M{point.x} {point.y - 5}v10"
    return f'<path class="point p99{here}" d="{cross}">{title}</path>'


_TABLE = (
    '<div class="scroll" tabindex="0" role="region" aria-label="Numbers of the chart">'
    '<table class="values"><thead><tr><th scope="col">vLLM</th>'
    '<th scope="col" class="number">mean (nats)</th>'
    '<th scope="col" class="number">99th percentile</th>'
    '<th scope="col" class="number">likeliest token as BF16</th>'
    '<th scope="col" class="number">not finite</th></tr></thead>'
)


def _row(row: Fidelity) -> str:
    numbers = (
        "-" if row.mean_kl is None else f"{row.mean_kl:.3g}",
        "-" if row.p99_kl is None else f"{row.p99_kl:.3g}",
        "-" if row.top1 is None else f"{100 * row.top1:.2f} %",
        escaped(str(row.not_finite)),
    )
    told = "".join([f'<td class="number">{number}</td>' for number in numbers])
    here = ' class="is-here"' if row.here else ""
    return f'<tr{here}><th scope="row">{escaped(row.column)}</th>{told}</tr>\n'
