"""What was found, as pages to look at: one HTML file for everything, one per table or figure, and
the same in Markdown.

Each page is one file that needs no network and no script; a cell's runs are a native popover. All
of it is a function of the records, and of the pictures that were drawn from them
(``results/<tier>/figureN.png``)."""

import base64
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from protobench.runtime import files
from tables.engine import compare, pictures, reference, show
from tables.engine.compare import Cell, Outcome
from tables.engine.runs import select_records, task_of
from tables.engine.schema import (
    TIERS,
    ClaimResult,
    Exhibit,
    Figure,
    RecordsByRow,
    Row,
    Table,
    Tier,
)

E = TypeVar("E", bound=Exhibit)
MOST_DRAWS = 5
"""Draws per seed that are listed one by one."""
RecordsByTier = dict[Tier, dict[str, dict[str, Any]]]
"""tier -> its records by their key"""
WORDS = {
    "reproduced": "the 90 % interval of the difference lies inside the margin",
    "re-evaluated": "the paper's own encoder, scored just as the paper did, has its number",
    "within": "the mean lies inside the margin; there are too few runs for an interval",
    "undecided": "the 90 % interval of the difference lies across the margin",
    "short": "the interval, or without one the mean, lies below the margin",
    "above": "the interval, or without one the mean, lies above the margin: no success either",
    "invalid": (
        "Random or Supervised did not come out, or this row scores like Random: the number means"
        " nothing"
    ),
    "unchecked": "Random and Supervised were not run",
    "off-protocol": (
        "other data or another network than the paper's: never subtracted from its number"
    ),
    "unprinted": "a control row that the paper does not have",
}


@dataclass(frozen=True)
class Section:
    """A table or a figure as the template shows it."""

    exhibit: Exhibit
    tier: Tier
    source: str
    claims: tuple[ClaimResult, ...]
    provenance: list[list[str]]
    summary: str = ""
    headline: str = ""
    """what was found, in a sentence"""
    picture: str = ""
    """a figure's PNG, base64"""
    groups: list[dict[str, Any]] = field(default_factory=list)
    """a table's parts: title, columns, rows of cells"""
    outcome: Outcome | None = None
    spread: str = ""
    machine: str = ""
    notes: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """For links within a page."""
        return f"{self.tier}-{self.exhibit.name}"

    @property
    def stamp(self) -> str:
        """What the numbers of its tier mean."""
        return TIERS[self.tier].stamp

    @property
    def legend(self) -> str:
        """What the symbols of its cells mean."""
        return show.LEGEND


def build(
    results: Path,
    have: RecordsByTier,
    tables: Iterable[Table],
    figures: Iterable[Figure],
    requested_keys: dict[tuple[Tier, str], Collection[str]] | None = None,
) -> list[Path]:
    """Writes ``index.html``, ``<tier>/<name>.html`` and ``<tier>/README.md`` under ``results``
    from the records ``have``; returns their paths. Figures with a headline stand first in
    ``index.html``, and the first of them before the contents.

    ``requested_keys``: (tier, table or figure) -> the records to take for it (see
    runs.select_records). Draws the figures that are missing, or were drawn from other records."""
    tables, figures = list(tables), list(figures)
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True
    ).get_template("page.html.jinja", globals={"intervals": show.INTERVALS})
    everything: list[Section] = []
    written = []

    def write(path: Path, content: str) -> None:
        files.write_text(path, content)
        written.append(path)

    for tier in TIERS:
        shown_tables, shown_figures = _forms(tables, tier), _forms(figures, tier)

        def rows_of(exhibit: Exhibit, tier: Tier = tier) -> RecordsByRow:
            keys = (requested_keys or {}).get((tier, exhibit.name), ())
            return select_records(exhibit, have[tier], keys).rows

        sections = [
            _table(table, tier, found) for table in shown_tables if (found := rows_of(table))
        ]
        sections += [
            _figure(figure, tier, results / tier, found)
            for figure in shown_figures
            if not pictures.missing(figure, found := rows_of(figure))
        ]
        for section in sections:
            title = f"{section.exhibit.name}: {section.exhibit.title}"
            page = template.render(title=title, sections=[section])
            write(results / tier / f"{section.exhibit.name}.html", page + "\n")
        if sections:
            write(results / tier / "README.md", markdown(tier, sections))
        everything += sections
    if everything:
        everything.sort(key=lambda section: not section.headline)
        page = template.render(
            title=_title(everything),
            sections=everything,
            contents_after_first=bool(everything[0].headline),
        )
        write(results / "index.html", page + "\n")
    return written


def _forms(exhibits: Iterable[E], tier: Tier) -> list[E]:
    """The exhibits as the tier shows them, without those that it does not have."""
    return [cast(E, form) for exhibit in exhibits if (form := exhibit.form(tier))]


def _title(sections: list[Section]) -> str:
    """Names the papers that are shown."""
    papers = dict.fromkeys(section.exhibit.paper for section in sections)
    *others, last = [paper.name for paper in papers if paper.authors] or ["ProtoBench"]
    return f"{', '.join(others)}{' and ' * bool(others)}{last}: tables and figures"


