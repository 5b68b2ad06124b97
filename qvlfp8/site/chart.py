"""The chart of a checkpoint's fidelity: divergence from BF16 in each vLLM, on a logarithmic axis. Pure.

Here is where things stand, in units of the drawing; :mod:`qvlfp8.site.chart_html` draws them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qvlfp8.scoring import Bounds

__all__ = ["Chart", "Fidelity", "Line", "Point", "draw"]

WIDTH, HEIGHT = 760, 230
LEFT, RIGHT, TOP, BOTTOM = 62, 96, 14, 40
FLOOR = 1e-7
"""Divergences below this are drawn here: a logarithm of nothing cannot be."""


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """What stage fidelity measured of one cell; divergences in nats, None where there is no number."""

    column: str
    mean_kl: float | None
    p99_kl: float | None
    top1: float | None
    not_finite: int


@dataclass(frozen=True, kw_only=True)
class Point:
    """One value: where it stands, and what is said of it; ``column``: of which column it is, from 0."""

    column: int
    x: float
    y: float
    kind: str
    """``mean`` or ``p99``."""
    text: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """A tick of an axis, or a bound: its place and what stands beside it."""

    at: float
    text: str
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Everything that is drawn, and in words: a column for each vLLM, and a summary of each."""

    points: tuple[Point, ...]
    ticks: tuple[Line, ...]
    columns: tuple[Line, ...]
    bounds: tuple[Line, ...]
    rows: tuple[Fidelity, ...]
    summaries: tuple[str, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def draw(rows: Sequence[Fidelity], bounds: Bounds) -> Chart | None:
    """A chart of what was measured in each vLLM, oldest first; None without a number."""
    values = [v for row in rows for v in (row.mean_kl, row.p99_kl) if v is not None and math.isfinite(v)]
    if not values:
        return None
    low = math.floor(math.log10(max(min([*values, bounds.mean_kl]), FLOOR)))
    high = math.ceil(math.log10(max(*values, bounds.p99_kl, bounds.mean_kl)))
    high = max(high, low + 1)

    def across(index: int) -> float:
        return round(LEFT + (WIDTH - RIGHT - LEFT) * (index + 0.5) / len(rows), 1)

    def up(value: float) -> float:
        share = (math.log10(max(value, 10.0**low)) - low) / (high - low)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP), 1)

    points = [
        Point(column=i, x=across(i), y=up(value), kind=kind, text=f"{row.column}: {name} {value:.2g} nats")
        for i, row in enumerate(rows)
        for kind, name, value in (
            ("p99", "99th percentile", row.p99_kl),
            ("mean", "mean", row.mean_kl),
        )
        if value is not None and math.isfinite(value)
    ]
    return Chart(
        points=tuple(points),
        ticks=tuple(Line(at=up(10.0**power), text=_power(power)) for power in range(low, high + 1)),
        columns=tuple(Line(at=across(i), text=row.column) for i, row in enumerate(rows)),
        bounds=(
            Line(at=up(bounds.p99_kl), text=f"p99 ≤ {bounds.p99_kl:g}", kind="p99"),
            Line(at=up(bounds.mean_kl), text=f"mean ≤ {bounds.mean_kl:g}", kind="mean"),
        ),
        rows=tuple(rows),
        summaries=tuple(_summary(row, bounds) for row in rows),
    )


def _power(power: int) -> str:
    digits = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return "1" if power == 0 else f"10{digits}"


def _summary(row: Fidelity, bounds: Bounds) -> str:
    if row.mean_kl is None or row.p99_kl is None:
        return f"In {row.column} there is no number: {row.not_finite} answered tokens are not finite."
    return (
        f"In {row.column} the mean divergence from BF16 is {row.mean_kl:.2g} nats (at most "
        f"{bounds.mean_kl:g} may be), its 99th percentile {row.p99_kl:.2g} (at most {bounds.p99_kl:g})."
    )
