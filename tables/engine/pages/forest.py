"""The claims of a table or a figure as a forest plot: every lead with its interval, the paper's
lead beside it, the verdict at the right.

The picture is laid out once, as shapes whose colours are named by their role, and painted three
times: here as SVG for the pages, where CSS colours it; as PNG (forest_png.py) and as TikZ
(forest_tex.py).

A claim about several comparisons is drawn by the one that speaks least for it; the leads of the
others are ticks on the same line. An interval that leaves the axis ends in an arrow, a lead without
one says so, and a claim that was not run shows the paper's lead alone."""

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain
from typing import Literal

from tables.engine.schema import TIERS, ClaimResult, Contrast, Exhibit, Tier
from tables.engine.sequential import ClaimVerdict

SYMBOLS: dict[ClaimVerdict, str] = {
    "holds": "✓",
    "weaker": "▽",
    "reversed": "▼",
    "negligible": "≈",
    "undecided": "~",
    "invalid": "✗",
    "not-run": "·",
}
PALETTE = {
    "ink": ("#1a1a1a", "#ececec"),
    "soft": ("#555555", "#b4b4b4"),
    "line": ("#d5d5d5", "#4a4a4a"),
    "zero": ("#555555", "#b4b4b4"),
    "band": ("#e4e8ee", "#343a44"),
    "paper": ("#b35900", "#ffb366"),
    "ground": ("#ffffff", "#16181c"),
    "holds": ("#1a7f37", "#57c785"),
    "weaker": ("#7a6000", "#e3c452"),
    "reversed": ("#b3261e", "#ff8a80"),
    "negligible": ("#0b57a4", "#8ab8ff"),
    "undecided": ("#555555", "#b4b4b4"),
    "invalid": ("#8a1c4a", "#ff9ec4"),
    "not-run": ("#555555", "#b4b4b4"),
}
"""role -> colour on a light and on a dark ground; text has a contrast of at least 4.5 on either"""

WIDTH, LINE, SMALL = 930.0, 16.0, 11.0
LEFT, RIGHT, NUMBERS, VERDICT = 350.0, 630.0, 648.0, 826.0
"""of the axis, and where the two columns of text beside it begin"""
OUTLINE = 1.6
"""width of the lines of hollow shapes"""
WRAP, WRAP_BOLD, WRAP_SMALL = 45, 41, 54
"""characters of DejaVu Sans, the widest font that it may be shown in, left of the axis"""


# Shapes -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A straight line."""

    x: tuple[float, float]
    y: tuple[float, float]
    role: str
    width: float = 1.0
    dashed: bool = False


@dataclass(frozen=True)
class Area:
    """A polygon, filled or, if ``hollow``, an outline."""

    points: tuple[tuple[float, float], ...]
    role: str
    hollow: bool = False


@dataclass(frozen=True)
class Dot:
    """A filled circle."""

    x: float
    y: float
    radius: float
    role: str


@dataclass(frozen=True)
class Words:
    """One line of text; ``y`` is its baseline."""

    x: float
    y: float
    text: str
    role: str = "ink"
    size: float = 13.0
    bold: bool = False
    anchor: Literal["start", "middle", "end"] = "start"


Shape = Line | Area | Dot | Words


@dataclass(frozen=True)
class Row:
    """What is drawn of one claim, and what is said of it."""

    claim: ClaimResult
    top: float
    height: float
    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class Picture:
    """All of it, in a coordinate system whose y grows downwards."""

    height: float
    around: tuple[Shape, ...]
    """headings, axes, legend"""
    rows: tuple[Row, ...]

    @property
    def shapes(self) -> list[Shape]:
        """All of them, in the order of painting."""
        return [*self.around, *chain.from_iterable(row.shapes for row in self.rows)]


