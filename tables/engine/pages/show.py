"""A compared table as terminal text, CSV, Markdown and LaTeX. Every form is a function of the
records alone."""

import csv
import io
import re
import textwrap
from collections import Counter
from collections.abc import Sequence

import pandas as pd
from tabulate import tabulate

from protobench.runtime import cli
from tables.engine import reference, verdicts
from tables.engine.compare import Cell, Outcome
from tables.engine.schema import TIERS, ClaimResult, Column

SYMBOLS = {
    "re-evaluated": "=",
    "reproduced": "✓",
    "within": "≈",
    "undecided": "~",
    "short": "▼",
    "above": "▲",
    "invalid": "✗",
    "unchecked": "?",
    "off-protocol": "",
    "unprinted": "",
    "not-run": "·",
    "cited": "–",
    "absent": "—",
}
LEGEND = (
    "= re-evaluated (the paper's own file)   ✓ reproduced (90 % interval inside the margin)   ≈"
    " within the margin, without an interval   ~ undecided   ▼ short   ▲ above   ✗ invalid   ?"
    " controls not run   · not run   – cited by the paper   — a row without this number"
)
COLUMNS = 100
"""of a terminal, where not all is asked for"""
TEX = {mark: f"\\{mark}" for mark in "&%$#_{}"} | {
    "\\": "\\textbackslash{}",
    "^": "\\textasciicircum{}",
    "~": "\\textasciitilde{}",
}
"""How TeX prints what it would read as more than text."""
INTERVALS = "paired difference [interval that allows for all looks]"
PRIMARY = " (primary)"


def forms(outcome: Outcome, strict: bool = False) -> dict[str, str]:
    """Every form by its file's ending."""
    return {
        "csv": grid_csv(outcome),
        "cells.csv": cells_csv(outcome),
        "md": markdown(outcome, strict),
        "tex": latex(outcome),
        "txt": text(outcome, strict),
    }


# Numbers as text ----------------------------------------------------------------------------------


def number(cell: Cell, decimals: int) -> str:
    """Our mean with the paper's decimals, or nothing."""
    return "" if cell.mean is None else f"{cell.mean:.{decimals}f}"


def spread(cell: Cell, decimals: int) -> str:
    """Our standard deviation, never "0.0" for a single run."""
    return "" if cell.sd is None else f"{cell.sd:.{decimals}f}"


def _ours(cell: Cell, decimals: int) -> str:
    if cell.verdict in ("cited", "not-run", "absent"):
        return SYMBOLS[cell.verdict]
    told = spread(cell, decimals)
    return (
        number(cell, decimals)
        + (f" ±{told}" if told else "")
        + (" ✗" if cell.verdict == "invalid" else "")
    )


def _versus(cell: Cell, decimals: int) -> str:
    """ours | paper (where it has the row), and in the paper's tier delta and verdict."""
    both = f"{_ours(cell, decimals)} | {cell.paper}" if cell.paper else _ours(cell, decimals)
    return (
        both
        if cell.delta is None
        else f"{both} | {cell.delta:+.{decimals}f} {SYMBOLS[cell.verdict]}"
    )


def groups(outcome: Outcome) -> list[tuple[str, list[Column]]]:
    """The table's parts: heading and columns."""
    titles = dict.fromkeys(column.group for column in outcome.table.columns)
    return [
        (f"{group}, {outcome.table.unit[group]}", columns)
        for group in titles
        if (columns := [c for c in outcome.table.columns if c.group == group])
    ]


def _rows(outcome: Outcome, columns: Sequence[Column]) -> list[list[str]]:
    return [
        [
            row.title,
            *(
                _versus(outcome.cells[row.name, column.title], outcome.table.decimals)
                for column in columns
            ),
        ]
        for row in outcome.table.rows
    ]


