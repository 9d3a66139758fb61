"""Small pictures within the pages, as inline SVG in the colours of style.css: a cell's runs beside
the paper's number, and a figure's curve."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from tables.engine.compare import Cell, Outcome
from tables.engine.runs import samples
from tables.engine.schema import Column, Curve

WIDTH, HEIGHT = 112, 12
"""Pixels of a strip within a table."""


@dataclass(frozen=True)
class Scale:
    """From values to pixels."""

    low: float
    high: float
    left: float
    right: float

    def x(self, value: float) -> float:
        """Where a value lies; in the middle where all are equal."""
        if self.high == self.low:
            return (self.left + self.right) / 2
        share = (value - self.low) / (self.high - self.low)
        return round(self.left + share * (self.right - self.left), 1)


def of_column(outcome: Outcome, column: Column) -> Scale:
    """One scale for all strips of a column, so that rows can be compared by eye."""
    values = []
    for row in outcome.table.rows:
        cell = outcome.cells[row.name, column.title]
        values += samples(cell.runs) + ([float(cell.paper)] if cell.paper else [])
    return Scale(min(values, default=0.0), max(values, default=1.0), 4, WIDTH - 4)


def in_cell(cell: Cell, scale: Scale) -> Markup:
    """What the spread is over as points (``Cell.values``), the paper's number as a line and, where
    they may be compared, its margin as a band. Hidden from screen readers: the cell's name has the
    numbers."""
    parts = [
        f'<svg class="strip" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        ' aria-hidden="true">'
    ]
    if cell.delta is not None:
        margin = cell.row.margin(cell.column)
        parts.append(_band(scale, float(cell.paper) - margin, float(cell.paper) + margin, HEIGHT))
    parts.append(f'<path class="axis" d="M0 {HEIGHT // 2}h{WIDTH}"/>')
    if cell.paper:
        parts.append(f'<path class="paper" d="M{scale.x(float(cell.paper)):g} 0v{HEIGHT}"/>')
    if cell.runs:
        parts.append(_points(cell.values, scale, HEIGHT / 2))
    return Markup("".join(parts) + "</svg>")


def alone(cell: Cell, values: Sequence[float], decimals: int) -> Markup:
    """``values`` on a scale of their own, with numbers; nothing without any."""
    if not values:
        return Markup("")
    paper = float(cell.paper) if cell.paper else None
    margin = cell.row.margin(cell.column) if cell.delta is not None else 0.0
    marks = [*values, *([paper - margin, paper + margin] if paper is not None else [])]
    scale = Scale(min(marks), max(marks), 24, 376)
    low, high = min(values), max(values)
    told = f"{len(values)} runs from {low:.{decimals}f} to {high:.{decimals}f}"
    if paper is not None:
        told += f", paper {cell.paper}"
    parts = [
        f'<svg viewBox="0 0 400 58" width="100%" role="img" aria-label="{escape(told)}">',
        _band(scale, paper - margin, paper + margin, 28, 16) if paper is not None else "",
        '<path class="axis" d="M8 30h384"/>',
    ]
    if paper is not None:
        at = scale.x(paper)
        anchor = "end" if at > 280 else "start" if at < 120 else "middle"
        note = "paper" if cell.delta is not None else "paper (not comparable)"
        parts.append(
            f'<path class="paper" d="M{at:g} 14v32"/>'
            f'<text x="{at:g}" y="10" text-anchor="{anchor}">{note} {escape(cell.paper)}</text>'
        )
    parts.append(_points(values, scale, 30))
    ends = [low, high] if scale.x(high) - scale.x(low) > 40 else [high]
    parts += [
        f'<text x="{scale.x(value):g}" y="56" text-anchor="middle">{value:.{decimals}f}</text>'
        for value in ends
    ]
    return Markup("".join(parts) + "</svg>")


def _points(values: Sequence[float], scale: Scale, y: float) -> str:
    """A dot per value; those within half a pixel of one another are one."""
    places = sorted({round(2 * scale.x(value)) / 2 for value in values})
    return f'<path class="runs" d="{"".join(f"M{x:g} {y:g}h0" for x in places)}"/>'


def _band(scale: Scale, low: float, high: float, height: float, top: float = 0) -> str:
    left, right = (scale.x(min(max(end, scale.low), scale.high)) for end in (low, high))
    if right <= left:
        return ""
    return (
        f'<rect class="margin" x="{left:g}" y="{top:g}" width="{right - left:.1f}"'
        f' height="{height:g}"/>'
    )


def curve(of: Curve) -> Markup:
    """Means joined by a line, each with its interval and its number; an interval that is missing or
    infinite is said in words below."""
    width, height, left, right, top, bottom = 420, 190, 46, 396, 26, 140
    ends = [
        end
        for _, mean, half in of.points
        for end in (mean - half, mean + half, mean, 0.0)
        if math.isfinite(end)
    ]
    across = Scale(0, len(of.points) - 1, left + 30, right - 40)
    up = Scale(min(ends), max(ends), bottom, top)
    at = [(across.x(i), up.x(mean)) for i, (_, mean, _) in enumerate(of.points)]
    told = "; ".join(
        f"{where}: {mean:+.1f}"
        + (f", from {mean - half:+.1f} to {mean + half:+.1f}" if math.isfinite(half) else "")
        for where, mean, half in of.points
    )
    label = escape(f"{of.title}, {of.unit}, by {of.across}: {told}")
    parts = [f'<svg viewBox="0 0 {width} {height}" width="100%" role="img" aria-label="{label}">']
    parts.append(f'<text x="{left - 38}" y="14" class="soft">{escape(of.unit)}</text>')
    for tick in _ticks(up.low, up.high):
        y = up.x(tick)
        parts.append(
            f'<path class="{"zero" if tick == 0 else "grid"}" d="M{left} {y:g}H{right}"/>'
            f'<text x="{left - 6}" y="{y + 4:g}" text-anchor="end">{_signed(tick)}</text>'
        )
    for (x, _), (_, mean, half) in zip(at, of.points, strict=True):
        if math.isfinite(half):
            low, high = up.x(mean - half), up.x(mean + half)
            parts.append(
                f'<path class="interval" d="M{x:g} {low:g}V{high:g}M{x - 5:g} {low:g}h10'
                f'M{x - 5:g} {high:g}h10"/>'
            )
    parts.append(f'<path class="curve" d="M{"L".join(f"{x:g} {y:g}" for x, y in at)}"/>')
    parts += [f'<circle class="mean" cx="{x:g}" cy="{y:g}" r="4.5"/>' for x, y in at]
    parts += [
        f'<text x="{x + 9:g}" y="{y - 6:g}" class="number">{mean:+.1f}</text>'
        f'<text x="{x:g}" y="{bottom + 18}" text-anchor="middle">{escape(where)}</text>'
        for (x, y), (where, mean, _) in zip(at, of.points, strict=True)
    ]
    below = of.across + f"; bars: {of.interval}"
    if any(not math.isfinite(half) for *_, half in of.points):
        below = f"{of.across}; without a bar: no interval"
    parts.append(
        f'<text x="{(left + right) / 2:g}" y="{bottom + 38}" text-anchor="middle" class="soft">'
        f"{escape(below)}</text></svg>"
    )
    return Markup("".join(parts))


def _signed(value: float) -> str:
    return f"{value:+g}" if value else "0"


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two values, about four of them."""
    span = max(high - low, 1e-9)
    step = 10.0 ** math.floor(math.log10(span / 3))
    step *= next((of for of in (1, 2, 5, 10) if span / (step * of) <= 5), 10)
    return [round(i * step, 10) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
