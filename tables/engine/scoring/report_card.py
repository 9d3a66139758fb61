"""The report card of some checkpoints: every number with its spread, beside the papers' rows of the
same column; several checkpoints side by side, and compared image by image. A function of the
records alone."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np
from tabulate import tabulate

from protobench.records import Record, Run
from protobench.runtime.errors import UserError, printable
from tables.engine import catalogue, compare
from tables.engine.pages import show
from tables.engine.runs import task_of
from tables.engine.schema import TIERS, Column, Table, TaskKey
from tables.engine.scoring import paired
from tables.engine.scoring.paired import Comparison

TITLES = {
    "lowshot": "low-shot linear SVMs",
    "fullsvm": "linear SVMs on all images",
    "linear": "linear probe",
    "knn": "k nearest neighbours",
    "semisup": "fine-tuned on a part of the labels",
    "ami": "mutual information of clusters and classes",
    "detection": "object detection",
    "detection_c4": "object detection, fine-tuned C4",
}
"""Evaluations in words; others by their name."""
SPREAD = "± standard deviation over draws, where there are several"


@dataclass(frozen=True)
class Measure:
    """Which number of which runs of a record."""

    heading: str
    k: int | None = None
    """runs of this k; None: all"""
    value: str = "value"


@dataclass(frozen=True)
class Number:
    """A mean over draws."""

    mean: float
    sd: float | None
    """of the draws, ddof 1; None for a single one"""
    draws: int


@dataclass(frozen=True)
class PaperRow:
    """A row of a paper's table."""

    title: str
    where: str
    """paper and table, several where they print the same"""
    numbers: tuple[str, ...]
    """as printed, one for each measure; empty where there is none"""


@dataclass(frozen=True)
class Section:
    """One evaluation on one data set."""

    evaluation: str
    dataset: str
    metric: str
    test_images: int
    decimals: int
    measures: tuple[Measure, ...]
    ours: dict[str, tuple[Number | None, ...]]
    """checkpoint -> a number for each measure"""
    papers: tuple[PaperRow, ...]

    @property
    def title(self) -> str:
        """For headings."""
        name = TITLES.get(self.evaluation, self.evaluation)
        return f"{name}, {self.dataset}, {self.metric}"


@dataclass(frozen=True)
class Compared:
    """Two checkpoints on the same images, by their letters."""

    a: str
    b: str
    found: tuple[Comparison, ...]
    left_out: tuple[str, ...]
    """why nothing, or not everything, could be compared"""


@dataclass(frozen=True)
class Card:
    """Everything that a report card shows."""

    checkpoints: dict[str, str]
    """name -> what it is"""
    stamp: str
    """what the numbers mean; empty for real data"""
    sections: tuple[Section, ...]
    compared: tuple[Compared, ...]
    remarks: tuple[str, ...]
    """what is doubtful about the numbers"""
    left_out: tuple[str, ...]
    """what could not be scored, or was not, and why"""


def card(scored: Mapping[str, Sequence[Record]], left_out: Sequence[str] = ()) -> Card:
    """The card of the records of each checkpoint, by its name."""
    return Card(
        {name: _what(of) for name, of in scored.items()},
        _stamp(scored),
        sections(scored),
        tuple(
            _compared(letter(a), letter(b), of_a, of_b)
            for (a, of_a), (b, of_b) in combinations(enumerate(scored.values()), 2)
            if of_a and of_b
        ),
        tuple(
            f"{name}: {text}"
            for name, of in scored.items()
            for text in [*compare.doubts([*of]), *_departures(of)]
        ),
        tuple(left_out),
    )


def letter(number: int) -> str:
    """What stands for a checkpoint in comparisons: A, B, …, Z, AA, …"""
    before, own = divmod(number, 26)
    return (letter(before - 1) if before else "") + chr(ord("A") + own)


