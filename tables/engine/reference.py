"""Is my installation right? A run beside the committed one of the same tier.

The same seeds, versions and data give the same bits on one kind of processor, and then nothing more
need be said. Elsewhere sums are rounded in another order, and training magnifies that: another
processor does to an encoder at most what another seed does. So the check asks of every row whether
the run could be one more set of seeds of the reference.

A row's endpoint is, per seed, the mean over its columns of value / spread of the column, the spread
being the root mean square over all rows of the standard deviation over the reference's seeds: so
columns of different units count alike. (Dividing by the row's own standard deviations would fit its
chance: 7 to 9 % false alarms.) Two intervals are asked of it, all seeds and the same seeds:

    all    With endpoints of mean m and standard deviation s over the reference's N seeds, the mean
           over n further seeds lies within m +- t(N - 1) s sqrt(1 / n + 1 / N). Seeds and worlds
           that both runs share make the means alike, which errs to the safe side.
    same   The mean difference over the n seeds that both runs have lies within t(n - 1) s_D /
           sqrt(n), s_D being the standard deviation of the differences; differences below s / 2
           never count. It costs little and is far sharper where most of the variance is that of
           seeds and worlds, which cancels, rather than that of rounding.

The error of 5 % over R rows is divided among the rows by Sidak's rule, and in a row 3 : 1 between
the two. So at most 5 % of right installations are called wrong, whatever their seeds and processor,
and none with equal bits. A row that is off by 3 standard deviations of seeds in all its columns is
found in 85 to 100 % of cases by 3 seeds against 10, in 93 to 100 % by 4 (the less the columns are
correlated, the surer). Both are simulated in the tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from protobench import records
from tables.engine import runs
from tables.engine.compare import Outcome
from tables.engine.runs import NOT_RECORDED
from tables.engine.schema import Column, RecordsByRow, Table

MOVED_BY_PROCESSOR = (1.2, 3.8)
"""Points by which another processor moved a mean over three seeds, on average and at most: the 60
cells of PCL's Table 1 in the bundled tier, equal code, versions and seeds (torch 2.15), an AMD EPYC
against an Intel Xeon with AMX; the most is SimCLR on Places205. To measure it again, run the table
on another processor: ``against`` prints both figures."""
LEVEL = 0.95
OF_ALL = 0.75
"""The share of the error that the interval of all seeds gets; that of the same seeds has the rest.
With it the former loses 4 % of power at most."""
NEGLIGIBLE = 0.5
"""Differences between the same seeds that never count, in standard deviations over seeds."""
RESOLUTION = 3.0
"""The widest interval, in standard deviations over seeds, that lying inside of says anything."""
QUESTION = "this installation reproduces the reference:"

BySeed = dict[int, dict[str, float]]
"""seed -> title of a column -> mean over draws"""


@dataclass(frozen=True)
class Gap:
    """How far a row lies from the reference, in standard deviations over the reference's seeds of
    the row's endpoint."""

    distance: float
    """our mean minus the reference's"""
    allowed: float
    """half of the interval"""
    what: str
    """of which the mean is taken"""

    @property
    def inside(self) -> bool:
        """Whether the row lies in the interval."""
        return abs(self.distance) <= self.allowed

    @property
    def told(self) -> str:
        """The distance in words."""
        side = "below" if self.distance < 0 else "above"
        return (
            f"{abs(self.distance):.1f} standard deviations of seeds {side} {self.what} of the"
            f" reference ({self.allowed:.1f} allowed)"
        )


@dataclass(frozen=True)
class Standing:
    """Where a row stands beside the reference."""

    row: str
    """its title"""
    seeds: tuple[int, int]
    """here and in the reference"""
    gaps: tuple[Gap, ...]
    """to all seeds of the reference, and to the same ones where there are several"""

    @property
    def widest(self) -> Gap:
        """The gap that is widest for what is allowed."""
        return max(self.gaps, key=lambda gap: abs(gap.distance) / gap.allowed)

    @property
    def resolution(self) -> float:
        """The shift, in standard deviations over seeds, that would have been noticed."""
        return min(gap.allowed for gap in self.gaps)


# The check ----------------------------------------------------------------------------------------


