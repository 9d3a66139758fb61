"""What a paper, a table and a figure are: rows, columns, the numbers as printed, margins fixed
before any run, and the text's claims."""

import csv
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pretrain.recipes.common import Recipe
from tables.engine.sequential import LOOKS, ClaimVerdict, Looks

Tier = Literal["mini", "quick", "small", "small-gpu", "paper"]
"""mini: bundled synthetic data, never subtracted from the paper. quick: mini with one epoch, tests
the plumbing. small: a part of CIFAR-10, for a CPU. small-gpu: CIFAR-10, for one GPU. paper: the
papers' data."""


@dataclass(frozen=True)
class TierTraits:
    """What sets a tier apart."""

    stamp: str
    """what its numbers mean"""
    bundled: bool = False
    """whether every seed has a generated world of its own, instead of --data"""
    compared: bool = False
    """whether cells are compared with the paper's, each by its margin"""
    grows: bool = False
    """whether, by default, rows of undecided claims are trained further"""
    on_gpu: bool = False
    dataset: str = ""
    """the data set on which a table has a form of its own (``Exhibit.form``)"""
    cost: float = 1.0
    """seconds of an epoch of pretraining per second of the same row's in the mini tier"""


TIERS: dict[Tier, TierTraits] = {
    "paper": TierTraits("PAPER: real data, the paper's protocol.", compared=True, on_gpu=True),
    "small-gpu": TierTraits(
        "SMALL-GPU: CIFAR-10 and a ResNet-18, one optimiser for all methods. No paper's numbers;"
        " what is tested are the claims, on this one data set: pretrainings differ, pictures do"
        " not.",
        grows=True,
        on_gpu=True,
        dataset="cifar10",
        cost=2.2,  # computed, not measured: MoCo 22 PFLOP in all, at 60 TFLOP/s
    ),
    "small": TierTraits(
        "SMALL: 10,000 training pictures of CIFAR-10 and a small network. No paper's numbers; what"
        " is tested are the claims, on this one data set: pretrainings differ, pictures do not.",
        grows=True,
        dataset="cifar10-10k",
        cost=3.5,  # measured: MoCo 114 s
    ),
    "mini": TierTraits(
        "MINI: bundled synthetic data and small networks. These numbers are not comparable with"
        " the paper's, which stand beside them for orientation; only the claims (orderings) are"
        " checked.",
        bundled=True,
        grows=True,
    ),
    "quick": TierTraits(
        "QUICK: one epoch on bundled data. Tests the plumbing; the numbers mean nothing.",
        bundled=True,
    ),
}
"""In the order of the page."""

TaskKey = tuple[str, str]
"""(evaluation, data set): what a record of an encoder is about"""
RecordsByRow = dict[str, list[dict[str, Any]]]
"""row name -> its records, one per seed and data set"""


@dataclass(frozen=True)
class Paper:
    """A paper, declared once as ``PAPER`` in the ``__init__.py`` of its folder."""

    name: str
    """short, as in the page's title"""
    title: str
    authors: str = ""
    arxiv: str = ""
    """its number there, as "2005.04966" """
    version: str = ""
    """which of its versions the numbers were typed from"""
    order: int = 100
    """where its tables and figures stand among those of other papers; equal ones by name"""

    @property
    def citation(self) -> str:
        """Name, authors and title."""
        return f'{self.name}: {self.authors}, "{self.title}"' if self.authors else self.title

    @property
    def edition(self) -> str:
        """Where the numbers were typed from."""
        return f"arXiv {self.arxiv} ({self.version})" if self.arxiv else self.version


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
    delta: float | None = None
    """a lead of one row over another below this, in the metric's unit, is negligible"""
    noise: float | None = None
    """standard deviation of a number of the paper, which is one pretraining and its draws: what the
    margin is worth (verdicts.ceiling)"""
    tolerance: float | None = None
    """the paper's own encoder, evaluated just as the paper did, may differ by this much; None where
    an evaluation draws what the paper does not tell"""
    as_paper: tuple[tuple[str, Any], ...] = ()
    """fields of the evaluation's Config by which the paper's own encoder is scored on the very
    draws of the paper"""
    readings: tuple[str, ...] = ()
    """numbers of a run, beside ``value``, that the paper's may also be: where its protocol can be
    read in several ways"""

    @property
    def task(self) -> TaskKey:
        """What the record that fills it is about."""
        return self.evaluation, self.dataset


