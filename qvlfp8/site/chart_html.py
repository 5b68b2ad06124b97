"""The chart of a checkpoint's fidelity as HTML: its drawing (SVG), and its numbers as a table. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from qvlfp8.site.chart import Chart, Fidelity, Line, Point
from qvlfp8.site.pieces import escaped

__all__ = ["Figures"]


class Figures:
    """A chart's figures: one for each column, which is marked in it; what they share is made once."""

    def __init__(self, chart: Chart) -> None:
        self._chart = chart
        self._axes = "".join(_axes(chart))
        self._columns = [_column(chart, line, here=False) for line in chart.columns]
        self._points = [_point(point, here=False) for point in chart.points]
        self._rows = [_row(row, here=False) for row in chart.rows]

    def of(self, here: int) -> str:
        """The drawing with its caption, and the table; ``here`` is the column's number, from 0."""
        return "".join(self._figure(here))

    def _figure(self, here: int) -> Iterator[str]:
        c = self._chart
        summary = escaped(c.summaries[here])
        yield _head(c, summary)
        yield self._axes
        for number, line in enumerate(self._columns):
            yield _column(c, c.columns[here], here=True) if number == here else line
        for point, html in zip(c.points, self._points, strict=True):
            yield _point(point, here=True) if point.column == here else html
        yield _foot(summary)
        for number, row in enumerate(self._rows):
            yield _row(c.rows[here], here=True) if number == here else row
        yield "</tbody></table></div>\n"


def _head(c: Chart, summary: str) -> str:
    return f"""<figure class="chart">
<svg viewBox="0 0 {c.width} {c.height}" role="img" aria-labelledby="chart-title chart-text">
<title id="chart-title">Divergence from BF16 by vLLM version, logarithmic</title>
<desc id="chart-text">{summary} All numbers are in the table below.</desc>
"""


def _foot(summary: str) -> str:
    return f"""</svg>
<figcaption>{summary} ● is the mean over all tokens that were compared, + the 99th percentile.</figcaption>
</figure>
{_TABLE}
<tbody>"""


def _axes(c: Chart) -> Iterator[str]:
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


def _column(c: Chart, one: Line, *, here: bool) -> str:
    size = f'y="{c.top}" height="{c.bottom - c.top}"'
    behind = f'<rect class="here" x="{one.at - 24}" width="48" {size}/>' if here else ""
    return (
        f'{behind}<text class="tick{" strong" if here else ""}" x="{one.at}" y="{c.bottom + 18}" '
        f'text-anchor="middle">{escaped(one.text)}</text>\n'
    )


def _point(point: Point, *, here: bool) -> str:
    title = f"<title>{escaped(point.text)}</title>"
    marked = " is-here" if here else ""
    if point.kind == "mean":
        return f'<circle class="point{marked}" cx="{point.x}" cy="{point.y}" r="4.6">{title}</circle>'
    cross = f"M{point.x - 5} {point.y}h10M{point.x} {point.y - 5}v10"
    return f'<path class="point p99{marked}" d="{cross}">{title}</path>'


_TABLE = (
    '<div class="scroll" tabindex="0" role="region" aria-label="Numbers of the chart">'
    '<table class="values"><thead><tr><th scope="col">vLLM</th>'
    '<th scope="col" class="number">mean (nats)</th>'
    '<th scope="col" class="number">99th percentile</th>'
    '<th scope="col" class="number">likeliest token as BF16</th>'
    '<th scope="col" class="number">not finite</th></tr></thead>'
)


def _row(row: Fidelity, *, here: bool) -> str:
    numbers = (
        "-" if row.mean_kl is None else f"{row.mean_kl:.3g}",
        "-" if row.p99_kl is None else f"{row.p99_kl:.3g}",
        "-" if row.top1 is None else f"{100 * row.top1:.2f} %",
        escaped(str(row.not_finite)),
    )
    told = "".join([f'<td class="number">{number}</td>' for number in numbers])
    marked = ' class="is-here"' if here else ""
    return f'<tr{marked}><th scope="row">{escaped(row.column)}</th>{told}</tr>\n'