def spread(variances: Sequence[np.ndarray]) -> np.ndarray:
    """Return the spread [C] of each column: the root mean square of the rows' standard deviations
    over seeds, given as variances [C] per row, NaN where a row lacks the column. 1 for a column
    without spread."""
    variance_RC = np.stack(list(variances))
    mean_C = np.nansum(variance_RC, 0) / np.maximum((~np.isnan(variance_RC)).sum(0), 1)
    root_C: np.ndarray = np.sqrt(np.where(mean_C > 0, mean_C, 1.0))
    return root_C


def gaps(
    ours: Mapping[int, np.ndarray],
    theirs: Mapping[int, np.ndarray],
    spread_C: np.ndarray,
    rows: int,
) -> tuple[Gap, ...]:
    """Return how far a row, one of ``rows`` that are judged together, lies from all seeds of the
    reference, and, where both runs have two or more in common, from these. ``ours`` and ``theirs``
    are the values [C] by seed."""
    our = {seed: float((value_C / spread_C).mean()) for seed, value_C in ours.items()}
    their = {seed: float((value_C / spread_C).mean()) for seed, value_C in theirs.items()}
    reference_N = np.array(list(their.values()))
    sd = max(float(reference_N.std(ddof=1)), 1e-6)  # records are rounded to as much
    outside, n = 1 - LEVEL ** (1 / rows), len(our)

    def t(share: float, df: int) -> float:
        return float(stats.t.ppf(1 - share * outside / 2, df))

    distance = (np.mean(list(our.values())) - reference_N.mean()) / sd
    half = t(OF_ALL, len(their) - 1) * np.sqrt(1 / n + 1 / len(their))
    to_all = Gap(float(distance), float(half), "all seeds")
    same = sorted(our.keys() & their.keys())
    if len(same) < 2:
        return (to_all,)
    difference_n = np.array([our[seed] - their[seed] for seed in same]) / sd
    half = t(1 - OF_ALL, len(same) - 1) * difference_n.std(ddof=1) / np.sqrt(len(same))
    to_same = Gap(float(difference_n.mean()), max(float(half), NEGLIGIBLE), "the same seeds")
    return to_all, to_same


# A run --------------------------------------------------------------------------------------------


def against(outcome: Outcome, found: RecordsByRow, reference: Path) -> str:
    """Return what is to be said of this run, of the records ``found``, beside the committed one in
    ``reference``: in the first line whether the installation reproduces it. Empty where there is
    none."""
    table, committed = outcome.table, _committed(outcome.table, reference / outcome.tier)
    if not committed:
        if outcome.tier == "quick" and _committed(table, reference / "mini"):
            return f"{QUESTION} cannot be told in the quick tier, which trains one epoch"
        return ""
    rows = [row for row in table.rows if not (row.cited or row.own or row.absent(outcome.tier))]
    obstacles = {
        row.title: reason
        for row in rows
        if (reason := _obstacle(found.get(row.name, []), committed.get(row.name, [])))
    }
    judged = [row for row in rows if row.title not in obstacles]
    ours = {row.title: _by_seed(table, found[row.name]) for row in judged}
    theirs = {row.title: _by_seed(table, committed[row.name]) for row in judged}
    shared = [(row, seed) for row in ours for seed in ours[row].keys() & theirs[row].keys()]
    alike = sum(_alike(ours[row][seed], theirs[row][seed]) for row, seed in shared)
    if ours and alike == len(shared) and {row for row, _ in shared} == ours.keys():
        told = f"{QUESTION} yes, to the last digit in {alike} of {alike} encoders"
        return told + _not_told(obstacles)
    standings, too_few = _standings(table, ours, theirs)
    lines = [f"{QUESTION} {_verdict(standings, obstacles | too_few)}"]
    if standings:
        lines.append("  distances in standard deviations of seeds (allowed)")
    for what in dict.fromkeys(gap.what for of in standings for gap in of.gaps):
        lines.append(
            f"    from {what}: "
            + ", ".join(
                f"{of.row} {gap.distance:+.1f} ({gap.allowed:.1f})"
                for of in standings
                for gap in of.gaps
                if gap.what == what
            )
        )
    if shared:
        lines.append(
            f"  the same seeds: {alike} of {len(shared)} encoders equal to the last digit;"
            f" {_cells(table, ours, theirs)}"
        )
    return "\n".join([*lines, *_machines(found, committed)])


