"""A table as it stands: the runs found in the records, beside the paper's numbers, with every
verdict."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from protobench import records
from protobench.runtime import cli, files
from tables.engine import verdicts
from tables.engine.schema import Claim, Column, Figure, Row, Table, Tier
from tables.engine.verdicts import CellVerdict, ClaimVerdict, Lead

Runs = dict[tuple[int, int], float]
"""(pretraining seed, draw) -> value"""
PASSED = ("ok", "not run", "not checked")
"""States of the controls that do not speak against the pipeline."""
NOT_RECORDED = "not recorded"
RecordsByRow = dict[str, list[dict[str, Any]]]
"""row -> its records, one per seed and data set"""


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
    def seeds(self) -> int:
        """Pretraining seeds behind it."""
        return len({seed for seed, _ in self.runs})

    @property
    def values(self) -> list[float]:
        """What the spread is over: a mean over draws per pretraining seed, or the draws where there
        is one seed."""
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
    one_pretraining: bool = False
    """whether a trained row enters with a single seed, so that the intervals are over draws and
    cannot decide"""


@dataclass(frozen=True)
class Outcome:
    """A table with everything that is known about it."""

    table: Table
    tier: Tier
    cells: dict[tuple[str, str], Cell]
    claims: list[ClaimResult]
    controls: str
    """"ok", "not run", "not checked" (quick), or what is wrong"""
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

    def beyond_chance(self) -> list[Cell]:
        """Short cells that remain so with a family-wise error of 5 % over the table (Holm)."""
        tested = [(cell, cell.p_short) for cell in self.cells.values() if cell.p_short is not None]
        rejected = verdicts.holm([p for _, p in tested])
        return [
            cell
            for (cell, _), sure in zip(tested, rejected, strict=True)
            if sure and cell.verdict == "short"
        ]

    def untested(self) -> list[Cell]:
        """Short cells without a p-value: of a single pretraining, for example, whose draws cannot
        tell shortness from chance."""
        return [
            cell for cell in self.cells.values() if cell.verdict == "short" and cell.p_short is None
        ]

    @property
    def incomplete(self) -> bool:
        """Whether cells were not run, or not judged because the controls were not."""
        return any(cell.verdict in ("not-run", "unchecked") for cell in self.cells.values())

    def exit_code(self, strict: bool = False) -> int:
        """2 if the controls failed or a row is invalid, 1 if the table differs from the paper, 3 if
        cells are missing, else 0.

        Differs: a cell is short. Where 5 runs or more can tell, it must also be beyond chance over
        the whole table; without a p-value nothing can tell, and it counts. With ``strict`` also a
        cell above its margin and a claim that is weaker or reversed. The embedded tier has nothing
        to compare cell by cell, so it differs only by ``strict``."""
        cells = list(self.cells.values())
        if self.failed or any(cell.verdict == "invalid" for cell in cells):
            return cli.TROUBLE
        counted = {id(cell) for cell in self.beyond_chance() + self.untested()}
        short = [
            cell
            for cell in cells
            if cell.verdict == "short" and (len(cell.values) < 5 or id(cell) in counted)
        ]
        contradicted = [
            result for result in self.claims if result.verdict in ("weaker", "reversed")
        ]
        above = [cell for cell in cells if cell.verdict == "above"]
        if short or (strict and (contradicted or above)):
            return cli.DIFFERS
        return cli.INCOMPLETE if self.incomplete else cli.SAME


# Records to runs ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Collected:
    """A tier's records by row, and how many were left out because they are of other data,
    parameters or recipes."""

    rows: RecordsByRow
    stale: int


def collect(
    table: Table | Figure, results: Path, tier: Tier, asked: Collection[str] | None = None
) -> Collected:
    """``among`` the records of a results folder."""
    return among(table, records.read_all(results / tier / "records"), asked)


def among(
    table: Table | Figure, have: dict[str, dict[str, Any]], asked: Collection[str] | None = None
) -> Collected:
    """The records a table is made of: those ``asked`` for by key (records.key), for the rows they
    belong to; for other rows the newest per (row, seed, data set), all of one version, data and
    parameters, and one recipe per row."""
    names = {row.name for row in table.rows}
    found = {
        key: record
        for key, record in have.items()
        if score_of(record) in table.scores
        and record["subject"]["row"] in names
        and record["subject"]["seed"] is not None
    }
    exact = {key: record for key, record in found.items() if key in (asked or ())}
    settled = {record["subject"]["row"] for record in exact.values()}
    others = [record for record in found.values() if record["subject"]["row"] not in settled]
    printed = getattr(
        table, "expected_params", {}
    )  # what the paper prints is preferred to what a user tried later
    kept: dict[tuple[str, int, tuple[str, str]], dict[str, Any]] = {}
    protocol: dict[tuple, str] = {}
    recipe: dict[str, str] = {}
    stale = 0
    others.sort(key=lambda record: (_as_printed(record, printed), record["finished"]), reverse=True)
    for record in [*exact.values(), *others]:
        unit, subject = record["unit"], record["subject"]
        kind, settings = (
            score_of(record),
            table.row(subject["row"]).settings,
        )  # both set by what was asked, else by the newest
        data, params = files.sha256([unit["version"], unit["data"]]), files.sha256(unit["params"])
        if (
            protocol.setdefault((kind,), data) != data
            or protocol.setdefault((kind, settings), params) != params
            or recipe.setdefault(subject["row"], subject["recipe"]) != subject["recipe"]
        ):
            stale += 1
            continue
        kept.setdefault((subject["row"], subject["seed"], score_of(record)), record)
    rows: RecordsByRow = {}
    for row, seed, score in sorted(kept):
        rows.setdefault(row, []).append(kept[row, seed, score])
    return Collected(rows, stale)


def _as_printed(record: dict[str, Any], printed: dict[str, Any]) -> bool:
    return all(record["unit"]["params"].get(what) == value for what, value in printed.items())


def score_of(record: dict[str, Any]) -> tuple[str, str]:
    """Evaluation and data set."""
    return record["unit"]["evaluation"], record["unit"]["data_name"]


def recorded(found: RecordsByRow, what: str) -> str:
    """What the environments of records say of ``what``; records of older versions say less."""
    values = {record["environment"].get(what) for of in found.values() for record in of}
    told = sorted(str(value) for value in values if value is not None)
    return (
        " and ".join([*told, "others not recorded"] if told and None in values else told)
        or NOT_RECORDED
    )


def runs_of(found: list[dict[str, Any]], column: Column) -> Runs:
    """A cell's runs out of its row's records."""
    return {
        (record["subject"]["seed"], run["draw"]): run[column.value]
        for record in found
        if score_of(record) == column.score
        for run in record["runs"]
        if column.k in (None, run.get("k"))
    }


def per_unit(runs: Runs) -> list[float]:
    """One value per pretraining seed (mean over its draws), or per draw where there is a single
    seed."""
    seeds = sorted({seed for seed, _ in runs})
    if len(seeds) > 1:
        return [
            float(np.mean([value for (s, _), value in runs.items() if s == seed])) for seed in seeds
        ]
    return [runs[key] for key in sorted(runs)]


def grid(runs: Runs) -> np.ndarray:
    """[S, D]: seeds by the draws that all of them have."""
    seeds = sorted({seed for seed, _ in runs})
    draws = sorted({draw for _, draw in runs if all((seed, draw) in runs for seed in seeds)})
    return np.array([[runs[seed, draw] for draw in draws] for seed in seeds])


def differences(left: Runs, right: Runs) -> list[float]:
    """Paired differences: per seed where both have seeds in common, else per draw (each side's mean
    over its seeds)."""
    if shared := sorted(left.keys() & right.keys()):
        return per_unit({key: left[key] - right[key] for key in shared})

    def by_draw(runs: Runs) -> dict[int, float]:
        return {
            draw: float(np.mean([value for (_, d), value in runs.items() if d == draw]))
            for _, draw in runs
        }

    a, b = by_draw(left), by_draw(right)
    return [a[draw] - b[draw] for draw in sorted(a.keys() & b.keys())]


# Runs to verdicts ---------------------------------------------------------------------------------


def outcome(table: Table, tier: Tier, found: RecordsByRow) -> Outcome:
    """Compares the records of each row (by row name) with the paper."""
    runs = {
        (row.name, column.title): runs_of(found.get(row.name, []), column)
        for row in table.rows
        for column in table.columns
    }
    sources = {name: of_row[0]["subject"]["source"] for name, of_row in found.items()}
    departures = (
        {row.name: _departures(table, found.get(row.name, [])) for row in table.rows}
        if tier == "paper"
        else {}
    )
    controls = _controls(table, tier, runs)
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
                runs[key],
                sources.get(row.name, ""),
                departures.get(row.name, {}),
            )
            if cell.runs and not row.control and (failed or row.name in untrained):
                cell = Cell(row, column, cell.paper, cell.runs, "invalid")
            elif cell.delta is not None and not row.control and controls == "not run":
                cell = Cell(
                    row, column, cell.paper, cell.runs, "unchecked", cell.delta, cell.interval
                )
            cells[key] = cell
    claims = [
        _claim(
            claim,
            runs,
            sources,
            invalid=failed or bool({*claim.left, *claim.right} & untrained.keys()),
        )
        for claim in table.claims
    ]
    remarks = [
        f"{table.row(name).title}: {text}"
        for name, texts in departures.items()
        for text in texts.values()
    ]
    remarks += [
        f"{table.row(name).title} {why}: this looks like an untrained network"
        for name, why in untrained.items()
    ]
    remarks += [
        f"{table.row(name).title}: {text}"
        for name, records_of in found.items()
        for text in _doubts(records_of)
    ]
    return Outcome(
        table, tier, cells, claims, controls, remarks, sources, recorded(found, "processor")
    )


def _cell(
    table: Table,
    tier: Tier,
    row: Row,
    column: Column,
    runs: Runs,
    source: str,
    departures: dict[str, str],
) -> Cell:
    paper = table.numbers[row.name, column.title]
    if row.cited:
        return Cell(row, column, paper, {}, "cited")
    if column.evaluation in row.lacks:
        return Cell(row, column, paper, {}, "absent")
    if not runs:
        return Cell(row, column, paper, {}, "not-run")
    if tier != "paper" or column.dataset in departures:
        return Cell(row, column, paper, runs, "off-protocol")
    if not paper:
        return Cell(row, column, paper, runs, "unprinted")
    result = verdicts.compare(
        paper,
        table.paper_runs,
        grid(runs),
        row.margin(column),
        same_encoder=source.startswith("released"),
        lower_is_better=column.lower_is_better,
    )
    return Cell(
        row, column, paper, runs, result.verdict, result.delta, result.interval, result.p_short
    )


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
        if odd:
            told[name] = f"{name} is off protocol: " + ", ".join(odd)
    return told


def _doubts(found: list[dict[str, Any]]) -> list[str]:
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


def _controls(table: Table, tier: Tier, runs: dict[tuple[str, str], Runs]) -> str:
    """Random and Supervised check the pipeline: near the paper's numbers, or, on embedded data, in
    the right order."""
    if tier == "quick":
        return "not checked"
    lower, upper = table.control("lower"), table.control("upper")
    missing, wrong = False, []
    for column in (column for column in table.columns if column.controlled):
        low, high = runs[lower.name, column.title], runs[upper.name, column.title]
        missing = missing or not low or not high
        if tier != "paper" or not table.numbers[lower.name, column.title]:
            if low and high and max(per_unit(low)) >= min(per_unit(high)):
                wrong.append(f"{lower.title} is not below {upper.title} at {column.title}")
            continue
        for row, found in ((lower, low), (upper, high)):
            paper = table.numbers[row.name, column.title]
            if (
                paper
                and found
                and abs(np.mean(per_unit(found)) - float(paper)) > row.margin(column)
            ):
                wrong.append(
                    f"{row.title} has {np.mean(per_unit(found)):.{table.decimals}f} for {paper} at"
                    f" {column.title}"
                )
    if wrong:
        return "; ".join(wrong[:2]) + (f"; and {len(wrong) - 2} more" if len(wrong) > 2 else "")
    return "not run" if missing else "ok"


def _looks_untrained(
    table: Table, tier: Tier, row: Row, runs: dict[tuple[str, str], Runs], found: list[dict]
) -> str:
    """Why a learned row is taken for an untrained network, if it is: its weights, or scores in the
    Random row's band."""
    if any(record["checkpoint"].get("untouched") for record in found):
        return "has BatchNorm as it is initialised"
    random = table.control("lower")
    if row.settings != random.settings:  # another feature: its scores say nothing about this row's
        return ""
    for score in {column.score: None for column in table.columns if column.controlled}:
        inside = []
        for column in (column for column in table.columns if column.score == score):
            own, lowest = runs[row.name, column.title], runs[random.name, column.title]
            printed = table.numbers[random.name, column.title] if tier == "paper" else ""
            if not own or not (printed or lowest):
                return ""
            top = float(printed) + column.random_margin if printed else max(per_unit(lowest))
            inside.append(float(np.mean(per_unit(own))) <= top)
        if all(inside):
            return "scores like the Random row"
    return ""


def _claim(
    claim: Claim, runs: dict[tuple[str, str], Runs], sources: dict[str, str], invalid: bool
) -> ClaimResult:
    leads, one_pretraining = {}, False
    for left in claim.left:
        for right in claim.right:
            for column in claim.columns:
                a, b = runs[left, column.title], runs[right, column.title]
                if found := differences(a, b):
                    leads[left, right, column.title] = verdicts.lead(found, claim.by)
                    several = len({seed for seed, _ in a.keys() & b.keys()}) > 1
                    trained = not all(
                        sources.get(row, "").startswith("released") for row in (left, right)
                    )
                    one_pretraining = one_pretraining or (trained and not several)
    wanted = len(claim.left) * len(claim.right) * len(claim.columns)
    if len(leads) < wanted:
        return ClaimResult(claim, "not-run", leads)
    if invalid or one_pretraining:
        return ClaimResult(claim, "invalid" if invalid else "undecided", leads, one_pretraining)
    return ClaimResult(claim, verdicts.claim(list(leads.values()), claim.by), leads)
