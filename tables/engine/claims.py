"""Judges claims: those of a table on its cells' runs, those of a figure on any numbers per
pretraining."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from tables.engine import sequential
from tables.engine.runs import Runs, is_released
from tables.engine.schema import (
    Claim,
    ClaimResult,
    Column,
    Contrast,
    RowNames,
    Table,
    TaskKey,
)
from tables.engine.sequential import LOOKS, ClaimVerdict, Decision, Lead, Looks


@dataclass(frozen=True)
class Rows:
    """What a claim of a table is judged on."""

    table: Table
    runs: dict[tuple[str, str], Runs]
    """(row name, column title) -> its runs"""
    sources: dict[str, str]
    """row -> where its encoders come from"""
    shares_draws: Callable[[Column], bool]
    """whether all pretrainings of a column were scored on the same images and draws"""
    real: bool
    """whether the data is the paper's, so that numbers it cites may be compared"""
    metrics: Mapping[TaskKey, tuple[str, str]] = field(default_factory=dict)
    """evaluation and data set -> the metric's name and unit, of those that were run"""

    def given(self, row: str) -> bool:
        """Whether the row is a published encoder, of which there is one."""
        seeds = {seed for column in self.table.columns for seed, _ in self.runs[row, column.title]}
        return is_released(self.sources.get(row, "")) and len(seeds) == 1

    def missing(self, claim: Claim) -> str:
        """Why the claim has nothing to be judged on; empty where it has."""
        cited = [name for name in claim.rows if self.table.row(name).cited]
        if cited and not self.real:
            return "it compares with numbers on the real data"
        lacking = [
            self.table.row(name).title
            for name in claim.rows
            if name not in cited
            and not all(self.runs[name, column.title] for column in claim.columns)
        ]
        return f"no runs of {', '.join(lacking)}" if lacking else ""

    def seeds(self, claim: Claim) -> list[int]:
        """The pretraining seeds that all rows of the claim have."""
        each = [
            {seed for seed, _ in self.runs[name, column.title]}
            for name in claim.rows
            if not self.table.row(name).cited
            for column in claim.columns
        ]
        return sorted(set.intersection(*each))

    def values(self, names: RowNames, column: Column, seeds: list[int]) -> np.ndarray:
        """[S, D], the mean over the rows; a row that is cited is the paper's number."""
        each = [names] if isinstance(names, str) else names
        mean: np.ndarray = np.mean([self._of_row(name, column, seeds) for name in each], axis=0)
        return mean

    def printed(self, names: RowNames, column: Column) -> float | None:
        """The paper's number, or the mean over several rows; None where it lacks one."""
        each = [names] if isinstance(names, str) else names
        numbers = [self.table.numbers[name, column.title] for name in each]
        return float(np.mean([float(number) for number in numbers])) if all(numbers) else None

    def metric(self, columns: Sequence[Column]) -> tuple[str, str]:
        """Name and unit of what these columns hold; empty where that is unknown, or not one."""
        known = [self.metrics.get(column.task, ("", "")) for column in columns]
        names = dict.fromkeys(name for name, _ in known)
        units = {unit for _, unit in known}
        named = all(column.value == "value" for column in columns)
        return " and ".join(filter(None, names)) if named else "", *(
            units if len(units) == 1 else [""]
        )

    def _of_row(self, name: str, column: Column, seeds: list[int]) -> np.ndarray:
        if self.table.row(name).cited:
            return np.array([[float(self.table.numbers[name, column.title])]])
        runs = self.runs[name, column.title]
        draws_of = [{draw for of, draw in runs if of == seed} for seed in seeds]
        draws = sorted(set.intersection(*draws_of))
        grid = np.array([[runs[seed, draw] for draw in draws] for seed in seeds])
        return grid if self.shares_draws(column) else grid.mean(1, keepdims=True)