def _committed(table: Table, tier: Path) -> RecordsByRow:
    """Return the reference's records of a table; those of other tables are not read."""
    read = [
        records.read(path)
        for evaluation, dataset in table.tasks
        for path in sorted((tier / "records").glob(f"*-{evaluation}-{dataset}-*.json"))
    ]
    have = {records.key(record["unit"], record["subject"]): record for record in read}
    return runs.select_records(table, have).rows


def _obstacle(ours: list[records.Record], theirs: list[records.Record]) -> str:
    """Return why a row's records cannot be compared with the reference's; empty if they can."""
    if not ours or not theirs:
        return "not run" if theirs else "not in the reference"
    if ours[0]["subject"]["recipe"] != theirs[0]["subject"]["recipe"]:
        return "another recipe"
    for record in ours:
        unit, seed, task = record["unit"], record["subject"]["seed"], runs.task_of(record)
        for other in theirs:
            if runs.task_of(other) != task:
                continue
            if any(unit[what] != other["unit"][what] for what in ("params", "version")):
                return f"other parameters of {task[0]}"
            if other["subject"]["seed"] == seed and other["unit"]["data"] != unit["data"]:
                return f"other images of {task[1]}"
    return ""


def _by_seed(table: Table, found: list[records.Record]) -> BySeed:
    values: BySeed = {}
    for column in table.columns:
        of = runs.runs_of(found, column)
        for seed in {seed for seed, _ in of}:
            draws = [value for (s, _), value in of.items() if s == seed]
            values.setdefault(seed, {})[column.title] = float(np.mean(draws))
    return values


def _alike(ours: dict[str, float], theirs: dict[str, float]) -> bool:
    """Whether all columns that both have are equal to the last digit of a record."""
    return all(abs(value - theirs.get(title, value)) < 1e-6 for title, value in ours.items())


def _standings(
    table: Table, ours: Mapping[str, BySeed], theirs: Mapping[str, BySeed]
) -> tuple[list[Standing], dict[str, str]]:
    """Judge all rows together, and return apart those that have too few seeds."""
    values = {row: _values(table.columns, ours[row], theirs[row]) for row in ours}
    too_few = {
        row: f"{len(b)} seeds in the reference, {len(a)} here"
        for row, (a, b) in values.items()
        if not a or len(b) < 2
    }
    rows = {row: of for row, of in values.items() if row not in too_few}
    if not rows:
        return [], too_few
    spread_C = spread([np.var(list(b.values()), axis=0, ddof=1) for _, b in rows.values()])
    standings = []
    for row, (a, b) in rows.items():
        has_C = ~np.isnan(next(iter(b.values())))
        a, b = ({seed: value_C[has_C] for seed, value_C in of.items()} for of in (a, b))
        found = gaps(a, b, spread_C[has_C], len(rows))
        standings.append(Standing(row, (len(a), len(b)), found))
    return standings, too_few


def _values(
    columns: Sequence[Column], ours: BySeed, theirs: BySeed
) -> tuple[dict[int, np.ndarray], ...]:
    """Return the values [C] of a row by seed, of both runs: NaN in columns that one of them lacks
    everywhere, without the seeds that lack another one."""
    titles = [column.title for column in columns]
    both = [
        title
        for title in titles
        if all(any(title in values for values in of.values()) for of in (ours, theirs))
    ]
    return tuple(
        {
            seed: np.array([values[title] if title in both else np.nan for title in titles])
            for seed, values in of.items()
            if both and all(title in values for title in both)
        }
        for of in (ours, theirs)
    )


# In words -----------------------------------------------------------------------------------------


