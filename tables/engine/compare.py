"""A table as it stands: the runs found in the records, beside the paper's numbers, with every
verdict."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from protobench.runtime import cli
from tables.engine import claims, own_rows, verdicts
from tables.engine.runs import (
    Runs,
    grid,
    is_released,
    metrics,
    recorded,
    runs_of,
    samples,
    shares_data,
    task_of,
)
from tables.engine.schema import TIERS, ClaimResult, Column, RecordsByRow, Row, Table, Tier
from tables.engine.verdicts import CellVerdict

NO_CONTROLS = "none in this table"
CONTRADICTED = ("weaker", "reversed")
"""Verdicts on claims that --strict counts as differing from the paper."""
PASSED = ("ok", "not run", "not checked", NO_CONTROLS)
"""States of the controls that do not speak against the pipeline."""
QUANTILE = 1.645
"""Of the normal distribution, for 5 % on one side."""
OF_ROWS, OF_CELLS = 0.04, 0.01
"""How the 5 % of a whole table are split: the rows' means over their columns tell most, but a
single cell that is far off counts as well."""


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
    exact: bool = False
    """whether the paper's own encoder was evaluated just as the paper did"""

    @property
    def seeds(self) -> int:
        """Pretraining seeds behind it."""
        return len({seed for seed, _ in self.runs})

    @property
    def values(self) -> list[float]:
        """What the spread is over: a mean over draws per pretraining seed, or the draws where there
        is one seed."""
        return samples(self.runs)

    @property
    def mean(self) -> float | None:
        """The mean of ``values``."""
        return float(np.mean(self.values)) if self.runs else None

    @property
    def sd(self) -> float | None:
        """Their standard deviation, ddof 1; None for fewer than two."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None


@dataclass(frozen=True)
class RowGain:
    """A row beside the paper's, over all its cells."""

    row: Row
    mean: float
    """of (ours - paper) / margin over the columns, positive where ours is better"""
    p_short: float | None
    """of "at most a margin short on average"; None where nothing tells"""


@dataclass(frozen=True)
class Outcome:
    """A table with everything that is known about it."""

    table: Table
    tier: Tier
    cells: dict[tuple[str, str], Cell]
    rows: list[RowGain]
    """those that are compared with the paper"""
    claims: list[ClaimResult]
    controls: str
    """one of PASSED, or what is wrong"""
    remarks: list[str]
    """departures from the paper's data and architecture, untrained rows"""
    sources: dict[str, str]
    """row -> "retrained", "released checkpoint …" (the paper's own encoder), "checkpoint …" (any
    other file)"""
    processor: str
    """what the records were computed on"""

    @property
    def failed(self) -> bool:
        """Whether the controls show that the pipeline is wrong."""
        return self.controls not in PASSED

    def short_rows(self) -> list[Row]:
        """Rows more than a margin short on average, beyond chance over the whole table (Holm), and
        those of which nothing tells whether it is chance."""
        tested = [(gain.row, gain.p_short) for gain in self.rows if gain.p_short is not None]
        rejected = verdicts.holm([p for _, p in tested], OF_ROWS)
        return [row for (row, _), sure in zip(tested, rejected, strict=True) if sure] + [
            gain.row for gain in self.rows if gain.p_short is None and gain.mean < -1
        ]

    def short_cells(self) -> list[Cell]:
        """Cells that are short beyond chance over the whole table (Holm), and short ones of which
        nothing tells whether it is chance: of a single pretraining, for example."""
        tested = [(cell, cell.p_short) for cell in self.cells.values() if cell.p_short is not None]
        rejected = verdicts.holm([p for _, p in tested], OF_CELLS)
        sure = [cell for (cell, _), beyond in zip(tested, rejected, strict=True) if beyond]
        return [cell for cell in sure if cell.verdict == "short"] + [
            cell for cell in self.cells.values() if cell.verdict == "short" and cell.p_short is None
        ]

    @property
    def incomplete(self) -> bool:
        """Whether cells were not run, or not judged because the controls were not."""
        return any(cell.verdict in ("not-run", "unchecked") for cell in self.cells.values())

    @property
    def undecided(self) -> list[ClaimResult]:
        """Claims that more pretrainings could decide."""
        return [claim for claim in self.claims if claim.verdict == "undecided" and claim.rows]

    def exit_code(self, strict: bool = False) -> int:
        """2 if the controls failed or a row is invalid, 1 if the table differs from the paper, 3 if
        cells are missing, else 0.

        Differs: a row is short on average, or a cell is (``short_rows``, ``short_cells``); a table
        of equal methods does so in 5 % of all cases at most, and the more runs there are, the less
        does a real shortfall escape. With ``strict`` also a cell above its margin and a claim that
        is weaker or reversed. The bundled tier has nothing to compare cell by cell, so it differs
        only by ``strict``."""
        cells = list(self.cells.values())
        if self.failed or any(cell.verdict == "invalid" for cell in cells):
            return cli.TROUBLE
        contradicted = [claim for claim in self.claims if claim.verdict in CONTRADICTED]
        above = [cell for cell in cells if cell.verdict == "above"]
        if self.short_rows() or self.short_cells() or (strict and (contradicted or above)):
            return cli.DIFFERS
        return cli.INCOMPLETE if self.incomplete else cli.SAME