@dataclass(frozen=True)
class Row:
    """One row: trained by its recipes, or, without any, only a checkpoint to be given, or
    ``cited``."""

    name: str
    """short, for the command line and for files"""
    title: str
    """as printed, and as in the CSV"""
    mini: Recipe | None = None
    paper: Recipe | None = None
    small: Recipe | None = None
    small_gpu: Recipe | None = None
    cited: str = ""
    """where the paper copied its numbers from; such a row is never run"""
    settings: tuple[tuple[str, Any], ...] = ()
    """fields of the evaluations' Config that differ for this row ("k", or "knn.k" for kNN alone),
    with the reason in the table's notes"""
    lacks: tuple[str, ...] = ()
    """evaluations that can tell nothing of this row"""
    own: bool = False
    """whether a user brought it (own_rows.py): it is in no paper, and no claim is about it"""
    control: Literal["", "lower", "upper"] = ""
    """controls check the pipeline: if they do not come out, no other row means anything"""
    mini_seconds: float = 0.0
    """one pretraining of the bundled tier, one core of the reference machine"""
    gpu_hours: float = 0.0
    """one pretraining of the paper's tier on V100s"""
    gpu_hours_source: str = ""

    def margin(self, column: Column) -> float:
        """What counts as agreement in this row."""
        return column.random_margin if self.control == "lower" else column.margin

    def recipe(self, tier: Tier) -> Recipe | None:
        """How this row's encoder is trained in a tier; None where it is not."""
        of: dict[Tier, Recipe | None] = {
            "paper": self.paper,
            "small-gpu": self.small_gpu,
            "small": self.small,
        }
        return of.get(tier, self.mini)

    def absent(self, tier: Tier) -> bool:
        """Whether a tier has no encoder for this row: one that is a published file alone needs
        the paper's data."""
        return not (self.cited or self.own) and tier != "paper" and self.recipe(tier) is None


RowNames = str | tuple[str, ...]
"""A row, or several, whose mean is meant."""


@dataclass(frozen=True)
class Claim:
    """A statement of the paper's text: each left row exceeds each right row by over ``by``."""

    text: str
    left: tuple[str, ...]
    right: tuple[RowNames, ...]
    """rows that are cited stand for the paper's number, where real data is compared"""
    columns: tuple[Column, ...]
    by: float = 0.0
    source: str = ""
    endpoint: Literal["each", "mean"] = "each"
    """in every column, or in the mean over the columns"""
    primary: bool = False
    """the one that a table is about; the others are secondary, and some of many come out by
    chance"""

    def __post_init__(self) -> None:
        if self.by < 0:
            raise ValueError(f"{self.text}: a lead of more than {self.by} is no claim of a lead")

    @property
    def rows(self) -> tuple[str, ...]:
        """All rows that it needs."""
        right = [(one,) if isinstance(one, str) else one for one in self.right]
        return tuple(dict.fromkeys([*self.left, *(name for names in right for name in names)]))


@dataclass(frozen=True)
class Contrast:
    """One difference that a claim speaks of: ours, and the paper's beside it."""

    what: str
    """what is subtracted from what, and where"""
    lead: float | None
    """ours; None where nothing was run"""
    interval: tuple[float, float] | None = None
    """of it, allowing for all looks; None for a single difference, which has none"""
    paper: float | None = None
    """the same difference of the paper's numbers, of its data; None where it prints none"""
    metric: str = ""
    unit: str = ""
    """of the metric; differences of "%" are points"""
    delta: float | None = None
    """a lead below this is negligible; None: none is"""


@dataclass(frozen=True)
class ClaimResult:
    """What became of a claim, of a table or of a figure."""

    text: str
    verdict: ClaimVerdict
    detail: str
    """what the verdict rests on"""
    source: str
    """where the paper says so"""
    primary: bool = False
    rows: tuple[str, ...] = ()
    """rows of which more pretrainings could decide it"""
    contrasts: tuple[Contrast, ...] = ()
    """all that it was judged on; of what was not run, the paper's numbers alone"""
    by: float = 0.0
    """what every lead must exceed"""
    within: float | None = None
    """how far from 0 no difference may lie, where that is claimed instead of a lead"""
    decimals: int = 1
    """that its numbers are told with"""

    @property
    def weakest(self) -> Contrast | None:
        """The contrast that speaks least for the claim; of what was not run, by the paper."""
        known = [(of.lead, of) for of in self.contrasts if of.lead is not None]
        known = known or [(of.paper, of) for of in self.contrasts if of.paper is not None]

        def support(one: tuple[float, Contrast]) -> float:
            return one[0] if self.within is None else -abs(one[0])

        return min(known, key=support)[1] if known else next(iter(self.contrasts), None)


@dataclass(frozen=True, kw_only=True)
class Exhibit(ABC):
    """A table or a figure of a paper."""

    name: str
    """what users call it, on the command line and in file names"""
    title: str
    paper: Paper
    where: str
    """its place in the paper, and what to know of it"""
    rows: tuple[Row, ...]
    order: int = 0
    """its place among those of its paper; equal ones by name"""
    bundled_only: str = ""
    """why it cannot be made of real data; empty where it can"""
    claimed_by: str = "the paper"
    """whose claims are judged"""
    looks: Looks = LOOKS
    """when its claims are tested"""
    max_seeds: int = 4
    """up to how many pretrainings the bundled tier looks further by default; chosen by time"""
    forms: Callable[[Tier], "Exhibit | None"] = lambda tier: None
    """the same exhibit of the data of a tier that has its own; None where it cannot be made of
    it"""
    expected_params: dict[str, Any] = field(default_factory=dict)
    """parameters of the evaluation as the paper prints them, where a user may need others; those
    are off protocol"""

    @property
    @abstractmethod
    def tasks(self) -> tuple[TaskKey, ...]:
        """What the records that it is made of are about."""

    @property
    def source(self) -> str:
        """The version of the paper, and the place in it."""
        return f"{self.paper.edition}, {self.where}" if self.where else self.paper.edition

    @property
    def label(self) -> str:
        """ "Table 1", or the name where it is no whole table or figure of the paper."""
        numbered = re.fullmatch(r"((?:Table|Figure) \d+)(?: \(.*\))?", self.where)
        return numbered[1] if numbered else self.name

    def form(self, tier: Tier) -> "Exhibit | None":
        """The exhibit as a tier shows it; None where the tier has none of it."""
        return self.forms(tier) if TIERS[tier].dataset else self

    def row(self, name: str) -> Row:
        """A row by its short name."""
        return next(row for row in self.rows if row.name == name)


