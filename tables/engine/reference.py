"""Is my installation right? A run beside the committed one of the same tier.

The same seeds, versions and data give the same bits on one kind of processor, and then nothing more
need be said. Elsewhere sums are rounded in another order, and training magnifies that: another
processor does to an encoder at most what another seed does. So the check asks of every row whether
the run could be one more set of seeds of the reference.

A row's endpoint is, per seed, the mean over its columns of value / spread of the column, the spread
being the root mean square over all rows of the standard deviation over the reference's seeds: so
columns of different units count alike. (Dividing by the row's own standard deviations would fit its
chance: 7 to 9 % false alarms.) With endpoints of mean m and standard deviation s over the
reference's N seeds, the mean over n further seeds lies within

    m +- t(N - 1) s sqrt(1 / n + 1 / N)

in 95 % of cases, simultaneously over R rows if each interval is of level 0.95^(1 / R) (Sidak, which
errs to the safe side where rows share seeds). Seeds and worlds that both runs share make their
means alike, so false alarms are rarer still: about 1.5 % where half of the variance is shared,
none where all is. Differences of equal seeds, though paired, give no sharper test: what rounding
alone does to a row is not known, and its bound, that of another seed, gives them the wider interval
s sqrt(2 / n). A shift of a row by 3 standard deviations of seeds in all its columns is found in 88
to 100 % of cases by 3 seeds against 10, in 95 to 100 % by 4; one by 2 in 60 to 100 % by 4 (the less
the columns are correlated, the surer). The rates are simulated, in the tests too."""

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
RESOLUTION = 3.0
"""The widest interval, in standard deviations over seeds, that lying inside of says anything."""
QUESTION = "this installation reproduces the reference:"

BySeed = dict[int, dict[str, float]]
"""seed -> title of a column -> mean over draws"""


@dataclass(frozen=True)
class Standing:
    """Where a row stands beside the reference, in standard deviations over the reference's seeds of
    the row's endpoint."""

    row: str
    """its title"""
    distance: float
    """our mean minus the reference's"""
    allowed: float
    """half of the prediction interval"""
    seeds: tuple[int, int]
    """here and in the reference"""

    @property
    def inside(self) -> bool:
        """Whether it lies in the interval."""
        return abs(self.distance) <= self.allowed

    @property
    def told(self) -> str:
        """The distance in words."""
        side = "below" if self.distance < 0 else "above"
        return (
            f"{self.row} lies {abs(self.distance):.1f} standard deviations of seeds {side} it"
            f" ({self.allowed:.1f} allowed)"
        )


# The check ----------------------------------------------------------------------------------------


def spread(variances: Sequence[np.ndarray]) -> np.ndarray:
    """Return the spread [C] of each column: the root mean square of the rows' standard deviations
    over seeds, given as variances [C] per row, NaN where a row lacks the column. 1 for a column
    without spread."""
    mean_C = np.nanmean(np.stack(list(variances)), axis=0)
    root_C: np.ndarray = np.sqrt(np.where(mean_C > 0, mean_C, 1.0))
    return root_C


def distance(ours_nC: np.ndarray, theirs_NC: np.ndarray, spread_C: np.ndarray) -> float:
    """Return how far the mean endpoint over our n seeds lies from that over the reference's N, in
    the latter's standard deviation over seeds."""
    ours_n, theirs_N = ((of / spread_C).mean(1) for of in (ours_nC, theirs_NC))
    gap, sd = ours_n.mean() - theirs_N.mean(), theirs_N.std(ddof=1)
    if sd < 1e-9:
        return 0.0 if abs(gap) < 1e-9 else float(np.copysign(np.inf, gap))
    return float(gap / sd)


def allowed(ours: int, theirs: int, rows: int) -> float:
    """Return half of the prediction interval in standard deviations over seeds, given the numbers
    of seeds and of rows that are judged together."""
    outside = 1 - LEVEL ** (1 / rows)
    return float(stats.t.ppf(1 - outside / 2, theirs - 1) * np.sqrt(1 / ours + 1 / theirs))


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
    rows = [row for row in table.rows if not row.cited and not row.absent(outcome.tier)]
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
        lines.append(
            "  distances in standard deviations of seeds (allowed): "
            + ", ".join(
                f"{standing.row} {standing.distance:+.1f} ({standing.allowed:.1f})"
                for standing in standings
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
    arrays = {row: _arrays(table.columns, ours[row], theirs[row]) for row in ours}
    too_few = {
        row: f"{len(b)} seeds in the reference, {len(a)} here"
        for row, (a, b) in arrays.items()
        if not len(a) or len(b) < 2
    }
    rows = [row for row in ours if row not in too_few]
    if not rows:
        return [], too_few
    spread_C = spread([arrays[row][1].var(0, ddof=1) for row in rows])
    standings = []
    for row in rows:
        a, b = arrays[row]
        has = ~np.isnan(b[0])
        standings.append(
            Standing(
                row,
                distance(a[:, has], b[:, has], spread_C[has]),
                allowed(len(a), len(b), len(rows)),
                (len(a), len(b)),
            )
        )
    return standings, too_few


def _arrays(
    columns: Sequence[Column], ours: BySeed, theirs: BySeed
) -> tuple[np.ndarray, np.ndarray]:
    """Return both runs of a row as [seeds, C]: NaN in columns that one of them lacks everywhere,
    without the seeds that lack another one."""
    titles = [column.title for column in columns]
    both = [
        title
        for title in titles
        if all(any(title in values for values in of.values()) for of in (ours, theirs))
    ]

    def array(of: BySeed) -> np.ndarray:
        whole = [of[seed] for seed in sorted(of) if all(title in of[seed] for title in both)]
        kept = [[v[title] if title in both else np.nan for title in titles] for v in whole]
        return np.array(kept).reshape(len(kept), len(titles))

    return array(ours), array(theirs)


# In words -----------------------------------------------------------------------------------------


def _verdict(standings: Sequence[Standing], obstacles: Mapping[str, str]) -> str:
    if outside := [standing for standing in standings if not standing.inside]:
        return "no, because " + ", ".join(standing.told for standing in outside)
    coarse = [standing for standing in standings if standing.allowed > RESOLUTION]
    if len(coarse) == len(standings):
        reasons = [
            f"with {ours} of {theirs} seeds only a shift beyond {least:.1f} standard deviations"
            " of seeds would show"
            for (ours, theirs), least in {of.seeds: of.allowed for of in coarse}.items()
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