def _what(of: Sequence[Record]) -> str:
    """The network, the file's origin and its hash; empty where nothing was scored."""
    if not of:
        return "not scored"
    report = of[0]["checkpoint"]
    input_ = report["input"]
    parts = [
        report["arch"],
        report["origin"],
        f"crop {input_['crop']}",
        f"sha256 {report['sha256'][:12]}",
    ]
    if known := report.get("released"):
        parts.insert(0, known["title"])
    if report.get("untouched"):
        parts.append("untrained")
    return ", ".join(parts)


def _stamp(scored: Mapping[str, Sequence[Record]]) -> str:
    data = [record["data"] for of in scored.values() for record in of if record["data"]["embedded"]]
    if not data:
        return ""
    worlds = sorted({str(of["world"]) for of in data if "world" in of})
    which = f", WORLD{'S' * (len(worlds) > 1)} {', '.join(worlds)}" if worlds else ""
    return (
        f"BUNDLED SYNTHETIC DATA{which}: no number here is comparable with a paper's; the papers'"
        " rows stand beside them for orientation only"
    )


def _departures(of: Sequence[Record]) -> list[str]:
    """How the data differ from what was published."""
    told = []
    for record in of:
        data = record["data"]
        odd = list(data.get("departures", []))
        if count := data.get("unreadable", {}).get("count", 0):
            odd.append(f"{count} unreadable images left out")
        told += [f"{data['name']}: {text}" for text in odd]
    return list(dict.fromkeys(told))


# Sections -----------------------------------------------------------------------------------------


def sections(scored: Mapping[str, Sequence[Record]]) -> tuple[Section, ...]:
    """The numbers of the records of each checkpoint, an evaluation on a data set after another."""
    tasks = dict.fromkeys(task_of(record) for of in scored.values() for record in of)
    return tuple(_section(task, scored) for task in tasks)


def _section(task: TaskKey, scored: Mapping[str, Sequence[Record]]) -> Section:
    of_task = {
        name: [record for record in of if task_of(record) == task] for name, of in scored.items()
    }
    every = [record for of in of_task.values() for record in of]
    columns = list(_columns(task))
    measures = _measures([column for _, column in columns], every)
    metric = every[0]["metric"]
    return Section(
        *task,
        f"{metric['name']}{f' ({unit})' if (unit := metric['unit']) else ''}",
        metric["test_images"],
        max((table.decimals for table, _ in columns), default=1),
        measures,
        {
            name: tuple(_number(of[-1]["runs"], measure) if of else None for measure in measures)
            for name, of in of_task.items()
        },
        _papers(columns, measures),
    )


def _columns(task: TaskKey) -> Iterator[tuple[Table, Column]]:
    """The columns of all tables, in the form of each tier, that are about a task."""
    seen = set()
    for table in catalogue.tables().values():
        for tier in TIERS:
            form = table.form(tier)
            if not isinstance(form, Table) or (form.name, form.numbers_csv) in seen:
                continue
            own = [(form, column) for column in form.columns if column.task == task]
            if own:
                seen.add((form.name, form.numbers_csv))
            yield from own


def _measures(columns: Sequence[Column], of_task: Sequence[Record]) -> tuple[Measure, ...]:
    """What the columns show, and the other k of the records."""
    found: dict[tuple[int | None, str], Measure] = {}
    for column in columns:
        heading = f"k={column.k}" if column.k is not None else column.heading
        if (column.k, column.value) == (None, "value"):
            heading = of_task[0]["metric"]["name"]
        found.setdefault((column.k, column.value), Measure(heading, column.k, column.value))
    ks = dict.fromkeys(run.get("k") for record in of_task for run in record["runs"])
    if not any(k is None for k, _ in found):
        for k in ks:
            heading = of_task[0]["metric"]["name"] if k is None else f"k={k}"
            found.setdefault((k, "value"), Measure(heading, k))
    held = [run for record in of_task for run in record["runs"]]
    return tuple(one for one in found.values() if any(_is_of(run, one) for run in held))


def _is_of(run: Run, measure: Measure) -> bool:
    number = isinstance(run.get(measure.value), int | float)
    return number and measure.k in (None, run.get("k"))


