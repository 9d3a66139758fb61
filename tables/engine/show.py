"""A compared table as terminal text, CSV, Markdown and LaTeX. Every form is a function of the
records alone."""

import csv
import io
import re
import sys
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from protobench.runtime import cli, colour, files
from tables.engine import compare, reference
from tables.engine.compare import Cell, ClaimResult, Outcome
from tables.engine.schema import Column, Table, Tier

SYMBOLS = {
    "reproduced": "✓",
    "within": "≈",
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
    "✓ reproduced (90 % interval inside the margin)   ≈ within the margin   ▼ short   ▲ above   ✗"
    " invalid   ? controls not run   · not run   – cited by the paper   — a row without this number"
)
STAMPS = {
    "mini": (
        "MINI: embedded data and small networks. These numbers are not comparable with the paper's,"
        " which stand beside them for orientation; only the claims (orderings) are checked."
    ),
    "quick": "QUICK: one epoch on embedded data. Tests the plumbing; the numbers mean nothing.",
    "paper": "PAPER: real data, the paper's protocol.",
}


def publish(
    table: Table,
    tier: Tier,
    results: Path,
    *,
    strict: bool = False,
    asked: Collection[str] | None = None,
) -> int:
    """Compares, prints, writes ``results/<tier>/<table>.{csv,md,tex,txt,cells.csv}``; returns the
    exit code.

    ``asked``: keys of the records that a run was about; without it the newest of each kind.
    """
    collected = compare.collect(table, results, tier, asked)
    if not collected.rows:
        print(
            f"no records of {table.name} in {results / tier / 'records'}; python -m tables"
            f" reproduce {table.name} makes them",
            file=sys.stderr,
        )
        return cli.INCOMPLETE
    outcome = compare.outcome(table, tier, collected.rows)
    printed = text(outcome, strict)
    for ending, content in {
        "csv": grid_csv(outcome),
        "cells.csv": cells_csv(outcome),
        "md": markdown(outcome, strict),
        "tex": latex(outcome),
        "txt": printed,
    }.items():
        files.write_text(results / tier / f"{table.name}.{ending}", content)
    print(colour.painted(printed))
    if told := reference.against(outcome, collected.rows, results / "reference"):
        print(told)
    if collected.stale:
        print(
            f"left out: {collected.stale} records of other data, parameters or recipes in"
            f" {results / tier / 'records'}"
        )
    print(
        f"written: {results / tier / table.name}.{{csv,md,tex,txt,cells.csv}}; plain diff: "
        f"diff {_relative(table.path)} {results / tier / table.name}.csv"
    )
    return outcome.exit_code(strict)


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


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


def _rows(outcome: Outcome, columns: list[Column]) -> list[list[str]]:
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
        for line in (LEGEND if outcome.tier == "paper" else "", reference.machine(outcome))
        if line
    ]


def claim_line(result: ClaimResult, decimals: int) -> str:
    """What a claim's verdict rests on."""
    if not result.leads:
        return "not run"
    leads = list(result.leads.items())
    (left, right, column), least = min(leads, key=lambda item: item[1].mean)
    detail = f"smallest lead {least.mean:+.{decimals}f}"
    if least.interval:
        detail += f" [{least.interval[0]:+.{decimals}f}, {least.interval[1]:+.{decimals}f}]"
    detail += (
        f" ({column}"
        + (f", {left} - {right}" if len(result.claim.left) * len(result.claim.right) > 1 else "")
        + ")"
    )
    if result.one_pretraining:
        return f"{detail}; of one pretraining, which cannot speak for others: more --seeds decide"
    over = sum(
        lead.interval is not None and lead.interval[0] > result.claim.by for _, lead in leads
    )
    return f"{detail}; interval above {result.claim.by:g} in {over} of {len(leads)} comparisons"