def markdown(tier: Tier, sections: list[Section]) -> str:
    """The contents of a tier's folder, as GitHub shows them."""
    lines = [f"# Results of the {tier} tier", "", f"**{TIERS[tier].stamp}**", ""]
    for section in sections:
        exhibit = section.exhibit
        link = f"[{exhibit.name}]({exhibit.name}.{'csv' if section.picture else 'md'})"
        lines += [f"## {link}: {exhibit.title}", "", section.source, ""]
        if isinstance(exhibit, Figure):
            lines += [f"**{section.headline}**", ""] if section.headline else []
            lines += [
                f"![{exhibit.alternative}]({exhibit.name}.png)",
                "",
                exhibit.caption,
                "",
            ]
        elif section.outcome:
            lines += [f"{section.summary}. Controls: {show.plain(section.outcome.controls)}.", ""]
        lines += [
            f"- **{claim.verdict}**: {claim.text}; {claim.detail}" for claim in section.claims
        ]
        lines += [""] * bool(section.claims)
    return "\n".join(lines).rstrip() + "\n"


# Sections -----------------------------------------------------------------------------------------


def _table(table: Table, tier: Tier, found: RecordsByRow) -> Section:
    outcome = compare.outcome(table, tier, found)
    groups = [
        {
            "title": title,
            "columns": [column.heading for column in columns],
            "rows": [
                {
                    "title": row.title,
                    "cells": [_cell(outcome, row, column.title, found) for column in columns],
                }
                for row in table.rows
            ],
        }
        for title, columns in show.groups(outcome)
    ]
    cited = tuple(f"{row.title}: cited, {row.cited}." for row in table.rows if row.cited)
    return Section(
        table,
        tier,
        source=f"{table.paper.citation}; {table.source}. {table.source_note}",
        claims=tuple(outcome.claims),
        provenance=_provenance(table.rows, found),
        summary=show.summary(outcome).partition(" ->")[0],
        groups=groups,
        outcome=outcome,
        spread=show.what_spread_means(outcome),
        machine=reference.machine(outcome),
        notes=(*table.notes, f"Margins: {table.margin_reason}.", *cited),
    )


def _figure(figure: Figure, tier: Tier, folder: Path, found: RecordsByRow) -> Section:
    path = folder / f"{figure.name}.png"
    if not pictures.is_of(path, found):
        pictures.save(figure, tier, found, folder)
    return Section(
        figure,
        tier,
        source=f"{figure.paper.citation}; {figure.source}",
        claims=figure.claims(found),
        headline=figure.headline(found),
        provenance=_provenance(figure.rows, found),
        picture=base64.b64encode(path.read_bytes()).decode(),
    )


def _cell(outcome: Outcome, row: Row, title: str, found: RecordsByRow) -> dict[str, Any]:
    cell, decimals = outcome.cells[row.name, title], outcome.table.decimals
    record_of = {
        (record["subject"]["seed"], run["draw"]): record["record_id"][:12]
        for record in found.get(row.name, [])
        if task_of(record) == cell.column.task
        for run in record["runs"]
    }
    facts = [
        ("paper", cell.paper),
        ("ours", show.number(cell, decimals + 1)),
        ("standard deviation", show.spread(cell, decimals + 1)),
        (
            "n",
            f"{len(cell.values)} {'seeds' if cell.seeds > 1 or len(cell.values) == 1 else 'draws'}",
        ),
    ]
    if cell.delta is not None:
        facts += [
            ("difference", f"{cell.delta:+.{decimals + 1}f}"),
            ("margin", f"± {row.margin(cell.column):g}"),
        ]
    if cell.interval:
        facts.append(
            (
                "90 % interval",
                f"{cell.interval[0]:+.{decimals + 1}f} to {cell.interval[1]:+.{decimals + 1}f}",
            )
        )
    facts.append(("encoder", outcome.sources.get(row.name, "")))
    return {
        "id": (
            f"c-{outcome.tier}-{outcome.table.name}-{row.name}-{outcome.table.columns.index(cell.column)}"
        ),
        "verdict": cell.verdict,
        "symbol": show.SYMBOLS[cell.verdict],
        "paper": cell.paper,
        "words": WORDS.get(cell.verdict, ""),
        "ours": (
            show.number(cell, decimals)
            + (f" ±{told}" if (told := show.spread(cell, decimals)) else "")
        ),
        "delta": "" if cell.delta is None else f"{cell.delta:+.{decimals}f}",
        "heading": title,
        "facts": [(name, value) for name, value in facts if value],
        "strip": strip(cell, outcome.tier, decimals),
        "runs": [
            {
                "seed": seed,
                "draw": draw,
                "value": f"{value:.{decimals + 1}f}",
                "record": record_of.get((seed, first), ""),
            }
            for seed, draw, first, value in shown_runs(cell)
        ],
    }