def of_table(claim: Claim, rows: Rows, *, invalid: bool) -> ClaimResult:
    """Judges a claim. Pretrainings are the unit; of published encoders, of which there is one each,
    the draws are, and the verdict is about these encoders. ``invalid``: the numbers mean
    nothing."""
    result = partial(
        ClaimResult,
        claim.text,
        source=claim.source,
        primary=claim.primary,
        by=claim.by,
        decimals=rows.table.decimals,
    )
    if missing := rows.missing(claim):
        return result("not-run", f"not run: {missing}", contrasts=_contrasts(claim, rows))
    trained = [name for name in claim.rows if not rows.table.row(name).cited]
    given = [name for name in trained if rows.given(name)]
    seeds = rows.seeds(claim)
    leads = partial(_leads, claim, rows)
    open_rows: tuple[str, ...] = ()
    if seeds and len(given) == len(trained):
        found = leads(seeds)
        verdict = sequential.judge(list(found.values()), claim.by, sequential.FIXED_LEVEL)
        decision = Decision(verdict, 1, sequential.FIXED_LEVEL, list(found.values()))
        reason = "of these encoders alone, over draws"
    elif given or not seeds:
        return result(
            "undecided",
            "of single encoders, which cannot speak for other pretrainings",
            contrasts=_contrasts(claim, rows),
        )
    else:
        looks = rows.table.looks
        decision = sequential.decide(
            len(seeds),
            lambda n: list(leads(seeds[:n]).values()),
            looks,
            lambda found, level: sequential.judge(found, claim.by, level),
        )
        found = leads(seeds[: decision.seeds])
        reason, open_rows = _pretrainings(decision.seeds, looks), claim.rows
    if invalid:
        decision = replace(decision, verdict="invalid")
    detail = f"{_detail(claim, found, decision.level, rows.table.decimals)}; {reason}"
    contrasts = _contrasts(claim, rows, found, decision.level)
    return result(decision.verdict, detail, rows=open_rows, contrasts=contrasts)


def _compared(claim: Claim) -> Iterator[tuple[str, RowNames, tuple[Column, ...]]]:
    """The left and right rows of every comparison, and the columns that it is a mean over."""
    for left in claim.left:
        for right in claim.right:
            if claim.endpoint == "mean":
                yield left, right, claim.columns
            else:
                yield from ((left, right, (column,)) for column in claim.columns)


def _where(claim: Claim, columns: tuple[Column, ...]) -> str:
    return f"mean of {len(columns)} columns" if claim.endpoint == "mean" else columns[0].title


def _leads(claim: Claim, rows: Rows, seeds: list[int]) -> dict[tuple[str, str], Lead]:
    """(what is compared, where) -> the lead over these pretrainings."""
    found = {}
    for left, right, columns in _compared(claim):
        pair = f"{left} - {right if isinstance(right, str) else ' and '.join(right)}"
        differences = [
            rows.values(left, column, seeds) - rows.values(right, column, seeds)
            for column in columns
        ]
        if len({grid.shape for grid in differences}) > 1:
            differences = [grid.mean(1, keepdims=True) for grid in differences]
        found[pair, _where(claim, columns)] = sequential.lead(
            np.mean(differences, axis=0), delta=_delta(columns)
        )
    return found


def _delta(columns: tuple[Column, ...]) -> float | None:
    """Below which a lead in the mean over the columns is negligible."""
    known = [column.delta for column in columns if column.delta is not None]
    return float(np.mean(known)) if len(known) == len(columns) else None


def _contrasts(
    claim: Claim,
    rows: Rows,
    found: Mapping[tuple[str, str], Lead] | None = None,
    level: float = sequential.FIXED_LEVEL,
) -> tuple[Contrast, ...]:
    """Every comparison with the paper's numbers; with ours where they were ``found``."""
    leads: list[Lead | None] = list((found or {}).values())
    compared = list(_compared(claim))
    contrasts = []
    for (left, right, columns), lead in zip(compared, leads or [None] * len(compared), strict=True):
        names = [right] if isinstance(right, str) else right
        against = " and ".join(rows.table.row(name).title for name in names)
        metric, unit = rows.metric(columns)
        printed = [
            ours - theirs
            for column in columns
            if (ours := rows.printed(left, column)) is not None
            and (theirs := rows.printed(right, column)) is not None
        ]
        contrasts.append(
            Contrast(
                f"{rows.table.row(left).title} - {against}, {_where(claim, columns)}",
                lead.mean if lead else None,
                lead.interval(level) if lead else None,
                float(np.mean(printed)) if len(printed) == len(columns) else None,
                metric,
                unit,
                _delta(columns),
            )
        )
    return tuple(contrasts)


def _detail(claim: Claim, leads: dict[tuple[str, str], Lead], level: float, decimals: int) -> str:
    """The smallest lead, and in how many comparisons the interval lies above the bound."""
    (pair, where), least = min(leads.items(), key=lambda item: item[1].mean)
    detail = f"{'smallest ' if len(leads) > 1 else ''}lead {_interval(least, level, decimals)}"
    if len(leads) > 1 or claim.endpoint == "mean":
        several = len(claim.left) * len(claim.right) > 1
        detail += f" ({where}{f', {pair}' if several else ''})"
    if len(leads) > 1:
        above = sum(
            interval is not None and interval[0] > claim.by
            for interval in (lead.interval(level) for lead in leads.values())
        )
        detail += f", above {claim.by:g} in {above} of {len(leads)} comparisons"
    elif claim.by:
        detail += f", for more than {claim.by:g}"
    return detail