# Runs to verdicts ---------------------------------------------------------------------------------


def outcome(table: Table, tier: Tier, found: RecordsByRow) -> Outcome:
    """Compares the records of each row (by row name) with the paper. Rows of which there are
    records alone are those that users brought."""
    table = own_rows.added(table, map(own_rows.row, found))
    runs = {
        (row.name, column.title): runs_of(found.get(row.name, []), column)
        for row in table.rows
        for column in table.columns
    }
    sources = {name: of_row[0]["subject"]["source"] for name, of_row in found.items()}
    departures = (
        {row.name: _departures(table, found.get(row.name, [])) for row in table.rows}
        if not TIERS[tier].bundled
        else {}
    )
    controls = _controls(table, tier, runs, found)
    failed = controls not in PASSED
    untrained = {
        row.name: why
        for row in table.rows
        if not row.control and tier != "quick"
        if (why := _looks_untrained(table, tier, row, runs, found.get(row.name, [])))
    }
    cells = {}
    for row in table.rows:
        for column in table.columns:
            key = (row.name, column.title)
            cell = _cell(
                table,
                tier,
                row,
                column,
                found.get(row.name, []),
                departures.get(row.name, {}),
            )
            looks_wrong = failed or (row.name in untrained and not row.own)
            if cell.runs and not row.control and looks_wrong:
                cell = Cell(row, column, cell.paper, cell.runs, "invalid")
            elif cell.delta is not None and not row.control and controls == "not run":
                cell = Cell(
                    row, column, cell.paper, cell.runs, "unchecked", cell.delta, cell.interval
                )
            cells[key] = cell
    judged_on = claims.Rows(
        table,
        runs,
        sources,
        partial(_shares_draws, found),
        TIERS[tier].compared,
        metrics(found),
    )
    judged = [
        claims.of_table(
            claim, judged_on, invalid=failed or bool(set(claim.rows) & untrained.keys())
        )
        for claim in table.claims
    ]
    if found:
        judged += [
            replace(claim, verdict="invalid") if failed and claim.verdict != "not-run" else claim
            for claim in table.further_claims(found)
        ]
    remarks = _by_text(
        (
            (table.row(name).title, text)
            for name, texts in departures.items()
            for text in texts.values()
        ),
        len(found),
    )
    remarks += [
        f"{table.row(name).title} {why}: this looks like an untrained network"
        for name, why in untrained.items()
    ]
    remarks += _by_text(
        (
            (table.row(name).title, text)
            for name, records_of in found.items()
            for text in doubts(records_of)
        ),
        len(found),
    )
    return Outcome(
        table,
        tier,
        cells,
        _gains(table, cells, sources),
        judged,
        controls,
        remarks,
        sources,
        recorded(found, "processor"),
    )


def _by_text(told: Iterable[tuple[str, str]], every: int) -> list[str]:
    """One line for each remark, which begins with the rows that it is about; ``every``: how many
    there are."""
    rows: dict[str, list[str]] = {}
    for row, text in told:
        rows.setdefault(text, []).append(row)
    return [
        f"{'all rows' if len(titles) == every > 1 else ', '.join(titles)}: {text}"
        for text, titles in rows.items()
    ]


def _shares_draws(found: RecordsByRow, column: Column) -> bool:
    return shares_data((record for of in found.values() for record in of), column.task)