# Layout -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """A scale between LEFT and RIGHT."""

    low: float
    high: float

    def x(self, value: float) -> float:
        """Where a value is drawn; one beyond the axis, or infinite, at its end. Rounded, as the
        last digits of an interval differ between versions of SciPy and the pictures shall not."""
        inside = min(max(value, self.low), self.high)
        return round(LEFT + (RIGHT - LEFT) * (inside - self.low) / (self.high - self.low), 2)

    def ticks(self) -> list[float]:
        """At most seven round numbers."""
        rough = (self.high - self.low) / 6
        scale = 10.0 ** math.floor(math.log10(rough))
        step = next(scale * of for of in (1, 2, 5, 10) if scale * of >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [number * step for number in range(first, last + 1)]


def axis_of(claims: Sequence[ClaimResult]) -> Axis:
    """Holds 0, the leads that are drawn, ours and the paper's, and what they are held against.
    Intervals extend it to both sides by no more than as much again: one wide interval would hide
    all others."""
    points, ends = [0.0], list[float]()
    for claim in claims:
        band = _band(claim) or 0.0
        points += [claim.by, -band, band]
        if shown := claim.weakest:
            points += [value for value in (shown.lead, shown.paper) if value is not None]
            ends += shown.interval or ()
    points = [point for point in points if math.isfinite(point)]
    low, high = min(points), max(points)
    finite = [abs(end) for end in ends if math.isfinite(end)]
    room = (high - low) or max(finite, default=0.0) or 1.0
    low = max(min([low, *(end for end in ends if not math.isnan(end))]), low - room)
    high = min(max([high, *(end for end in ends if not math.isnan(end))]), high + room)
    edge = 0.04 * (high - low) or 1.0
    return Axis(low - edge, high + edge)


def lay_out(
    exhibit: Exhibit, tier: Tier, claims: Sequence[ClaimResult], *, headed: bool = False
) -> Picture:
    """Groups of claims of one unit below one another, each with an axis; primary claims first.
    ``headed``: with the exhibit's name and the tier, for where no page says it."""
    around: list[Shape] = []
    rows: list[Row] = []
    y = 0.0
    if headed:
        around.append(Words(0, y + 13, f"{exhibit.name}: {exhibit.title}", bold=True))
        stamp = TIERS[tier].stamp.partition(".")[0]
        around.append(
            Words(0, y + 13 + LINE, f"Claims of {exhibit.claimed_by}. {stamp}.", "soft", SMALL)
        )
        y += 2 * LINE + 8
    for line in _legend(claims, y, TIERS[tier].compared):
        around += line
        y += LINE
    for unit, group in by_unit(claims):
        axis, top = axis_of(group), y + 26
        y = top
        for claim in group:
            row = _row(claim, axis, y)
            rows.append(row)
            y += row.height
        around += _frame(axis, unit, top, y)
        if all(claim.within is None for claim in group):
            around.append(Words(LEFT, top - 8, "← against the claim", "soft", SMALL))
            around.append(Words(RIGHT, top - 8, "for the claim →", "soft", SMALL, anchor="end"))
        y += 36
    return Picture(y + 2, tuple(around), tuple(rows))


def by_unit(claims: Sequence[ClaimResult]) -> list[tuple[str, list[ClaimResult]]]:
    """The claims by the unit of what is drawn of them, primary ones first; those of which none is
    known stand at the end."""
    groups: dict[str, list[ClaimResult]] = {}
    without = []
    for claim in sorted(claims, key=lambda claim: not claim.primary):
        shown = claim.weakest
        if shown is None or (shown.lead is None and not shown.unit):
            without.append(claim)
        else:
            groups.setdefault(shown.unit, []).append(claim)
    *before, (unit, last) = list(groups.items()) or [("", [])]
    return [*before, (unit, [*last, *without])]


def _legend(claims: Sequence[ClaimResult], y: float, compared: bool) -> Iterator[list[Shape]]:
    """Lines that say what the marks mean, those alone that occur."""
    several = any(len(claim.contrasts) > 1 for claim in claims)
    printed = any(of.paper is not None for claim in claims for of in claim.contrasts)
    entries: list[tuple[Callable[[float, float], list[Shape]], str]] = [
        (
            lambda x, middle: [
                Line((x, x + 24), (middle, middle), "ink", 2),
                Dot(x + 12, middle, 4, "ink"),
            ],
            "lead, interval that allows for all looks",
        )
    ]
    if several:
        entries.append((lambda x, middle: [_tick(x + 12, middle, "ink")], "further comparisons"))
    if printed:
        data = "" if compared else " (other data)"
        entries.append((lambda x, middle: [_diamond(x + 12, middle)], f"the paper's lead{data}"))
    if any(map(_band, claims)):
        allowed = any(claim.within is not None for claim in claims)
        entries.append(
            (
                lambda x, middle: [_box(x, x + 24, middle, "band")],
                "negligible or allowed" if allowed else "negligible",
            )
        )
    line, x = list[Shape](), 0.0
    for shapes, words in entries:
        width = 32 + 6.2 * len(words) + 20
        if line and x + width > WIDTH:
            yield line
            line, x, y = [], 0.0, y + LINE
        line += [*shapes(x, y + 8), Words(x + 32, y + 12, words, "soft", SMALL)]
        x += width
    yield line


def _row(claim: ClaimResult, axis: Axis, top: float) -> Row:
    """The claim's words at the left, its marks on the axis, numbers and verdict at the right."""
    told = textwrap.wrap(claim.text, WRAP_BOLD if claim.primary else WRAP)
    below = textwrap.wrap(_drawn(claim), WRAP_SMALL)
    numbers = _numbers(claim)
    height = max(len(told) * LINE + len(below) * 14, max(2, len(numbers)) * LINE) + 12
    first = top + 6 + 12
    words: list[Shape] = [
        Words(0, first + LINE * i, line, bold=claim.primary) for i, line in enumerate(told)
    ]
    under = first + LINE * len(told) - 1
    words += [Words(0, under + 14 * i, line, "soft", SMALL) for i, line in enumerate(below)]
    middle, shown = top + 6 + LINE / 2, claim.weakest
    words += [
        Words(NUMBERS, first + LINE * i, line, "ink" if i == 0 else "soft", 12 if i == 0 else SMALL)
        for i, line in enumerate(numbers)
    ]
    words.append(
        Words(
            VERDICT,
            first,
            f"{SYMBOLS[claim.verdict]} {claim.verdict.replace('-', ' ')}",
            claim.verdict,
            bold=True,
        )
    )
    marks = list(chain(_bounds(claim, axis, middle), _marks(claim, shown, axis, middle)))
    return Row(claim, top, height, (*marks, *words))


def _drawn(claim: ClaimResult) -> str:
    """Which comparison the line is of."""
    if (shown := claim.weakest) is None:
        return ""
    which = shown.what + f" ({shown.metric})" * bool(
        shown.metric and shown.metric not in shown.what
    )
    if len(claim.contrasts) == 1:
        return which
    return f"weakest of {len(claim.contrasts)}: {which}"


def _numbers(claim: ClaimResult) -> list[str]:
    """The lead with its interval, and the paper's."""
    shown, decimals = claim.weakest, claim.decimals
    if shown is None:
        return []
    lines = []
    if shown.lead is not None:
        lines.append(
            f"{signed(shown.lead, decimals)} "
            + (
                f"[{signed(shown.interval[0], decimals)}, {signed(shown.interval[1], decimals)}]"
                if shown.interval
                else "(no interval)"
            )
        )
    if shown.paper is not None:
        lines.append(f"paper {signed(shown.paper, decimals)}")
    if claim.by:
        lines.append(f"must exceed {claim.by:g}")
    if claim.within is not None:
        lines.append(f"allowed ±{claim.within:g}")
    return lines


def signed(value: float, decimals: int) -> str:
    """A number with its sign, as printed: a real minus, and ∞."""
    if math.isnan(value):
        return "?"
    told = "∞" if math.isinf(value) else f"{abs(value):.{decimals}f}"
    return ("−" if value < 0 else "+") + told


def _bounds(claim: ClaimResult, axis: Axis, middle: float) -> Iterator[Shape]:
    """What the lead is held against: the band where it is negligible, what it must exceed, or the
    range that it may not leave."""
    if band := _band(claim):
        yield _box(axis.x(-band), axis.x(band), middle, "band")
    if claim.by:
        x = axis.x(claim.by)
        yield Line((x, x), (middle - 9, middle + 9), "ink", 1.5, dashed=True)


def _band(claim: ClaimResult) -> float | None:
    """How far from 0 it reaches; None where there is none."""
    if claim.within is not None or claim.by:
        return claim.within
    return claim.weakest.delta if claim.weakest else None


def _marks(
    claim: ClaimResult, shown: Contrast | None, axis: Axis, middle: float
) -> Iterator[Shape]:
    role, size = claim.verdict, 4.5 if claim.primary else 3.5
    further = [
        of.lead
        for of in claim.contrasts
        if of is not shown and of.lead is not None and math.isfinite(of.lead)
    ]
    yield from (_tick(axis.x(at), middle, role) for at in further if axis.low <= at <= axis.high)
    if right := sum(at > axis.high for at in further):
        yield Words(RIGHT, middle - 7, f"{right} more →", "soft", 9, anchor="end")
    if left := sum(at < axis.low for at in further):
        yield Words(LEFT, middle - 7, f"← {left} more", "soft", 9)
    if shown is None:
        return
    if shown.lead is not None:
        if shown.interval and not any(map(math.isnan, shown.interval)):
            yield from _interval(shown.interval, axis, middle, role, 3 if claim.primary else 2)
        if math.isfinite(shown.lead):
            yield Dot(axis.x(shown.lead), middle, size, role)
    else:
        yield _not_run(axis, middle, shown)
    if shown.paper is not None:
        yield _diamond(axis.x(shown.paper), middle)


def _not_run(axis: Axis, middle: float, shown: Contrast) -> Words:
    """The word in place of a lead, on the side where neither 0 nor the paper's lead is."""
    taken = [axis.x(0.0)] + ([axis.x(shown.paper)] if shown.paper is not None else [])
    if min(taken) - LEFT > RIGHT - max(taken):
        return Words(LEFT, middle + 4, "not run", "soft", SMALL)
    return Words(RIGHT, middle + 4, "not run", "soft", SMALL, anchor="end")


def _interval(
    ends: tuple[float, float], axis: Axis, middle: float, role: str, width: float
) -> Iterator[Shape]:
    yield Line((axis.x(ends[0]), axis.x(ends[1])), (middle, middle), role, width)
    for end, edge, inwards in ((ends[0], axis.low, 1), (ends[1], axis.high, -1)):
        x = axis.x(end)
        if (end - edge) * inwards < 0:  # beyond the axis
            yield Area(
                (
                    (x - 3 * inwards, middle),
                    (x + 6 * inwards, middle - 5),
                    (x + 6 * inwards, middle + 5),
                ),
                role,
            )
        else:
            yield Line((x, x), (middle - 4, middle + 4), role, width)


def _tick(x: float, middle: float, role: str) -> Line:
    return Line((x, x), (middle - 5, middle + 5), role, 1)


def _diamond(x: float, middle: float) -> Area:
    return Area(
        ((x - 6, middle), (x, middle - 6), (x + 6, middle), (x, middle + 6)), "paper", hollow=True
    )


def _box(left: float, right: float, middle: float, role: str) -> Area:
    top, bottom = middle - 9, middle + 9
    return Area(((left, top), (right, top), (right, bottom), (left, bottom)), role)


def _frame(axis: Axis, unit: str, top: float, bottom: float) -> Iterator[Shape]:
    """Grid, zero line and the numbers below."""
    ticks = axis.ticks()
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    for value in ticks:
        x, zero = axis.x(value), abs(value) < step / 2
        yield Line((x, x), (top, bottom), "zero" if zero else "line", 1.2 if zero else 0.8)
        told = "0" if zero else signed(value, decimals)
        yield Words(x, bottom + 14, told, "soft", SMALL, anchor="middle")
    name = {"%": "points", "": ""}.get(unit, unit)
    yield Words((LEFT + RIGHT) / 2, bottom + 28, name, "soft", SMALL, anchor="middle")


# SVG ----------------------------------------------------------------------------------------------


def svg(exhibit: Exhibit, tier: Tier, claims: Sequence[ClaimResult]) -> str:
    """An inline SVG for a page; empty where nothing is claimed.

    Every claim is a group with a title, shown on hover, which holds the paper's sentence, and a
    description of what the verdict rests on. Colours follow prefers-color-scheme and, for the
    words, the page's own colour."""
    if not claims:
        return ""
    picture = lay_out(exhibit, tier, claims)
    name = escape(alternative(exhibit, claims))
    parts = [
        (
            f'<svg class="forest" viewBox="0 0 {WIDTH:g} {picture.height:g}" role="group"'
            f' aria-label="{name}" xmlns="http://www.w3.org/2000/svg">{_style()}'
        ),
        '<g aria-hidden="true">',
        *map(_svg, picture.around),
        "</g>",
    ]
    for row in picture.rows:
        parts += [
            f'<g role="img"><title>{escape(told(row.claim))}</title>',
            f"<desc>{escape(row.claim.detail)}</desc>",
            f'<rect class="hover" y="{row.top:g}" width="{WIDTH:g}" height="{row.height:g}"/>',
            *map(_svg, row.shapes),
            "</g>",
        ]
    return "".join([*parts, "</svg>"])


def told(claim: ClaimResult) -> str:
    """A claim, what became of it, and where the paper says it."""
    kind = " (primary)" if claim.primary else ""
    where = f" Source: {claim.source}" if claim.source else ""
    return f"{claim.text}{kind}: {claim.verdict}.{where}"


def alternative(exhibit: Exhibit, claims: Sequence[ClaimResult]) -> str:
    """The picture in words: how many claims came out how, and the primary one's numbers."""
    found = Counter(claim.verdict for claim in claims)
    counts = ", ".join(
        f"{count} {_verb(verdict, count)}" for verdict in SYMBOLS if (count := found[verdict])
    )
    many = f"{len(claims)} claim{'s' if len(claims) > 1 else ''}"
    said = f"Of {many} of {exhibit.name} ({exhibit.title}): {counts}."
    return said + "".join(
        f" {claim.text} (primary): {claim.verdict}, {claim.detail}."
        for claim in claims
        if claim.primary
    )


def _verb(verdict: ClaimVerdict, count: int) -> str:
    match verdict:
        case "holds":
            return "holds" if count == 1 else "hold"
        case "not-run":
            return "was not run" if count == 1 else "were not run"
        case _:
            return f"{'is' if count == 1 else 'are'} {verdict}"


def _style() -> str:
    """The colours by role on either ground, and how text is set."""
    light, dark = (
        "".join(f"--{role}:{colours[ground]};" for role, colours in PALETTE.items())
        for ground in (0, 1)
    )
    return (
        "<style>"
        f".forest{{{light}width:100%;min-width:54rem;max-width:{WIDTH:g}px;"
        "font:13px system-ui,sans-serif}"
        f"@media screen and (prefers-color-scheme:dark){{.forest{{{dark}}}}}"
        ".forest text{font-family:inherit}.forest .hover{fill:none;pointer-events:all}"
        "</style>"
    )


def _svg(shape: Shape) -> str:
    colour = "currentColor" if shape.role == "ink" else f"var(--{shape.role})"
    match shape:
        case Line():
            dashes = ";stroke-dasharray:3 2" if shape.dashed else ""
            return (
                f'<line x1="{shape.x[0]:.1f}" x2="{shape.x[1]:.1f}" y1="{shape.y[0]:.1f}"'
                f' y2="{shape.y[1]:.1f}"'
                f' style="stroke:{colour};stroke-width:{shape.width:g}{dashes}"/>'
            )
        case Area():
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
            inside = f"fill:none;stroke-width:{OUTLINE};stroke" if shape.hollow else "fill"
            return f'<polygon points="{points}" style="{inside}:{colour}"/>'
        case Dot():
            return (
                f'<circle cx="{shape.x:.1f}" cy="{shape.y:.1f}" r="{shape.radius:g}"'
                f' style="fill:{colour}"/>'
            )
        case Words():
            bold = ";font-weight:700" if shape.bold else ""
            return (
                f'<text x="{shape.x:.1f}" y="{shape.y:.1f}" text-anchor="{shape.anchor}"'
                f' style="fill:{colour};font-size:{shape.size:g}px{bold}">'
                f"{escape(shape.text)}</text>"
            )
