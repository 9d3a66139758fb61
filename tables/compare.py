"""A table as it stands: the runs found in the records, beside the paper's numbers, with every verdict."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from protobench import cli, files, records
from tables import verdicts
from tables.schema import Claim, Column, Row, Table, Tier
from tables.verdicts import CellVerdict, ClaimVerdict, Lead

PASSED = ("ok", "not run", "not checked")

Runs = dict[tuple[int, int], float]
"""(pretraining seed, draw) -> value"""


@dataclass(frozen=True)
class Cell:
    """One cell: the paper's number as printed, our runs, and what became of them."""

    row: Row
    column: Column
    paper: str
    runs: Runs
    verdict: CellVerdict
    delta: float | None = None
    interval: tuple[float, float] | None = None
    p_short: float | None = None

    @property
    def values(self) -> list[float]:
        """Independent values: a mean over draws per pretraining seed, or the draws where there is one seed."""
        return per_unit(self.runs)

    @property
    def mean(self) -> float | None:
        """The mean of ``values``."""
        return float(np.mean(self.values)) if self.runs else None

    @property
    def sd(self) -> float | None:
        """Their standard deviation, ddof 1; None for fewer than two."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None


@dataclass(frozen=True)
class ClaimResult:
    """A claim, its verdict, and the lead per (left row, right row, column)."""

    claim: Claim
    verdict: ClaimVerdict
    leads: dict[tuple[str, str, str], Lead]


@dataclass(frozen=True)
class Outcome:
    """A table with everything that is known about it."""

    table: Table
    tier: Tier
    cells: dict[tuple[str, str], Cell]
    claims: list[ClaimResult]
    controls: str
    """"ok", "not run", "not checked" (quick), or what is wrong"""
    seeds: tuple[int, ...]
    sources: dict[str, str] = field(default_factory=dict)
    """row -> "retrained", "given checkpoint …" """

    def exit_code(self, strict: bool = False) -> int:
        """2 if the controls failed, 3 if cells are missing, 1 if the table differs from the paper, else 0.

        Differs: a cell is short beyond chance over the whole table (Holm, 5 %), or short with too few runs to say. With
        ``strict`` also a cell above its margin and a claim that is weaker or reversed. The embedded tier has nothing
        to compare cell by cell, so it differs only by ``strict``.
        """
        cells = list(self.cells.values())
        if self.controls not in PASSED:
            return cli.TROUBLE
        if any(cell.verdict == "not-run" for cell in cells):
            return cli.INCOMPLETE
        tested = [cell for cell in cells if cell.p_short is not None]
        sure = {id(c) for c, r in zip(tested, verdicts.holm([c.p_short or 0.0 for c in tested]), strict=True) if r}
        short = [c for c in cells if c.verdict == "short" and (c.p_short is None or id(c) in sure)]
        contradicted = [c for c in self.claims if c.verdict in ("weaker", "reversed")]
        above = [c for c in cells if c.verdict == "above"]
        return cli.DIFFERS if short or (strict and (contradicted or above)) else cli.SAME


def per_unit(runs: Runs) -> list[float]:
    """One value per pretraining seed (mean over its draws), or per draw where there is a single seed."""
    seeds = sorted({seed for seed, _ in runs})
    if len(seeds) > 1:
        return [float(np.mean([value for (s, _), value in runs.items() if s == seed])) for seed in seeds]
    return [runs[key] for key in sorted(runs)]


@dataclass(frozen=True)
class Collected:
    """A tier's records by row, and how many were left out because they are of other data, parameters or recipes."""

    rows: dict[str, list[dict[str, Any]]]
    stale: int


def collect(table: Table, results: Path, tier: Tier) -> Collected:
    """The newest record per (row, seed, data set); all of one version, data and parameters, and one recipe per row."""
    def by_age(record: dict[str, Any]) -> str:
        return record["finished"]

    names = {row.name for row in table.rows}
    found = sorted((record for record in records.read_all(results / tier / "records").values()
                    if record["unit"]["evaluation"] == table.evaluation and record["subject"]["row"] in names), key=by_age)
    kept: dict[str, dict[tuple, dict[str, Any]]] = {}
    protocol: dict[str, str] = {}
    recipe: dict[str, str] = {}
    stale = 0
    for record in reversed(found):  # the newest decides what the others must agree with
        unit, subject = record["unit"], record["subject"]
        same = files.sha256([unit["version"], unit["data"], unit["params"]])
        if (protocol.setdefault(unit["data_name"], same) != same
                or recipe.setdefault(subject["row"], subject["recipe"]) != subject["recipe"]):
            stale += 1
            continue
        kept.setdefault(subject["row"], {}).setdefault((subject["seed"], unit["data_name"]), record)
    return Collected({row: [of_row[key] for key in sorted(of_row)] for row, of_row in kept.items()}, stale)