def _cell(
    table: Table,
    tier: Tier,
    row: Row,
    column: Column,
    of_row: list[dict[str, Any]],
    departures: Mapping[str, str] = MappingProxyType({}),
) -> Cell:
    paper = table.numbers[row.name, column.title]
    runs = runs_of(of_row, column)
    if row.cited:
        return Cell(row, column, paper, {}, "cited")
    if column.evaluation in row.lacks:
        return Cell(row, column, paper, {}, "absent")
    if not runs:
        return Cell(row, column, paper, {}, "absent" if row.absent(tier) else "not-run")
    if row.own:
        return Cell(row, column, "", runs, "unprinted")
    if not TIERS[tier].compared or column.dataset in departures:
        return Cell(row, column, paper, runs, "off-protocol")
    if not paper:
        return Cell(row, column, paper, runs, "unprinted")
    released = any(is_released(record["subject"]["source"]) for record in of_row)
    exact = released and _as_paper(column, of_row)
    compared = [
        verdicts.compare(
            paper,
            table.paper_runs,
            grid(runs_of(of_row, replace(column, value=value))),
            row.margin(column),
            same_encoder=released,
            lower_is_better=column.lower_is_better,
            tolerance=column.tolerance if exact else None,
        )
        for value in (column.value, *(column.readings if exact else ()))
    ]
    result = next((one for one in compared if one.verdict == "re-evaluated"), compared[0])
    return Cell(
        row,
        column,
        paper,
        runs,
        result.verdict,
        result.delta,
        result.interval,
        result.p_short,
        exact,
    )


def _as_paper(column: Column, of_row: list[dict[str, Any]]) -> bool:
    """Whether nothing was drawn that the paper did not draw alike."""
    return column.tolerance is not None and all(
        record["unit"]["params"].get(name) == value
        for record in of_row
        if task_of(record) == column.task
        for name, value in column.as_paper
    )


def _gains(
    table: Table, cells: dict[tuple[str, str], Cell], sources: dict[str, str]
) -> list[RowGain]:
    """The rows whose cells are compared with the paper's, each as a mean over its columns in units
    of the margins. Controls are judged on their own (``_controls``)."""
    gains = []
    for row in table.rows:
        judged = [
            cell
            for cell in (cells[row.name, column.title] for column in table.columns)
            if cell.delta is not None and cell.verdict not in ("invalid", "unchecked")
        ]
        if not judged or row.control:
            continue
        gain = verdicts.row_gain(
            [
                verdicts.Scaled(
                    # by the reading of the protocol that the cell's verdict rests on
                    np.array([[float(cell.paper) + (cell.delta or 0.0)]])
                    if cell.exact
                    else grid(cell.runs),
                    float(cell.paper),
                    10.0 ** -len(cell.paper.partition(".")[2]),
                    -row.margin(cell.column)
                    if cell.column.lower_is_better
                    else row.margin(cell.column),
                    exact=cell.exact,
                )
                for cell in judged
            ],
            table.paper_runs,
            same_encoder=is_released(sources.get(row.name, "")),
        )
        gains.append(RowGain(row, gain.mean, gain.p_at_least(-1.0)))
    return gains


def _departures(table: Table, found: list[dict[str, Any]]) -> dict[str, str]:
    """data set -> how its records differ from what the paper measured on; such cells are never
    subtracted from it."""
    told = {}
    for record in found:
        name = record["unit"]["data_name"]
        seen = {
            "classes": record["data"]["classes"],
            "training images": record["data"].get("train_images"),
        }
        if "test_images" in record["metric"]:  # not where the training itself was measured
            seen["test images"] = record["metric"]["test_images"]
        odd = [
            f"{seen[what]} {what} instead of {value}"
            for what, value in table.expected_data[name].items()
            if what in seen and seen[what] != value
        ]
        odd += [
            f"{what} {record['unit']['params'].get(what)} instead of {value}"
            for what, value in table.expected_params.items()
            if record["unit"]["params"].get(what) != value
        ]
        if (network := record["checkpoint"]["arch"]) not in table.networks:
            odd.append(f"{network} as architecture instead of {' or '.join(table.networks)}")
        if left_out := record["data"].get("unreadable", {}).get("count", 0):
            odd.append(f"{left_out} unreadable images left out")
        odd += record["data"].get("departures", [])
        trained = record["checkpoint"].get("trained") or {}
        if left_out := trained.get("unreadable", 0):
            odd.append(f"{left_out} unreadable images left out of pretraining")
        recipe = trained.get("recipe", {})
        if (views := recipe.get("augment", {}).get("profile", "faithful")) != "faithful":
            odd.append(
                f"pretrained on views of the {views} profile, which are not torchvision's pixels"
            )
        if (precision := recipe.get("train", {}).get("precision", "fp32")) != "fp32":
            odd.append(f"pretrained in {precision}, the papers in fp32")
        if record.get("fp32_precision", {}).get("convolutions", "ieee") != "ieee":
            odd.append("scored with convolutions in TF32, the papers in fp32")
        if odd:
            told[name] = f"{name} is off protocol: " + ", ".join(odd)
    return told


