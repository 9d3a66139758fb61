"""What a table is: rows, columns, the paper's numbers as printed, margins fixed before any run, and
the text's claims."""

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pretrain.recipes import Recipe

Tier = Literal["mini", "quick", "paper"]
"""mini: embedded data, never subtracted from the paper. quick: mini with one epoch, tests the
plumbing. paper: real data."""


@dataclass(frozen=True)
class Column:
    """One column: which runs of which evaluation, and how far they may lie from the paper's
    numbers."""

    title: str
    """the CSV header's name"""
    group: str
    """the part of the table it stands in"""
    heading: str
    """its name within the group"""
    evaluation: str
    """the file under evaluate/ that fills it"""
    dataset: str
    margin: float
    """how far, in the metric's unit, a mean may lie from the paper's and still agree with it"""
    random_margin: float = 0.0
    """the same for the lower control, whose numbers all lie next to chance"""
    k: int | None = None
    """which runs of a record: those of this k; None: all"""
    value: str = "value"
    """which number of a run"""
    lower_is_better: bool = False
    controlled: bool = True
    """whether the control rows have it, and must come out in it"""

    @property
    def score(self) -> tuple[str, str]:
        """The record that fills it: evaluation and data set."""
        return self.evaluation, self.dataset


@dataclass(frozen=True)
class Row:
    """One row. Either ``cited`` says where the paper copied it from, or both recipes say how it is
    made."""

    name: str
    """short, for the command line and for files"""
    title: str
    """as printed, and as in the CSV"""
    mini: Recipe | None = None
    paper: Recipe | None = None
    cited: str = ""
    settings: tuple[tuple[str, Any], ...] = ()
    """fields of the evaluations' Config that differ for this row, with the reason in the table's
    notes"""
    lacks: tuple[str, ...] = ()
    """evaluations that can tell nothing of this row"""
    control: Literal["", "lower", "upper"] = ""
    """controls check the pipeline: if they do not come out, no other row means anything"""
    mini_seconds: float = 0.0
    """one pretraining of the embedded tier, one core of the reference machine"""
    gpu_hours: float = 0.0
    """one pretraining of the paper's tier on V100s"""
    gpu_hours_source: str = ""

    def margin(self, column: Column) -> float:
        """What counts as agreement in this row."""
        return column.random_margin if self.control == "lower" else column.margin

    def recipe(self, tier: Tier) -> Recipe | None:
        """How this row's encoder is trained in a tier."""
        return self.paper if tier == "paper" else self.mini


@dataclass(frozen=True)
class Claim:
    """A statement of the paper's text: at every one of ``columns``, each left row exceeds each
    right row by over ``by``."""

    text: str
    left: tuple[str, ...]
    right: tuple[str, ...]
    columns: tuple[Column, ...]
    by: float = 0.0
    source: str = ""


@dataclass(frozen=True)
class Drawing:
    """A figure drawn from records."""

    picture: Any
    """matplotlib's"""
    header: tuple[str, ...]
    data: list[list[str]]
    """what the picture shows, for the CSV beside it"""


@dataclass(frozen=True)
class Figure:
    """A figure of a paper."""

    name: str
    title: str
    paper: str
    source: str
    caption: str
    """what is shown, of what, by which estimator"""
    alternative: str
    """the same for those who do not see it: what to find where"""
    rows: tuple[Row, ...]
    scores: tuple[tuple[str, str], ...]
    """the records that it is drawn from: evaluation and data set"""
    draw: Callable[[dict[str, list[dict[str, Any]]]], Drawing]
    """from records by row name"""
    shows: Callable[[dict[str, Any]], bool] = lambda record: True
    """whether a record holds what the figure shows"""
    claims: Callable[[dict[str, list[dict[str, Any]]]], tuple[tuple[str, str, str, str], ...]] = (
        lambda found: ()
    )
    """from the same: statement of the paper, verdict, what that rests on, and where the paper says
    so"""

    def row(self, name: str) -> Row:
        """A row by its short name."""
        return next(row for row in self.rows if row.name == name)


@dataclass(frozen=True)
class Table:
    """A table of a paper."""

    name: str
    title: str
    paper: str
    source: str
    """version and place that the numbers were typed from"""
    source_note: str
    numbers_file: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    claims: tuple[Claim, ...]
    paper_runs: int
    """draws behind each number; each is of one pretraining"""
    unit: dict[str, str]
    """group of columns -> metric and unit, for headings"""
    margin_reason: str
    expected_data: dict[str, dict[str, int]]
    """dataset -> its classes, test and training images in the paper; other data is off protocol"""
    expected_params: dict[str, Any] = field(default_factory=dict)
    """parameters of the evaluation as the paper prints them, where a user may need others; those
    are off protocol"""
    networks: tuple[str, ...] = ("resnet50",)
    """the paper's, as a checkpoint's account names it; rows of others are off protocol"""
    decimals: int = 1
    """that the paper prints"""
    claimed_by: str = "the paper"
    """whose claims are judged"""
    notes: tuple[str, ...] = ()
    """where paper and protocol leave a choice, and which was made"""

    @cached_property
    def numbers(self) -> dict[tuple[str, str], str]:
        """(row name, column title) -> the paper's number as printed; empty for control rows that it
        does not have."""
        names = {row.title: row.name for row in self.rows}
        with open(self.path, newline="", encoding="utf-8") as file:
            printed = {
                (names[line["row"]], column.title): line[column.title]
                for line in csv.DictReader(file)
                for column in self.columns
            }
        return {
            (row.name, column.title): "" for row in self.rows for column in self.columns
        } | printed

    @property
    def printed_rows(self) -> tuple[Row, ...]:
        """The rows that the paper has."""
        return tuple(row for row in self.rows if row.title in self.architectures)

    @property
    def scores(self) -> tuple[tuple[str, str], ...]:
        """All (evaluation, data set) of its columns."""
        return tuple(dict.fromkeys(column.score for column in self.columns))

    @cached_property
    def architectures(self) -> dict[str, str]:
        """Row title -> the architecture as printed."""
        with open(self.path, newline="", encoding="utf-8") as file:
            return {line["row"]: line["architecture"] for line in csv.DictReader(file)}

    @property
    def path(self) -> Path:
        """The paper's numbers."""
        return Path(__file__).parents[1] / self.numbers_file

    def control(self, end: Literal["lower", "upper"]) -> Row:
        """The Random or the Supervised row."""
        return next(row for row in self.rows if row.control == end)

    def row(self, name: str) -> Row:
        """A row by its short name."""
        return next(row for row in self.rows if row.name == name)