def shown_runs(cell: Cell) -> list[tuple[int, str, int, float]]:
    """(seed, what of its draws, the first of them, value) of each run or, where several seeds have
    more draws than anybody reads, of each seed's mean."""
    draws_of: dict[int, list[int]] = {}
    for seed, draw in sorted(cell.runs):
        draws_of.setdefault(seed, []).append(draw)
    if len(draws_of) == 1 or max(map(len, draws_of.values()), default=0) <= MOST_DRAWS:
        return [(s, str(d), d, value) for (s, d), value in sorted(cell.runs.items())]
    return [
        (
            seed,
            f"mean of {len(draws)}",
            draws[0],
            float(np.mean([cell.runs[seed, draw] for draw in draws])),
        )
        for seed, draws in draws_of.items()
    ]


def strip(cell: Cell, tier: Tier, decimals: int) -> Markup:
    """The runs as points on a line, with the paper's number and, where it may be compared, its
    margin; an inline SVG."""
    if not cell.runs:
        return Markup("")
    shown = shown_runs(cell)
    values = [value for *_, value in shown]
    paper = float(cell.paper) if cell.paper else None
    margin = cell.row.margin(cell.column) if cell.delta is not None else 0.0
    marks = values + ([paper - margin, paper + margin] if paper is not None else [])
    low, high = min(marks), max(marks)
    room = max(high - low, 10.0**-decimals) * 0.08

    def x(value: float) -> str:
        return f"{12 + 376 * (value - low + room) / (high - low + 2 * room):.1f}"

    told = f"{len(values)} runs from {min(values):.{decimals}f} to {max(values):.{decimals}f}"
    parts = [
        (
            f'<svg viewBox="0 0 400 58" width="100%" role="img" aria-label="{escape(told)}'
            f'{f", paper {cell.paper}" if paper is not None else ""}">'
        ),
        '<line x1="8" x2="392" y1="30" y2="30" stroke="#999"/>',
    ]
    if paper is not None:
        if margin:
            width = float(x(paper + margin)) - float(x(paper - margin))
            parts.append(
                f'<rect x="{x(paper - margin)}" y="16" width="{width:.1f}" height="28"'
                ' fill="#cfeadb"/>'
            )
        note = "paper" if tier == "paper" else "paper (not comparable)"
        end = "end" if float(x(paper)) > 280 else "start" if float(x(paper)) < 120 else "middle"
        parts.append(
            f'<line x1="{x(paper)}" x2="{x(paper)}" y1="14" y2="46" stroke="#b35900"'
            f' stroke-width="2" stroke-dasharray="4 2"/><text x="{x(paper)}" y="10"'
            f' text-anchor="{end}">{note} {cell.paper}</text>'
        )
    shades = ("#0072b2", "#009e73", "#cc79a7", "#d55e00", "#555555")
    line_of = {seed: i for i, seed in enumerate(sorted({seed for seed, _ in cell.runs}))}
    parts += [
        f'<circle cx="{x(value)}" cy="{25 + 5 * (line_of[seed] % 3)}" r="3.5"'
        f' fill="{shades[line_of[seed] % 5]}" fill-opacity=".75"/>'
        for seed, _, _, value in shown
    ]
    ends = (
        [min(values), max(values)]
        if float(x(max(values))) - float(x(min(values))) > 40
        else [max(values)]
    )
    parts += [
        f'<text x="{x(value)}" y="56" text-anchor="middle">{value:.{decimals}f}</text>'
        for value in ends
    ]
    parts.append("</svg>")
    return Markup("".join(parts))


def _provenance(rows: tuple[Row, ...], found: RecordsByRow) -> list[list[str]]:
    """A line per row: encoder, seeds, code, environment, data, cost."""
    lines = []
    for row in rows:
        if not (of := found.get(row.name)):
            continue
        environments = {
            ", ".join(
                f"{name} {value}"
                for name, value in record["environment"].items()
                if value is not None and name != "threads"
            )
            for record in of
        }
        code = {
            (record["code"]["commit"] or "unknown")[:12]
            + " with changes" * bool(record["code"]["dirty"])
            for record in of
        }
        data = {
            f"{record['unit']['data_name']}"
            f" {' '.join(print_[:12] for print_ in record['unit']['data'])}"
            for record in of
        }
        trained = sum(
            float((record["checkpoint"].get("trained") or {}).get("seconds") or 0)
            for record in {record["subject"]["seed"]: record for record in of}.values()
        )
        scored = sum(
            float(record.get("cost", {}).get("seconds", 0))
            for record in of
            if record["unit"]["evaluation"] != "course"
        )
        lines.append(
            [
                row.title,
                f"{of[0]['subject']['source']}, recipe {of[0]['subject']['recipe'][:12]}",
                ", ".join(map(str, sorted({record["subject"]["seed"] for record in of}))),
                ", ".join(sorted(code)),
                "; ".join(sorted(environments)),
                "; ".join(sorted(data)),
                f"{np.round(trained):.0f} s pretraining, {scored:.0f} s scoring",
            ]
        )
    return lines
