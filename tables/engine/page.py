"""What was found, as pages to look at: one HTML file for everything, one per table or figure, and
the same in Markdown.

Each page is one file that needs no network and no script; a cell's runs are a native popover. All
of it is a function of the records, and of the pictures that were drawn from them
(``results/<tier>/figureN.png``)."""

import base64
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from protobench import records
from protobench.runtime import files
from tables.engine import compare, pictures, reference, show
from tables.engine.compare import Cell, Outcome, RecordsByRow
from tables.engine.schema import Figure, Row, Table, Tier

TIERS: tuple[Tier, ...] = ("paper", "mini", "quick")
WORDS = {
    "reproduced": "the 90 % interval of the difference lies inside the margin",
    "within": (
        "the mean lies inside the margin, but the interval does not, or there are too few runs"
        " for one"
    ),
    "short": "the mean lies below the margin",
    "above": "the mean lies above the margin, which is no success either",
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


def build(
    results: Path,
    tables: Iterable[Table],
    figures: Iterable[Figure],
    asked: dict[tuple[Tier, str], Collection[str]] | None = None,
) -> list[Path]:
    """Writes ``index.html``, ``<tier>/<name>.html`` and ``<tier>/README.md`` below ``results``;
    returns their paths.

    ``asked``: (tier, table or figure) -> the records to take for it (see compare.among). Draws the
    figures that are missing, or were drawn from other records."""
    tables, figures = list(tables), list(figures)
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True
    ).get_template("page.html.jinja")
    everything: list[dict[str, Any]] = []
    written = []
    for tier in TIERS:
        have = records.read_all(results / tier / "records")
        every: list[Table | Figure] = [*tables, *figures]
        chosen = {
            what.name: compare.among(what, have, (asked or {}).get((tier, what.name))).rows
            for what in every
        }
        sections = [
            _table(table, tier, chosen[table.name]) for table in tables if chosen[table.name]
        ]
        sections += [
            _figure(figure, tier, results / tier, chosen[figure.name])
            for figure in figures
            if not pictures.missing(figure, chosen[figure.name])
        ]
        for section in sections:
            path = results / tier / f"{section['name']}.html"
            files.write_text(
                path,
                template.render(title=f"{section['name']}: {section['title']}", sections=[section])
                + "\n",
            )
            written.append(path)
        if sections:
            files.write_text(results / tier / "README.md", markdown(tier, sections))
            written.append(results / tier / "README.md")
        everything += sections
    if everything:
        page = template.render(title="PCL and SPCL: tables and figures", sections=everything) + "\n"
        files.write_text(results / "index.html", page)
        written.append(results / "index.html")
    return written


def markdown(tier: Tier, sections: list[dict[str, Any]]) -> str:
    """The contents of a tier's folder, as GitHub shows them."""
    lines = [f"# Results of the {tier} tier", "", f"**{show.STAMPS[tier]}**", ""]
    for section in sections:
        link = f"[{section['name']}]({section['name']}.{'csv' if section['picture'] else 'md'})"
        lines += [f"## {link}: {section['title']}", "", section["source"], ""]
        if section["picture"]:
            lines += [
                f"![{section['alternative']}]({section['name']}.png)",
                "",
                section["caption"],
                "",
            ]
        else:
            lines += [f"{section['summary']}. Controls: {show.plain(section['controls'])}.", ""]
        lines += [
            f"- **{claim['verdict']}**: {claim['text']}; {claim['detail']}"
            for claim in section["claims"]
        ]
        lines += [""] * bool(section["claims"])
    return "\n".join(lines).rstrip() + "\n"


# Sections -----------------------------------------------------------------------------------------


def _table(table: Table, tier: Tier, found: RecordsByRow) -> dict[str, Any]:
    """A table as the template wants it."""
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
    claims = [
        {
            "verdict": result.verdict,
            "text": result.claim.text,
            "source": result.claim.source,
            "detail": show.claim_line(result, table.decimals),
        }
        for result in outcome.claims
    ]
    notes = [*table.notes, f"Margins: {table.margin_reason}."]
    notes += [f"{row.title}: cited, {row.cited}." for row in table.rows if row.cited]
    return {
        "id": f"{tier}-{table.name}",
        "name": table.name,
        "title": table.title,
        "tier": tier,
        "stamp": show.STAMPS[tier],
        "source": f"{table.paper}; {table.source}. {table.source_note}",
        "picture": "",
        "summary": show.summary(outcome).partition(" ->")[0],
        "groups": groups,
        "spread": show.what_spread_means(outcome),
        "controls": outcome.controls,
        "remarks": outcome.remarks,
        "legend": show.LEGEND,
        "machine": reference.machine(outcome),
        "claims": claims,
        "claimed_by": table.claimed_by,
        "notes": notes,
        "provenance": _provenance(table.rows, found),
    }


def _figure(figure: Figure, tier: Tier, folder: Path, found: RecordsByRow) -> dict[str, Any]:
    """A figure as the template wants it."""
    path = folder / f"{figure.name}.png"
    if not pictures.is_of(path, found):
        pictures.save(figure, tier, found, folder)
    return {
        "id": f"{tier}-{figure.name}",
        "name": figure.name,
        "title": figure.title,
        "tier": tier,
        "stamp": show.STAMPS[tier],
        "source": f"{figure.paper}; {figure.source}",
        "summary": "",
        "picture": base64.b64encode(path.read_bytes()).decode(),
        "alternative": figure.alternative,
        "caption": figure.caption,
        "groups": [],
        "notes": [],
        "claimed_by": "the paper",
        "claims": [
            {"text": text, "verdict": verdict, "detail": detail, "source": source}
            for text, verdict, detail, source in figure.claims(found)
        ],
        "provenance": _provenance(figure.rows, found),
    }


def _cell(outcome: Outcome, row: Row, title: str, found: RecordsByRow) -> dict[str, Any]:
    cell, decimals = outcome.cells[row.name, title], outcome.table.decimals
    record_of = {
        (record["subject"]["seed"], run["draw"]): record["record_id"][:12]
        for record in found.get(row.name, [])
        if compare.score_of(record) == cell.column.score
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
                "record": record_of.get((seed, draw), ""),
            }
            for (seed, draw), value in sorted(cell.runs.items())
        ],
    }


def strip(cell: Cell, tier: Tier, decimals: int) -> Markup:
    """The runs as points on a line, with the paper's number and, where it may be compared, its
    margin; an inline SVG."""
    if not cell.runs:
        return Markup("")
    values = list(cell.runs.values())
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
        for (seed, _), value in sorted(cell.runs.items())
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