def what_spread_means(outcome: Outcome) -> str:
    """What stands behind the ±."""
    counts = sorted({cell.seeds for cell in outcome.cells.values() if cell.runs})
    if all(cell.sd is None for cell in outcome.cells.values()):
        return "one value per row"
    if counts == [1]:
        return "± standard deviation over the draws of training images; one encoder per row"
    over_seeds = "± standard deviation over pretraining seeds, each the mean of its draws"
    if 1 not in counts:
        return f"{over_seeds}; seeds per row: {', '.join(map(str, counts))}"
    return (
        f"{over_seeds}, in rows with several ({', '.join(map(str, counts[1:]))}); over draws in"
        " rows with one"
    )


def _below(outcome: Outcome) -> list[str]:
    """What stands under a table: its legend in the paper's tier, its machine in the bundled one."""
    return [
        line
        for line in (
            LEGEND if TIERS[outcome.tier].compared else "",
            ceilings(outcome) if TIERS[outcome.tier].compared else "",
            reference.machine(outcome),
        )
        if line
    ]


def claims_text(claims: Sequence[ClaimResult], claimed_by: str, columns: int | None = None) -> str:
    """Verdict, claim and what the verdict rests on, for the terminal; no wider than ``columns``."""
    headers, widths = [f"claim of {claimed_by}", "", INTERVALS], [None, 44, 62]
    if columns is not None:
        rest = columns - len("negligible") - 2 - 2  # two between columns
        widths = [None, rest * 2 // 5, rest - rest * 2 // 5]
        told = zip(widths[1:], (headers[0], INTERVALS), strict=True)
        headers = ["verdict", *(textwrap.fill(words, width or columns) for width, words in told)]
    return tabulate(
        [
            (claim.verdict, f"{claim.text}{PRIMARY if claim.primary else ''}", claim.detail)
            for claim in claims
        ],
        headers=headers,
        tablefmt="simple",
        maxcolwidths=widths,
    )


def counts(claims: Sequence[ClaimResult]) -> str:
    """How many claims came out how."""
    found = Counter(claim.verdict for claim in claims)
    return ", ".join(f"{count} {verdict}" for verdict, count in found.items()) or "none"


def multiplicity(claims: Sequence[ClaimResult]) -> str:
    """What many claims mean for each of them; empty where there is one."""
    secondary = [claim for claim in claims if not claim.primary and claim.verdict != "not-run"]
    if len(claims) < 2 or not secondary:
        return ""
    return (
        f"Each claim errs by chance in at most 2.5 % per direction; of {len(secondary)} secondary"
        f" ones about {0.05 * len(secondary):.1f} would be decided wrongly if all were null."
    )


def summary(outcome: Outcome, strict: bool = False) -> str:
    """One line: how many cells and claims came out how, and the exit code."""
    cells = Counter(cell.verdict for cell in outcome.cells.values())
    told = ", ".join(f"{count} {verdict}" for verdict, count in cells.items())
    if rows := outcome.short_rows():
        told += f"; rows short on average: {', '.join(row.title for row in rows)}"
    if single := outcome.short_cells():
        told += f"; cells that count as short: {len(single)}"
    code = outcome.exit_code(strict)
    both = " (differs and is incomplete)" if code == cli.DIFFERS and outcome.incomplete else ""
    return f"{told}; claims: {counts(outcome.claims)} -> exit {code}{both}"


def ceilings(outcome: Outcome) -> str:
    """How often what is identical to the paper's would be called reproduced, by column, where the
    noise of its numbers is known; for the paper's tier."""
    known = [
        (column.title, verdicts.ceiling(column.margin, column.noise))
        for column in outcome.table.columns
        if column.noise is not None
    ]
    if not known:
        return ""
    told = (
        "At most so often would an identical method be called reproduced, with any number of runs: "
    )
    told += ", ".join(f"{title} {share:.0%}" for title, share in known)
    if hopeless := [title for title, share in known if share < verdicts.DECIDABLE]:
        told += f". Cannot be decided: {', '.join(hopeless)}"
    return told + "."


# The forms ----------------------------------------------------------------------------------------


def text(outcome: Outcome, strict: bool = False) -> str:
    """Returns the table for a file: ours | paper in every cell, then claims and summary."""
    return f"{table_text(outcome)}{ending(outcome, strict)}"


def table_text(outcome: Outcome, columns: int | None = None) -> str:
    """What stands before the claims. No wider than ``columns``: headings have a line of their own,
    parts that are wider are cut into several, and long lines are wrapped."""
    table = outcome.table
    lines = [
        f"{table.name}: {table.title}",
        f"{table.paper.citation}; {table.source}",
        TIERS[outcome.tier].stamp,
        f"ours | paper; {what_spread_means(outcome)}",
        f"controls (Random, Supervised): {outcome.controls}",
        *outcome.remarks,
    ]
    parts = [wrapped(line, columns) for line in lines] + [""]
    for heading, of_group in groups(outcome):
        for chosen in _fitting(outcome, of_group, columns):
            grid = _grid(outcome, heading if columns is None else "", chosen)
            parts += [*([heading] if columns else []), grid, ""]
    parts += [line for told in _below(outcome) for line in (wrapped(told, columns), "")]
    return _without_trailing_spaces("\n".join(parts)) + "\n"


def ending(outcome: Outcome, strict: bool = False, columns: int | None = None) -> str:
    """The claims, and the summary."""
    multiple = multiplicity(outcome.claims)
    parts = [
        claims_text(outcome.claims, outcome.table.claimed_by, columns),
        "",
        *([wrapped(multiple, columns), ""] if multiple else []),
        wrapped(summary(outcome, strict), columns),
    ]
    return _without_trailing_spaces("\n".join(parts)) + "\n"


def wrapped(line: str, columns: int | None) -> str:
    """A line of prose on several; words are never broken."""
    if columns is None:
        return line
    return textwrap.fill(
        line, columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _grid(outcome: Outcome, heading: str, columns: Sequence[Column]) -> str:
    return tabulate(
        _rows(outcome, columns),
        headers=[heading, *(c.heading for c in columns)],
        tablefmt="simple",
        disable_numparse=True,
    )


def _fitting(
    outcome: Outcome, of_group: Sequence[Column], columns: int | None
) -> list[Sequence[Column]]:
    """A part's columns in as few pieces as are no wider than ``columns``, of about equal length; a
    single column is not split."""
    for pieces in range(1, len(of_group)):
        size = -(-len(of_group) // pieces)
        split = [of_group[i : i + size] for i in range(0, len(of_group), size)]
        if columns is None or all(
            max(map(len, _grid(outcome, "", piece).splitlines())) <= columns for piece in split
        ):
            return split
    return [[column] for column in of_group]


def _without_trailing_spaces(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.split("\n"))


def grid_csv(outcome: Outcome) -> str:
    """Same columns and order as the paper's numbers, so that plain diff works; all rows in a tier
    that has a data set of its own, and cited numbers only where they are of the same data."""
    table, traits = outcome.table, TIERS[outcome.tier]
    rows = []
    own = tuple(row for row in table.rows if row.own)
    for row in table.rows if traits.dataset else (*table.printed_rows, *own):
        cells = [outcome.cells[row.name, column.title] for column in table.columns]
        values = [
            cell.paper if row.cited and not traits.bundled else number(cell, table.decimals)
            for cell in cells
        ]
        rows.append([row.title, table.architectures.get(row.title, ""), *values])
    return csv_text(["row", "architecture", *(column.title for column in table.columns)], rows)


def cells_csv(outcome: Outcome) -> str:
    """Returns one line per cell, for programs."""

    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}"

    rows = []
    for (row, column), cell in outcome.cells.items():
        low, high = cell.interval or (None, None)
        rows.append(
            [
                outcome.tier,
                row,
                column,
                cell.paper,
                shown(cell.mean),
                shown(cell.sd),
                str(len(cell.values)),
                "seeds" if cell.seeds > 1 or len(cell.values) == 1 else "draws",
                shown(cell.delta),
                shown(low),
                shown(high),
                f"{cell.row.margin(cell.column):g}",
                cell.verdict,
                outcome.sources.get(row, ""),
            ]
        )
    return csv_text(
        [
            "tier",
            "row",
            "column",
            "paper",
            "mean",
            "sd",
            "n",
            "n_of",
            "delta",
            "delta_low90",
            "delta_high90",
            "margin",
            "verdict",
            "source",
        ],
        rows,
    )


def csv_text(header: list[str], rows: list[list[str]]) -> str:
    """Comma-separated values with Unix line ends."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([header, *rows])
    return file.getvalue()


def markdown(outcome: Outcome, strict: bool = False) -> str:
    """Returns the table in GitHub's Markdown."""
    table = outcome.table
    lines = [
        f"# {table.name}: {table.title}",
        "",
        f"{table.paper.citation}; {table.source}. {table.source_note}",
        "",
        f"**{TIERS[outcome.tier].stamp}**",
        "",
        f"Each cell: ours \\| paper. {what_spread_means(outcome)}. Controls: {outcome.controls}.",
        "",
    ]
    lines += [f"- {plain(remark)}" for remark in outcome.remarks] + [""] * bool(outcome.remarks)
    for heading, columns in groups(outcome):
        rows = [[word.replace("|", "\\|") for word in row] for row in _rows(outcome, columns)]
        for row, line in zip(table.rows, rows, strict=True):
            line[0] = plain(row.title) if row.own else line[0]
        lines += [
            tabulate(
                rows,
                headers=[heading, *(c.heading for c in columns)],
                tablefmt="pipe",
                disable_numparse=True,
            ),
            "",
        ]
    lines += [line for told in _below(outcome) for line in (plain(told), "")]
    lines += [
        f"| Claim of {table.claimed_by} | Where | Verdict | {INTERVALS.capitalize()} |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {claim.text}{PRIMARY if claim.primary else ''} | {claim.source} | **{claim.verdict}** |"
        f" {claim.detail} |"
        for claim in outcome.claims
    ]
    if told := multiplicity(outcome.claims):
        lines += ["", told]
    lines += ["", summary(outcome, strict), "", "Notes", ""]
    lines += [f"- {note}" for note in table.notes] + [f"- Margins: {table.margin_reason}."]
    lines += [f"- {row.title}: cited, {row.cited}." for row in table.rows if row.cited]
    lines += [
        f"- {plain(table.row(name).title)}: {plain(source)}."
        for name, source in outcome.sources.items()
        if source != "retrained"
    ]
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """Names from files may hold what Markdown, or HTML within it, would read as more than text."""
    return re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", text)


def latex(outcome: Outcome) -> str:
    """Returns the table for papers: booktabs, ours with its spread, the tier in the caption."""
    table = outcome.table
    symbols = {"±": "$\\pm$", "–": "--", "—": "---", "·": "", "✗": "(invalid)"}
    frame = pd.DataFrame(
        [
            [
                re.sub(
                    "[±–—·✗]",
                    lambda found: symbols[found[0]],
                    _ours(outcome.cells[row.name, column.title], table.decimals),
                )
                for column in table.columns
            ]
            for row in table.rows
        ],
        index=[_tex(row.title) for row in table.rows],
        columns=pd.MultiIndex.from_tuples(
            [
                (_tex(column.group), _tex(column.heading).replace("k=", "$k$ = "))
                for column in table.columns
            ]
        ),
    )
    stamp = TIERS[outcome.tier].stamp.replace("%", "\\%")
    return frame.style.to_latex(
        hrules=True,
        multicol_align="c",
        column_format="l" + "r" * len(table.columns),
        caption=f"{table.title}. {stamp}",
        label=f"tab:{table.name}-{outcome.tier}",
        position_float="centering",
    )


def _tex(text: str) -> str:
    """Text as TeX prints it."""
    return re.sub(r"[\\&%$#_{}^~]", lambda found: TEX[found[0]], text)
