"""The curves of a pretraining as small inline SVGs: what a checkpoint's page shows of its history
(pretrain/history.py)."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from markupsafe import Markup, escape

from protobench.records import Record

WIDTH, HEIGHT = 420, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 96, 14, 30
"""room for the numbers, for the names at the ends of the lines, and for the epochs"""
DASHES = ("none", "6 3", "2 3", "8 3 2 3")
Points = Sequence[tuple[float, float]]


def of_pretraining(histories: Iterable[Record]) -> list[Markup]:
    """Return the loss, and the agreement of clusters with the classes, over the epochs of the
    newest history; none without one."""
    courses = [of for of in histories if of["unit"]["evaluation"] == "course"]
    if not courses:
        return []
    course = max(courses, key=lambda record: str(record["finished"]))
    loss = [(run["epoch"] + 1, run["loss"]) for run in course["runs"]]
    ks = sorted(
        {k for probe in course["probes"] for k in probe["clusters"]}, key=lambda k: (len(k), k)
    )
    ami = {
        f"K = {k}": [
            (probe["epochs"], probe["clusters"][k]["ami"])
            for probe in course["probes"]
            if k in probe["clusters"]
        ]
        for k in ks
    }
    return [svg("Loss, nats", {"": loss})] + (
        [svg("AMI of clusters and classes", ami)] if ami else []
    )


def svg(title: str, lines: Mapping[str, Points]) -> Markup:
    """Return lines over epochs as an SVG in the page's colours, whose label tells their ends."""
    points = [point for of in lines.values() for point in of]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    room = (high - low or abs(high) or 1) * 0.06
    low, high = low - room, high + room
    last = max(xs) or 1

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (WIDTH - LEFT - RIGHT) * x / last,
            TOP + (HEIGHT - TOP - BOTTOM) * (high - y) / (high - low),
        )

    told = "; ".join(
        f"{name + ': ' if name else ''}{of[0][1]:.3g} at epoch {of[0][0]:g},"
        f" {of[-1][1]:.3g} at {of[-1][0]:g}"
        for name, of in lines.items()
    )
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="{escape(f"{title}: {told}")}">',
        f'<text x="0" y="{TOP - 3}" font-weight="600">{escape(title)}</text>',
    ]
    for y in (min(ys), max(ys)):
        height = at(0, y)[1]
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"'
            ' stroke="var(--line)"/>'
            f'<text x="{LEFT - 5}" y="{height + 4:.1f}" text-anchor="end">{y:.3g}</text>'
        )
    for x in (min(xs), max(xs)):
        parts.append(
            f'<text x="{at(x, low)[0]:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{x:g}</text>'
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">'
        "epochs</text>"
    )
    ends = _apart([at(*of[-1])[1] for of in lines.values()])
    for i, (name, of) in enumerate(lines.items()):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in of))
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="var(--ours)" stroke-width="2"'
            f' stroke-dasharray="{DASHES[i % len(DASHES)]}"/>'
        )
        end = f"{name} {of[-1][1]:.3g}".strip()
        parts.append(f'<text x="{WIDTH - RIGHT + 6}" y="{ends[i] + 4:.1f}">{escape(end)}</text>')
    return Markup("".join([*parts, "</svg>"]))


def _apart(heights: Sequence[float], by: float = 13) -> list[float]:
    """Return heights at which names do not overlap, in the same order."""
    placed = list(heights)
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    for above, below in pairwise(order):
        placed[below] = max(placed[below], placed[above] + by)
    return placed