def doubts(found: list[dict[str, Any]]) -> list[str]:
    """What records say against their own values: impossible scores, an input that does not fit the
    weights."""
    told = [
        f"{record['unit']['data_name']}, {text}"
        for record in found
        for text in record.get("warnings", ())
    ]
    told += [
        doubt
        for record in found
        if (doubt := record["checkpoint"].get("input_fit", {}).get("doubt"))
    ]
    return list(dict.fromkeys(told))


def _controls(
    table: Table, tier: Tier, runs: dict[tuple[str, str], Runs], found: RecordsByRow
) -> str:
    """Checks the pipeline by the control rows: not clearly further from the paper's numbers than
    the margin, or, where it prints none and on synthetic data, in the right order. Returns one of
    PASSED, or what is wrong.

    Clearly: the 90 % interval lies outside. The mean alone would call a right pipeline wrong where
    draws differ more than the margin allows."""
    lower, upper = table.control("lower"), table.control("upper")
    controls = [row for row in (lower, upper) if row]
    if not controls:
        return NO_CONTROLS
    if tier == "quick":
        return "not checked"
    missing, wrong = False, []
    for column in (column for column in table.columns if column.controlled):
        have = {row.name: samples(runs[row.name, column.title]) for row in controls}
        missing = missing or not all(have.values())
        if TIERS[tier].compared and table.numbers[controls[0].name, column.title]:
            wrong += [
                f"{row.title} has {np.mean(have[row.name]):.{table.decimals}f} for {paper} at"
                f" {column.title}"
                for row in controls
                if (paper := table.numbers[row.name, column.title])
                and have[row.name]
                and _is_off(_cell(table, tier, row, column, found.get(row.name, [])))
            ]
        elif (
            lower
            and upper
            and all(have.values())
            and max(have[lower.name]) >= min(have[upper.name])
        ):
            wrong.append(f"{lower.title} is not below {upper.title} at {column.title}")
    if wrong:
        return "; ".join(wrong[:2]) + (f"; and {len(wrong) - 2} more" if len(wrong) > 2 else "")
    return "not run" if missing else "ok"


def _is_off(cell: Cell) -> bool:
    """Whether a control is clearly further from the paper's number than its margin. Where no
    interval tells, the noise of the paper's number and of ours is allowed for."""
    slack = 0.0
    if cell.interval is None and not cell.exact:
        slack = QUANTILE * math.sqrt(2) * (cell.column.noise or 0.0)
    off = abs(cell.delta or 0.0) > cell.row.margin(cell.column) + slack
    return off and cell.verdict in ("short", "above")


def _looks_untrained(
    table: Table,
    tier: Tier,
    row: Row,
    runs: dict[tuple[str, str], Runs],
    found: list[dict[str, Any]],
) -> str:
    """Why a learned row is taken for an untrained network, if it is: its weights, or scores in the
    Random row's band."""
    if any(record["checkpoint"].get("untouched") for record in found):
        return "has BatchNorm as it is initialised"
    random = table.control("lower")
    if (
        random is None
        or row.own
        or dict(row.settings).get("feature") != dict(random.settings).get("feature")
    ):
        return ""
    for task in {column.task: None for column in table.columns if column.controlled}:
        inside = []
        for column in (column for column in table.columns if column.task == task):
            own, lowest = runs[row.name, column.title], runs[random.name, column.title]
            printed = table.numbers[random.name, column.title] if TIERS[tier].compared else ""
            if not own or not (printed or lowest):
                return ""
            top = float(printed) + column.random_margin if printed else max(samples(lowest))
            inside.append(float(np.mean(samples(own))) <= top)
        if all(inside):
            return "scores like the Random row"
    return ""