def summary(outcome: Outcome, strict: bool = False) -> str:
    """One line: how many cells and claims came out how, and the exit code."""
    cells = Counter(cell.verdict for cell in outcome.cells.values())
    claims = Counter(result.verdict for result in outcome.claims)
    untested = (
        f", {count} with too few pretrainings to tell" if (count := len(outcome.untested())) else ""
    )
    sure = f" ({len(outcome.beyond_chance())} beyond chance over the whole table{untested})"
    told = ", ".join(
        f"{count} {verdict}{sure if verdict == 'short' else ''}" for verdict, count in cells.items()
    )
    code = outcome.exit_code(strict)
    both = " (differs and is incomplete)" if code == cli.DIFFERS and outcome.incomplete else ""
    return (
        f"{told}; claims: {', '.join(f'{count} {verdict}' for verdict, count in claims.items())} "
        f"-> exit {code}{both}"
    )


# The forms ----------------------------------------------------------------------------------------


def text(outcome: Outcome, strict: bool = False) -> str:
    """For the terminal: aligned, ours | paper in every cell, then claims and the summary."""
    table = outcome.table
    lines = [
        f"{table.name}: {table.title}",
        f"{table.paper}; {table.source}",
        STAMPS[outcome.tier],
        f"ours | paper; {what_spread_means(outcome)}",
        f"controls (Random, Supervised): {outcome.controls}",
        *outcome.remarks,
        "",
    ]
    for heading, columns in groups(outcome):
        lines += [
            tabulate(
                _rows(outcome, columns),
                headers=[heading, *(c.heading for c in columns)],
                tablefmt="simple",
                disable_numparse=True,
            ),
            "",
        ]
    lines += [line for told in _below(outcome) for line in (told, "")]
    rows = [
        [result.verdict, result.claim.text, claim_line(result, table.decimals)]
        for result in outcome.claims
    ]
    lines += [
        tabulate(
            rows,
            headers=[f"claim of {table.claimed_by}", "", "95 % interval of paired differences"],
            tablefmt="simple",
            maxcolwidths=[None, 44, 62],
        ),
        "",
        summary(outcome, strict),
    ]
    return "\n".join(line.rstrip() for line in "\n".join(lines).split("\n")) + "\n"


def grid_csv(outcome: Outcome) -> str:
    """Same columns and order as the paper's numbers, so that plain diff works; cited rows only in
    the paper's tier."""
    table = outcome.table
    rows = []
    for row in table.printed_rows:
        cells = [outcome.cells[row.name, column.title] for column in table.columns]
        values = [
            cell.paper if row.cited and outcome.tier == "paper" else number(cell, table.decimals)
            for cell in cells
        ]
        rows.append([row.title, table.architectures[row.title], *values])
    return csv_text(["row", "architecture", *(column.title for column in table.columns)], rows)


def cells_csv(outcome: Outcome) -> str:
    """One line per cell, for programs."""

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
    """For GitHub."""
    table = outcome.table
    lines = [
        f"# {table.name}: {table.title}",
        "",
        f"{table.paper}; {table.source}. {table.source_note}",
        "",
        f"**{STAMPS[outcome.tier]}**",
        "",
        f"Each cell: ours \\| paper. {what_spread_means(outcome)}. Controls: {outcome.controls}.",
        "",
    ]
    lines += [f"- {plain(remark)}" for remark in outcome.remarks] + [""] * bool(outcome.remarks)
    for heading, columns in groups(outcome):
        rows = [[word.replace("|", "\\|") for word in row] for row in _rows(outcome, columns)]
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
        f"| Claim of {table.claimed_by} | Where | Verdict | 95 % interval of paired differences |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {r.claim.text} | {r.claim.source} | **{r.verdict}** | {claim_line(r, table.decimals)} |"
        for r in outcome.claims
    ]
    lines += ["", summary(outcome, strict), "", "Notes", ""]
    lines += [f"- {note}" for note in table.notes] + [f"- Margins: {table.margin_reason}."]
    lines += [f"- {row.title}: cited, {row.cited}." for row in table.rows if row.cited]
    lines += [
        f"- {table.row(name).title}: {plain(source)}."
        for name, source in outcome.sources.items()
        if source != "retrained"
    ]
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """Names from files may hold what Markdown, or HTML within it, would read as more than text."""
    return re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", text)


def latex(outcome: Outcome) -> str:
    """For papers: booktabs, ours with its spread; the tier is part of the caption."""
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
    stamp = STAMPS[outcome.tier].replace("%", "\\%")
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
    return re.sub(r"[&%$#_{}]", r"\\\g<0>", text).replace("^", "\\textasciicircum{}")
