"""A table's cells as its page shows them: numbers and verdict in one line, the runs as a strip, and
what opens behind them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from tables.engine import verdicts
from tables.engine.compare import Cell, Outcome
from tables.engine.pages import show, strips
from tables.engine.runs import task_of
from tables.engine.schema import Column, RecordsByRow, Row

MOST_DRAWS = 5
"""Draws per seed that are listed one by one."""
SHORT = 12
"""Characters of a record's id that its file's name ends with."""
MOST_RUNS = 60
"""Runs of a cell that are listed; the others are in the records."""
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
    "unprinted": "a row that the paper does not have",
}


@dataclass(frozen=True)
class Group:
    """A part of a table: its columns, and its rows of cells."""

    title: str
    columns: list[tuple[str, str]]
    """heading, and at best how often it can be reproduced"""
    rows: list[tuple[str, list[dict[str, Any]]]]


def groups(outcome: Outcome, found: RecordsByRow, places: dict[str, str]) -> list[Group]:
    """The table's parts, for the template. ``places``: beginning of a record's id, as its file's
    name ends -> where the page finds the file."""
    parts = []
    for title, columns in show.groups(outcome):
        scales = [strips.of_column(outcome, column) for column in columns]
        rows = [
            (
                row.title,
                [
                    _cell(outcome, row, column, scale, found, places)
                    for column, scale in zip(columns, scales, strict=True)
                ],
            )
            for row in outcome.table.rows
        ]
        headings = [(column.heading, ceiling(outcome, column)) for column in columns]
        parts.append(Group(title, headings, rows))
    return parts


def ceiling(outcome: Outcome, column: Column) -> str:
    """How often, at best, an identical method would be called reproduced; empty where cells are not
    compared, or the paper's noise is not known."""
    compared = any(cell.delta is not None for cell in outcome.cells.values())
    if not compared or column.noise is None:
        return ""
    share = verdicts.ceiling(column.margin, column.noise)
    undecidable = "; cannot be decided" if share < verdicts.DECIDABLE else ""
    return f"can at best be reproduced in {share:.0%}{undecidable}".replace("%", " %")


def _cell(
    outcome: Outcome,
    row: Row,
    column: Column,
    scale: strips.Scale,
    found: RecordsByRow,
    places: dict[str, str],
) -> dict[str, Any]:
    table = outcome.table
    cell, decimals = outcome.cells[row.name, column.title], table.decimals
    shown = {
        "id": f"c{table.rows.index(row)}-{table.columns.index(column)}",
        "verdict": cell.verdict,
        "symbol": show.SYMBOLS[cell.verdict],
        "paper": cell.paper,
        "heading": column.title,
        "ours": "",
        "strip": strips.in_cell(cell, scale) if cell.runs or cell.paper else Markup(""),
    }
    if not cell.runs:
        return shown
    runs = shown_runs(cell)
    records = {
        (record["subject"]["seed"], run["draw"]): record
        for record in found.get(row.name, [])
        if task_of(record) == column.task
        for run in record["runs"]
    }
    return {
        **shown,
        "words": WORDS.get(cell.verdict, ""),
        "ours": show.number(cell, decimals),
        "spread": show.spread(cell, decimals),
        "delta": "" if cell.delta is None else f"{cell.delta:+.{decimals}f}",
        "facts": _facts(outcome, cell, decimals + 1),
        "alone": strips.alone(cell, [value for *_, value in runs], decimals),
        "runs": [
            {
                "seed": seed,
                "draw": draw,
                "value": f"{value:.{decimals + 1}f}",
                "record": (short := records[seed, first]["record_id"][:SHORT]),
                "href": places.get(short, ""),
            }
            for seed, draw, first, value in runs[:MOST_RUNS]
        ],
        "more": max(0, len(runs) - MOST_RUNS),
    }


def _facts(outcome: Outcome, cell: Cell, decimals: int) -> list[tuple[str, str]]:
    """Name and value of all that is known of a cell."""
    of = "seeds" if cell.seeds > 1 or len(cell.values) == 1 else "draws"
    facts = [
        ("paper", cell.paper),
        ("ours", show.number(cell, decimals)),
        ("standard deviation", show.spread(cell, decimals)),
        ("n", f"{len(cell.values)} {of}"),
    ]
    if cell.delta is not None:
        facts += [
            ("difference", f"{cell.delta:+.{decimals}f}"),
            ("margin", f"± {cell.row.margin(cell.column):g}"),
        ]
    if cell.interval:
        low, high = cell.interval
        facts.append(("90 % interval", f"{low:+.{decimals}f} to {high:+.{decimals}f}"))
    facts.append(("encoder", outcome.sources.get(cell.row.name, "")))
    return [(name, value) for name, value in facts if value]


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
