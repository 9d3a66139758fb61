"""Records as a leaderboard: checkpoints, columns, and where each checkpoint stands in each column.

A column is what may be compared: one evaluation, of one version, on the very same images, with the
same parameters (and the same k, or cost, where a record has several). Columns are shown by the data
that they are of, and nothing is ranked across them: each bundled world is data of its own."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from protobench import outcomes
from protobench.checkpoints import released
from protobench.records import Record, Run
from protobench.runtime import files
from protobench.runtime.errors import printable
from tables.engine.schema import TIERS
from tables.engine.scoring import ranks
from tables.engine.scoring.ranks import Rank, Runs

SMALL = frozenset(traits.dataset for traits in TIERS.values() if traits.dataset)
LABELS = ("k", "cost")
"""Fields of a run that tell apart several numbers of one record."""


@dataclass(frozen=True, order=True)
class Domain:
    """Which data; numbers of different domains stand in different tables."""

    order: int
    name: str
    kind: str
    """real, small or bundled"""

    @property
    def id(self) -> str:
        """For links within a page."""
        return re.sub("[^a-z0-9]+", "-", self.name.lower()).strip("-")


REAL = Domain(0, "Real data", "real")
SMALL_REAL = Domain(1, "Small real data", "small")


@dataclass(frozen=True, eq=False)
class Column:
    """What may be compared."""

    domain: Domain
    evaluation: str
    dataset: str
    params: Mapping[str, Any]
    images: tuple[str, ...]
    """fingerprints of the lists"""
    label: str
    """"k=1", or empty"""
    metric: str
    unit: str
    higher_is_better: bool
    departures: tuple[str, ...]
    """in what the images differ from the data set as published"""

    @property
    def title(self) -> str:
        """In words."""
        return f"{self.evaluation}, {self.dataset}{f', {self.label}' if self.label else ''}"

    @property
    def decimals(self) -> int:
        """Of its numbers: one of percentages, three of what lies between 0 and 1."""
        return 1 if self.unit == "%" else 3


@dataclass(frozen=True, eq=False)
class Cell:
    """Where a checkpoint stands in a column."""

    checkpoint: "Checkpoint"
    column: Column
    runs: Runs
    record: Record
    rank: Rank
    tests: tuple[str, ...]
    """by what it was compared with the others, of ``ranks.TESTS``; empty where there are none"""

    @property
    def value(self) -> str:
        """The mean over the draws."""
        return f"{self.runs.mean:.{self.column.decimals}f}"

    @property
    def spread(self) -> str:
        """Standard deviation over the draws; empty of a single one."""
        of = self.runs.spread
        return "" if of is None else f"{of:.{self.column.decimals}f}"


@dataclass(eq=False)
class Checkpoint:
    """An encoder: weights, and how they are read."""

    key: str
    name: str = ""
    records: list[Record] = field(default_factory=list)
    """all of its scores, the newest first"""
    histories: list[Record] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The name of its page."""
        return self.key[:12]

    @property
    def newest(self) -> Record:
        """The record that says what was loaded."""
        return self.records[0]

    @property
    def report(self) -> dict[str, Any]:
        """What was loaded (checkpoints/load_report.py)."""
        report: dict[str, Any] = self.newest["checkpoint"]
        return report

    @property
    def network(self) -> str:
        """The network, and what of it is read where that is not all that its file is about."""
        copy, feature = self.report.get("copy"), self.report.get("feature")
        parts = [self.report["arch"], feature, "" if copy == "query" else f"{copy} copy"]
        return ", ".join(str(part) for part in parts if part)

    @cached_property
    def released(self) -> released.Released | None:
        """The published file that it is, by the catalogue; None where its hash says otherwise."""
        told = self.report.get("released")
        name = told.get("name") if isinstance(told, dict) else None
        known = released.catalogue().get(name) if isinstance(name, str) else None
        return known if known and self.report["sha256"].startswith(known.sha256) else None


Entry = tuple[Checkpoint, Runs, Record]
"""A checkpoint's runs in a column, and their record."""


@dataclass(frozen=True)
class Board:
    """A table: the checkpoints and columns of one domain."""

    domain: Domain
    columns: tuple[Column, ...]
    checkpoints: tuple[Checkpoint, ...]
    """those that have a number here, sorted by ``main``"""
    cells: Mapping[tuple[str, Column], Cell]
    """(checkpoint's key, column) -> cell"""
    pairs: Mapping[Column, tuple[int, int]]
    """column -> pairs told apart, pairs tested"""
    main: Column
    """the column with most checkpoints, and of these the one that tells most apart"""


def checkpoints(scores: Iterable[Record], histories: Iterable[Record]) -> list[Checkpoint]:
    """Return the encoders that have scores, each with a name of its own, sorted by it."""
    found: dict[str, Checkpoint] = {}
    for record in sorted(scores, key=lambda record: record["finished"], reverse=True):
        key = record["unit"]["encoder"]
        found.setdefault(key, Checkpoint(key)).records.append(record)
    for record in histories:
        if trained := found.get(record["unit"]["encoder"]):
            trained.histories.append(record)
    taken: dict[str, list[Checkpoint]] = {}
    for checkpoint in found.values():
        taken.setdefault(_name(checkpoint), []).append(checkpoint)
    for name, of in taken.items():
        for checkpoint in of:
            # the file's hash, unless one file was read in several ways
            digests = {other.report["sha256"] for other in of}
            tag = checkpoint.report["sha256"] if len(digests) == len(of) else checkpoint.key
            checkpoint.name = name if len(of) == 1 else f"{name} ({tag[:8]})"
    return sorted(found.values(), key=lambda checkpoint: checkpoint.name)