def _number(runs: Sequence[Run], measure: Measure) -> Number | None:
    values = [run[measure.value] for run in runs if _is_of(run, measure)]
    if not values:
        return None
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Number(float(np.mean(values)), sd, len(values))


def _papers(
    columns: Sequence[tuple[Table, Column]], measures: Sequence[Measure]
) -> tuple[PaperRow, ...]:
    """The rows of all tables that have a number of a measure; rows of equal title and numbers
    once."""
    found: dict[tuple[str, tuple[float | None, ...]], PaperRow] = {}
    for table in {id(table): table for table, _ in columns}.values():
        own = {(c.k, c.value): c for of, c in columns if of is table}
        place = f"{table.paper.name} {table.where.partition(',')[0].partition(' (')[0]}"
        for row in table.rows:
            numbers = tuple(
                table.numbers[row.name, own[m.k, m.value].title] if (m.k, m.value) in own else ""
                for m in measures
            )
            if any(numbers):
                key = row.title, tuple(float(one) if one else None for one in numbers)
                known = found.get(key)
                places = [*(known.where.split(", ") if known else ()), place]
                told = ", ".join(dict.fromkeys(places))
                found[key] = PaperRow(row.title, told, known.numbers if known else numbers)
    return tuple(found.values())


def _compared(a: str, b: str, of_a: Sequence[Record], of_b: Sequence[Record]) -> Compared:
    try:
        found, left_out = paired.compare(of_a, of_b)
    except UserError as nothing:
        return Compared(a, b, (), (nothing.what,))
    return Compared(a, b, tuple(found), tuple(left_out))


# As text ------------------------------------------------------------------------------------------


def forms(card: Card) -> dict[str, str]:
    """Every form by its file's ending."""
    return {"txt": text(card), "md": markdown(card), "json": as_json(card), "csv": as_csv(card)}


def shown(number: Number | None, decimals: int) -> str:
    """A number with its spread."""
    if number is None:
        return "—"
    spread = "" if number.sd is None else f" ±{number.sd:.{decimals}f}"
    return f"{number.mean:.{decimals}f}{spread}"


def _named(card: Card) -> list[str]:
    """Every checkpoint with what it is, and its letter where there are several."""
    several = len(card.checkpoints) > 1
    return [
        f"{f'{letter(i)}  ' if several else ''}{name}: {what}"
        for i, (name, what) in enumerate(card.checkpoints.items())
    ]