def _verdict(standings: Sequence[Standing], obstacles: Mapping[str, str]) -> str:
    if outside := [of for of in standings if not of.widest.inside]:
        return "no, because " + ", ".join(f"{of.row} lies {of.widest.told}" for of in outside)
    coarse = [of for of in standings if of.resolution > RESOLUTION]
    if len(coarse) == len(standings):
        reasons = [
            f"with {ours} of {theirs} seeds only a shift beyond {least:.1f} standard deviations"
            " of seeds would show"
            for (ours, theirs), least in {of.seeds: of.resolution for of in coarse}.items()
        ]
        return "cannot be told: " + "; ".join([*reasons, *_grouped(obstacles)])
    untold = {of.row: f"{of.seeds[0]} of {of.seeds[1]} seeds" for of in coarse}
    fine = len(standings) - len(coarse)
    return (
        f"yes, {fine} of {len(standings) + len(obstacles)} rows lie in its {LEVEL:.0%} prediction"
        f" intervals{_not_told({**obstacles, **untold})}"
    )


def _not_told(reasons: Mapping[str, str]) -> str:
    return f"; cannot be told: {'; '.join(_grouped(reasons))}" if reasons else ""


def _grouped(reasons: Mapping[str, str]) -> list[str]:
    """Return a line per reason with the rows that it is true of."""
    rows_of: dict[str, list[str]] = {}
    for row, reason in reasons.items():
        rows_of.setdefault(reason, []).append(row)
    return [f"{reason}: {', '.join(rows)}" for reason, rows in rows_of.items()]


def _cells(table: Table, ours: Mapping[str, BySeed], theirs: Mapping[str, BySeed]) -> str:
    """Return how far apart the cells are, each a mean over the seeds that both runs have."""
    pairs = []
    for row in ours:
        seeds = ours[row].keys() & theirs[row].keys()
        for title in [column.title for column in table.columns]:
            values = [
                (ours[row][seed][title], theirs[row][seed][title])
                for seed in seeds
                if title in ours[row][seed] and title in theirs[row][seed]
            ]
            if values:
                a, b = np.mean(values, axis=0)
                pairs.append((abs(a - b), f"{row}, {title}", a, b))
    half, decimals = 0.5 * 10.0**-table.decimals, table.decimals + 1
    most, name, a, b = max(pairs, key=lambda pair: pair[0])
    sizes = np.array([size for size, *_ in pairs])
    return (
        f"{(sizes < half).sum()} of {len(pairs)} cells equal to {half:g}, difference"
        f" {sizes.mean():.{decimals}f} on average, {most:.{decimals}f} at most"
        f" ({name}: {a:.{decimals}f}, reference {b:.{decimals}f})"
    )


def moved_by_processor() -> str:
    """How far a number depends on the machine."""
    average, most = MOVED_BY_PROCESSOR
    return (
        f"another processor moves a cell of PCL's Table 1 by about {average:g} points (up to"
        f" {most:g} seen)"
    )


def machine(outcome: Outcome) -> str:
    """The line under a table of the bundled tier: its processor, and what another would do. Empty
    in other tiers."""
    if outcome.tier != "mini":
        return ""
    told = moved_by_processor()
    measured = (
        "Processor not recorded"
        if outcome.processor == NOT_RECORDED
        else f"Measured on {outcome.processor}"
    )
    return f"{measured}. {told[0].upper()}{told[1:]}."


def _machines(ours: RecordsByRow, theirs: RecordsByRow) -> list[str]:
    """Whether processors and versions differ, as far as both sets of records say."""

    def both(what: str) -> tuple[str, str]:
        return runs.recorded(ours, what), runs.recorded(theirs, what)

    def told(title: str, here: str, there: str) -> str:
        return (
            f"{title} {here}"
            f" ({'the same' if here == there != NOT_RECORDED else f'reference: {there}'})"
        )

    versions = {what: both(what) for what in ("python", *records.PACKAGES)}
    known = {what: pair for what, pair in versions.items() if NOT_RECORDED not in pair}
    differing = [
        f"{what} {here} (reference: {there})"
        for what, (here, there) in known.items()
        if here != there
    ]
    same = "versions the same" if known else "versions not recorded"
    return [
        "  "
        + "; ".join(
            [
                told("processor", *both("processor")),
                told("instruction set", *both("instruction_set")),
                f"versions that differ: {', '.join(differing)}" if differing else same,
            ]
        )
    ]