def runs_of(found: list[dict[str, Any]], column: Column) -> Runs:
    """A cell's runs out of its row's records."""
    return {(record["subject"]["seed"], run["draw"]): run["value"] for record in found
            if record["unit"]["data_name"] == column.dataset for run in record["runs"] if run["k"] == column.k}


def outcome(table: Table, tier: Tier, found: dict[str, list[dict[str, Any]]]) -> Outcome:
    """Compares the records of each row (by row name) with the paper."""
    runs = {(row.name, column.title): runs_of(found.get(row.name, []), column) for row in table.rows for column in table.columns}
    controls = _controls(table, tier, runs)
    cells = {}
    for row in table.rows:
        for column in table.columns:
            key = (row.name, column.title)
            cells[key] = _cell(table, tier, row, column, runs[key], invalid=controls not in PASSED)
    claims = [_claim(claim, runs) for claim in table.claims]
    seeds = sorted({seed for cell_runs in runs.values() for seed, _ in cell_runs})
    sources = {name: row_records[0]["subject"]["source"] for name, row_records in found.items() if row_records}
    return Outcome(table, tier, cells, claims, controls, tuple(seeds), sources)


def _cell(table: Table, tier: Tier, row: Row, column: Column, runs: Runs, invalid: bool) -> Cell:
    paper = table.numbers[row.name, column.title]
    if row.cited:
        return Cell(row, column, paper, {}, "cited")
    if not runs:
        return Cell(row, column, paper, {}, "not-run")
    if tier != "paper":
        return Cell(row, column, paper, runs, "invalid" if invalid and not row.control else "off-protocol")
    result = verdicts.compare(paper, table.paper_runs, per_unit(runs), row.margin(column))
    verdict: CellVerdict = "invalid" if invalid and not row.control else result.verdict
    return Cell(row, column, paper, runs, verdict, result.delta, result.interval, None if invalid else result.p_short)


def _controls(table: Table, tier: Tier, runs: dict[tuple[str, str], Runs]) -> str:
    """Random and Supervised check the pipeline: near the paper's numbers, or, on embedded data, in the right order."""
    if tier == "quick":
        return "not checked"
    lower, upper = (next(row for row in table.rows if row.control == end) for end in ("lower", "upper"))
    missing, wrong = [], []
    for column in table.columns:
        low, high = runs[lower.name, column.title], runs[upper.name, column.title]
        missing += [row.title for row, found in ((lower, low), (upper, high)) if not found]
        if tier != "paper":
            if low and high and max(per_unit(low)) >= min(per_unit(high)):
                wrong.append(f"{lower.title} is not below {upper.title} at {column.title}")
            continue
        for row, found in ((lower, low), (upper, high)):
            paper = table.numbers[row.name, column.title]
            if found and abs(np.mean(per_unit(found)) - float(paper)) > row.margin(column):
                wrong.append(f"{row.title} has {np.mean(per_unit(found)):.1f} for {paper} at {column.title}")
    if wrong:
        return "; ".join(wrong)
    return "not run" if missing else "ok"


def _claim(claim: Claim, runs: dict[tuple[str, str], Runs]) -> ClaimResult:
    leads = {}
    for left in claim.left:
        for right in claim.right:
            for column in claim.columns:
                a, b = runs[left, column.title], runs[right, column.title]
                if shared := sorted(a.keys() & b.keys()):
                    differences = per_unit({key: a[key] - b[key] for key in shared})
                    leads[left, right, column.title] = verdicts.lead(differences, claim.by)
    wanted = len(claim.left) * len(claim.right) * len(claim.columns)
    verdict = verdicts.claim(list(leads.values()), claim.by) if len(leads) == wanted else "not-run"
    return ClaimResult(claim, verdict, leads)