@dataclass(frozen=True)
class Drawing:
    """A figure drawn from records."""

    picture: Any
    """matplotlib's"""
    header: tuple[str, ...]
    data: list[list[str]]
    """what the picture shows, for the CSV beside it"""


@dataclass(frozen=True)
class Curve:
    """What a figure found, in so few points that an overview has room for them."""

    title: str
    unit: str
    across: str
    """what the points differ in"""
    points: tuple[tuple[str, float, float], ...]
    """(where, mean, half the width of its interval, which is NaN or infinite where there is
    none)"""
    interval: str = "95 % interval"


@dataclass(frozen=True, kw_only=True)
class Figure(Exhibit):
    """A figure of a paper."""

    caption: str
    """what is shown, of what, by which estimator"""
    alternative: str
    """the same for those who do not see it: what to find where"""
    records_of: tuple[TaskKey, ...]
    """evaluation and data set of the records that it is drawn from"""
    draw: Callable[[RecordsByRow], Drawing]
    shows: Callable[[dict[str, Any]], bool] = lambda record: True
    """whether a record holds what the figure shows"""
    claims: Callable[[RecordsByRow], tuple[ClaimResult, ...]] = lambda found: ()
    """judges the paper's statements about the figure on the same records"""
    headline: Callable[[RecordsByRow], str] = lambda found: ""
    """what was found, in a sentence; a figure that has one stands first on the page"""
    curve: Callable[[RecordsByRow], Curve | None] = lambda found: None
    """the same as a curve beside it; None where there is nothing to draw"""

    @property
    def tasks(self) -> tuple[TaskKey, ...]:
        """The records that it is drawn from (``records_of``)."""
        return self.records_of


@dataclass(frozen=True, kw_only=True)
class Table(Exhibit):
    """A table of a paper."""

    source_note: str
    """how its numbers were read, as a sentence"""
    numbers_csv: Path | None
    """the paper's numbers: row, architecture, and a column per Column, by their titles; None where
    nobody has printed any"""
    columns: tuple[Column, ...]
    claims: tuple[Claim, ...] = ()
    further_claims: Callable[[RecordsByRow], tuple[ClaimResult, ...]] = lambda found: ()
    """judges statements that are no comparison of rows in columns, on the same records"""
    paper_runs: int
    """draws behind each number; each is of one pretraining"""
    unit: dict[str, str]
    """group of columns -> metric and unit, for headings"""
    margin_reason: str
    expected_data: dict[str, dict[str, int]]
    """dataset -> its classes, test and training images in the paper; other data is off protocol"""
    networks: tuple[str, ...] = ("resnet50",)
    """the paper's, as a checkpoint's load report names it; rows of others are off protocol"""
    decimals: int = 1
    """that the paper prints"""
    notes: tuple[str, ...] = ()
    """where paper and protocol leave a choice, and which was made"""

    @property
    def tasks(self) -> tuple[TaskKey, ...]:
        """Those of its columns."""
        return tuple(dict.fromkeys(column.task for column in self.columns))

    @cached_property
    def _printed(self) -> dict[str, dict[str, str]]:
        """Row title -> the paper's line, cell by cell."""
        if self.numbers_csv is None:
            return {}
        with open(self.numbers_csv, newline="", encoding="utf-8") as file:
            return {line["row"]: line for line in csv.DictReader(file)}

    @cached_property
    def numbers(self) -> dict[tuple[str, str], str]:
        """(row name, column title) -> the paper's number as printed; empty for rows that it does
        not have, such as controls of ours."""
        names = {row.title: row.name for row in self.rows}
        printed = {names[title]: line for title, line in self._printed.items()}
        return {
            (row.name, column.title): printed[row.name][column.title] if row.name in printed else ""
            for row in self.rows
            for column in self.columns
        }

    @property
    def printed_rows(self) -> tuple[Row, ...]:
        """The rows that the paper has."""
        return tuple(row for row in self.rows if row.title in self._printed)

    @property
    def architectures(self) -> dict[str, str]:
        """Row title -> the architecture as printed."""
        return {title: line["architecture"] for title, line in self._printed.items()}

    def control(self, end: Literal["lower", "upper"]) -> Row | None:
        """The Random or the Supervised row, if the table has one."""
        return next((row for row in self.rows if row.control == end), None)