def _interval(lead: Lead, level: float, decimals: int) -> str:
    told = f"{lead.mean:+.{decimals}f}"
    if interval := lead.interval(level):
        told += f" [{interval[0]:+.{decimals}f}, {interval[1]:+.{decimals}f}]"
    return told


def _pretrainings(seeds: int, looks: Looks) -> str:
    told = f"{seeds} pretraining{'s' if seeds > 1 else ''}"
    return f"{told}; nothing is decided before {looks.first}" if seeds < looks.first else told


def of_seeds(
    text: str,
    left: dict[int, float],
    right: dict[int, float],
    source: str,
    difference: str,
    *,
    by: float = 0.0,
    delta: float | None = None,
    looks: Looks = LOOKS,
    rows: Sequence[str] = (),
    primary: bool = False,
    decimals: int = 3,
    unit: str = "",
) -> ClaimResult:
    """Judges "left exceeds right by over ``by``" over the pretraining seeds that both have.

    ``difference`` says what is subtracted from what, in ``unit`` (% is told as points); a lead
    below ``delta`` is negligible; ``rows`` are those that more pretrainings would be of."""
    judged = _of_differences(
        text,
        [_paired(left, right)],
        source,
        difference,
        f"{difference}: ",
        lambda found, level: sequential.judge(found, by, level),
        delta=delta,
        looks=looks,
        rows=rows,
        primary=primary,
        decimals=decimals,
        unit=unit,
    )
    return replace(judged, by=by)


def unchanged(
    text: str,
    differences: Sequence[dict[int, float]],
    margin: float,
    source: str,
    what: str,
    *,
    names: Sequence[str] = ("",),
    looks: Looks = LOOKS,
    rows: Sequence[str] = (),
    primary: bool = False,
    decimals: int = 1,
    unit: str = "",
) -> ClaimResult:
    """Judges "what is changed moves the score by no more than ``margin``" on the differences of
    each change, by pretraining seed and in ``unit``; ``names`` are the changes'."""
    judged = _of_differences(
        text,
        differences,
        source,
        what,
        f"{what}; ",
        lambda found, level: sequential.judge_unchanged(found, margin, level),
        names=names,
        after=f"; allowed +-{margin:g}",
        looks=looks,
        rows=rows,
        primary=primary,
        decimals=decimals,
        unit=unit,
    )
    return replace(judged, within=margin)


def _paired(left: dict[int, float], right: dict[int, float]) -> dict[int, float]:
    return {seed: left[seed] - right[seed] for seed in sorted(left.keys() & right.keys())}


def _of_differences(
    text: str,
    differences: Sequence[dict[int, float]],
    source: str,
    what: str,
    before: str,
    judged: Callable[[list[Lead], float], ClaimVerdict],
    *,
    names: Sequence[str] = ("",),
    after: str = "",
    delta: float | None = None,
    looks: Looks,
    rows: Sequence[str],
    primary: bool,
    decimals: int,
    unit: str,
) -> ClaimResult:
    seeds = sorted(set.intersection(*map(set, differences))) if differences else []
    if not seeds:
        return ClaimResult(text, "not-run", "not run: no seed in common", source, primary)

    def leads(n: int) -> list[Lead]:
        return [
            sequential.lead(np.array([of[seed] for seed in seeds[:n]]), delta=delta)
            for of in differences
        ]

    decision = sequential.decide(len(seeds), leads, looks, judged)
    told = ", ".join(
        f"{name}{': ' if name else ''}{_interval(lead, decision.level, decimals)}"
        for name, lead in zip(names, decision.leads, strict=True)
    )
    detail = f"{before}{told}{after}; {_pretrainings(decision.seeds, looks)}"
    contrasts = tuple(
        Contrast(
            f"{what}, {name}" if name else what,
            lead.mean,
            lead.interval(decision.level),
            unit=unit,
            delta=delta,
        )
        for name, lead in zip(names, decision.leads, strict=True)
    )
    return ClaimResult(
        text,
        decision.verdict,
        detail,
        source,
        primary,
        tuple(rows),
        contrasts,
        decimals=decimals,
    )