def _side_by_side(card: Card) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a line for each measure, a column for each checkpoint."""
    rows = []
    for section in card.sections:
        for i, measure in enumerate(section.measures):
            first = section.title if i == 0 else ""
            of_files = [shown(of[i], section.decimals) for of in section.ours.values()]
            rows.append([first, measure.heading, *of_files])
    return ["", "", *card.checkpoints], rows


def _rows(section: Section) -> list[list[str]]:
    """A line for each checkpoint, then one for each row of the papers."""
    ours = [
        [name, *(shown(one, section.decimals) for one in of)] for name, of in section.ours.items()
    ]
    printed = [[f"{row.title} ({row.where})", *row.numbers] for row in section.papers]
    return ours + printed


def _differences(card: Card) -> list[list[str]]:
    rows = []
    for pair in card.compared:
        for one in pair.found:
            of = one.found
            rows.append(
                [
                    f"{pair.a} - {pair.b}",
                    f"{one.evaluation} {one.data}, {one.run}",
                    f"{of.difference:+.2f} [{of.low:+.2f}, {of.high:+.2f}]",
                    f"{of.p:.2g}" if of.p > 1e-99 else "< 1e-99",
                ]
            )
    return rows


DIFFERENCES = ["difference", "accuracy (%)", "points [95 % interval]", "p"]
ALONE = "each line alone: p and intervals are not corrected for their number"


def _not_compared(card: Card) -> list[str]:
    """What could not be compared, each reason once with its pairs."""
    pairs: dict[str, list[str]] = {}
    for pair in card.compared:
        for why in pair.left_out:
            pairs.setdefault(why, []).append(f"{pair.a} - {pair.b}")
    return [
        f"not compared{'' if len(of) == len(card.compared) else ' ' + ', '.join(of)}: {why}"
        for why, of in pairs.items()
    ]


def text(card: Card) -> str:
    """The card for the terminal."""
    count = len(card.checkpoints)
    lines = [f"report card of {count} checkpoint{'s' * (count > 1)}"]
    lines += [f"  {line}" for line in _named(card)]
    lines += [card.stamp] if card.stamp else []
    lines += [SPREAD, ""]
    if count > 1 and card.sections:
        header, rows = _side_by_side(card)
        lines += [_plain_table(rows, header), ""]
    for section in card.sections:
        header = [section.title, *(measure.heading for measure in section.measures)]
        lines += [_plain_table(_rows(section), header), ""]
    if rows := _differences(card):
        lines += ["image by image (exact McNemar test)", _plain_table(rows, DIFFERENCES), ALONE]
        lines += [paired.SCOPE]
    lines += _not_compared(card)
    lines += [f"note: {remark}" for remark in card.remarks]
    lines += [f"not scored: {line}" for line in card.left_out]
    return "\n".join(printable(line.rstrip()) for line in "\n".join(lines).split("\n")) + "\n"


def _plain_table(rows: list[list[str]], header: Sequence[str]) -> str:
    return tabulate(rows, headers=[*header], tablefmt="simple", disable_numparse=True)


def markdown(card: Card) -> str:
    """The card in GitHub's Markdown."""
    lines = ["# Report card", ""]
    lines += [f"- {_md(line)}" for line in _named(card)]
    lines += ["", f"**{card.stamp}**"] if card.stamp else []
    lines += ["", f"{SPREAD}.", ""]
    if len(card.checkpoints) > 1 and card.sections:
        header, rows = _side_by_side(card)
        lines += [_md_table(rows, header), ""]
    for section in card.sections:
        header = ["", *(measure.heading for measure in section.measures)]
        lines += [f"## {_md(section.title)}", "", _md_table(_rows(section), header), ""]
    if rows := _differences(card):
        lines += ["## Image by image (exact McNemar test)", "", _md_table(rows, DIFFERENCES), ""]
        lines += [f"{ALONE}; {paired.SCOPE}.", ""]
    others = [*_not_compared(card), *card.remarks, *(f"not scored: {of}" for of in card.left_out)]
    lines += [f"- {_md(line)}" for line in others]
    return "\n".join(lines).rstrip() + "\n"


def _md(words: str) -> str:
    return show.plain(printable(words))


def _md_table(rows: list[list[str]], header: Sequence[str]) -> str:
    return tabulate(
        [[_md(word) for word in row] for row in rows],
        headers=[_md(word) for word in header],
        tablefmt="pipe",
        disable_numparse=True,
    )


def as_json(card: Card) -> str:
    """The card for programs."""
    return json.dumps(asdict(card), indent=1, ensure_ascii=False) + "\n"


def as_csv(card: Card) -> str:
    """A line for each number, ours and the papers'."""
    rows = []
    for section in card.sections:
        place = [section.evaluation, section.dataset, section.metric]
        for i, measure in enumerate(section.measures):
            for name, of in section.ours.items():
                if number := of[i]:
                    sd = "" if number.sd is None else f"{number.sd:.4f}"
                    told = [f"{number.mean:.4f}", sd, str(number.draws)]
                    rows.append([*place, measure.heading, name, "", *told])
            for row in section.papers:
                if row.numbers[i]:
                    rows.append(
                        [*place, measure.heading, row.title, row.where, row.numbers[i], "", ""]
                    )
    header = [
        "evaluation",
        "data",
        "metric",
        "measure",
        "name",
        "printed in",
        "mean",
        "sd",
        "draws",
    ]
    return show.csv_text(header, rows)