def boards(found: Iterable[Checkpoint]) -> list[Board]:
    """Return a table per domain, and give each checkpoint its cells. Of several records of one
    checkpoint and column the newest counts."""
    columns: dict[str, Column] = {}
    entries: dict[Column, dict[str, Entry]] = {}
    for checkpoint in found:
        for record in checkpoint.records:
            for column, runs in _columns(record, columns):
                here = entries.setdefault(column, {})
                here.setdefault(checkpoint.key, (checkpoint, runs, record))
    by_domain: dict[Domain, list[Column]] = {}
    for column in entries:
        by_domain.setdefault(column.domain, []).append(column)
    return [_board(domain, by_domain[domain], entries) for domain in sorted(by_domain)]


def _board(
    domain: Domain, columns: list[Column], entries: Mapping[Column, Mapping[str, Entry]]
) -> Board:
    cells: dict[tuple[str, Column], Cell] = {}
    pairs = {}
    for column in columns:
        here = list(entries[column].values())
        p_NN, test_NN = ranks.compared(
            [runs for _, runs, _ in here], higher_is_better=column.higher_is_better
        )
        better_NN = ranks.told_apart(p_NN)
        pairs[column] = int(better_NN.sum()), int((~np.isnan(p_NN)).sum()) // 2
        of_column = ranks.from_comparisons(better_NN)
        for i, (checkpoint, runs, record) in enumerate(here):
            with_others = {*np.delete(test_NN[i], i).tolist()}
            tests = tuple(test for test in ranks.TESTS if test in with_others)
            cell = Cell(checkpoint, column, runs, record, of_column[i], tests)
            cells[checkpoint.key, column] = cell
    main = max(columns, key=lambda column: (len(entries[column]), pairs[column][0]))
    most: dict[tuple[str, str], int] = {}
    for column in columns:
        group = column.evaluation, column.dataset
        most[group] = max(most.get(group, 0), len(entries[column]))
    columns.sort(
        key=lambda column: (
            -most[column.evaluation, column.dataset],
            column.evaluation,
            column.dataset,
            -len(entries[column]),
            files.canonical_json(column.params),
            column.images,
            [float(number) for number in re.findall(r"=([-+.e\d]+)", column.label)],
        )
    )
    for column in columns:
        for key in entries[column]:
            cells[key, column].checkpoint.cells.append(cells[key, column])

    def by_main(checkpoint: Checkpoint) -> tuple[bool, float, str]:
        cell = cells.get((checkpoint.key, main))
        sign = -1 if main.higher_is_better else 1
        return cell is None, sign * cell.runs.mean if cell else 0.0, checkpoint.name

    there = {cell.checkpoint.key: cell.checkpoint for cell in cells.values()}
    return Board(
        domain,
        tuple(columns),
        tuple(sorted(there.values(), key=by_main)),
        cells,
        pairs,
        main,
    )


def domain_of(record: Record) -> Domain:
    """Which data a record is of."""
    data = record["data"]
    if data["embedded"]:
        world = data.get("world")
        name = "Bundled data, world not recorded" if world is None else f"Bundled world {world}"
        return Domain(2 if world is None else 3 + world, name, "bundled")
    return SMALL_REAL if record["unit"]["data_name"] in SMALL else REAL


def _columns(record: Record, known: dict[str, Column]) -> Iterable[tuple[Column, Runs]]:
    """Yield the columns that a record has a number in, with its runs there."""
    unit, metric, by_label = record["unit"], record["metric"], _by_label(record["runs"])
    for label, runs in by_label.items():
        identity = files.sha256([{**unit, "encoder": ""}, label, metric])
        if identity not in known:
            known[identity] = Column(
                domain_of(record),
                unit["evaluation"],
                unit["data_name"],
                unit["params"],
                tuple(unit["data"]),
                label,
                metric["name"],
                metric["unit"],
                metric["higher_is_better"],
                tuple(map(str, record["data"].get("departures", ()))),
            )
        right = {run["draw"]: outcomes.of_run(run, metric["test_images"]) for run in runs}
        yield (
            known[identity],
            Runs(
                {run["draw"]: run["value"] for run in runs},
                {draw: of["value"] for draw, of in right.items() if "value" in of},
                {run["draw"]: str(run["subset"]) for run in runs if "subset" in run},
            ),
        )


def _by_label(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """ "k=1" -> its runs. A cost is only named where a record tried several."""
    runs = list(runs)
    told = [of for of in LABELS if of == "k" or len({run.get(of) for run in runs}) > 1]
    found: dict[str, list[Run]] = {}
    for run in runs:
        label = ", ".join(f"{of}={run[of]:g}" for of in told if run.get(of) is not None)
        found.setdefault(label, []).append(run)
    return found


def _name(checkpoint: Checkpoint) -> str:
    """What a person calls it: the published file's title, else the table's row and seed, else what
    this suite trained, else its file."""
    if checkpoint.released:
        return checkpoint.released.title
    subjects = [record["subject"] for record in checkpoint.records]
    if of_row := next((of for of in subjects if of["seed"] is not None), None):
        return printable(f"{of_row['row']}, seed {of_row['seed']}")
    trained = checkpoint.report.get("trained")
    if isinstance(trained, dict) and {"method", "seed"} <= trained.keys():
        return printable(f"{trained['method']}, seed {trained['seed']}")
    return printable(subjects[0]["source"] or subjects[0]["row"] or "unnamed")
