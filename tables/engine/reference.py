"""A run beside the committed one of the same tier, in words that mean something on every machine.

The same seeds, versions and data give the same bits on one kind of processor alone: elsewhere sums
are rounded in another order, and training magnifies that. So the machine is a source of variance,
like the seed."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from protobench import records
from tables.engine import runs
from tables.engine.compare import Cell, Outcome
from tables.engine.runs import NOT_RECORDED
from tables.engine.schema import RecordsByRow

MOVED_BY_PROCESSOR = (1.2, 3.8)
"""Points by which another processor moved a mean over three seeds, on average and at most: the 60
cells of PCL's Table 1 in the bundled tier, equal code, versions and seeds (torch 2.15), an AMD EPYC
against an Intel Xeon with AMX; the most is SimCLR on Places205. To measure it again, run the table
on another processor: ``against`` prints both figures."""
CHANCE = 0.05
NAMED = 3
"""How many of the cells beyond the spread are named."""


@dataclass(frozen=True)
class Pair:
    """A cell here and in the committed run."""

    cell: Cell
    mean: float
    """the committed one"""
    p: float | None
    """of "both are means over seeds of one distribution"; None where either has a single seed"""

    @property
    def difference(self) -> float:
        """Our mean minus the committed one."""
        return (self.cell.mean or 0.0) - self.mean

    def told(self, decimals: int) -> str:
        """The cell and both numbers."""
        name = f"{self.cell.row.title}, {self.cell.column.title}"
        return f"{name}: {self.cell.mean:.{decimals}f} (committed: {self.mean:.{decimals}f})"


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


def against(outcome: Outcome, found: RecordsByRow, reference: Path) -> str:
    """How far this run, of the records ``found``, lies from the committed one in ``reference``;
    empty where there is none."""
    pairs = _pairs(outcome, reference / outcome.tier / f"{outcome.table.name}.cells.csv")
    if not pairs:
        return ""
    half = 0.5 * 10.0**-outcome.table.decimals
    apart = [pair for pair in pairs if abs(pair.difference) >= half]
    told = (
        f"against the committed run: {len(pairs) - len(apart)} of {len(pairs)} cells equal to"
        f" {half:g}"
    )
    if not apart:
        return told
    judged = [pair for pair in apart if pair.p is not None]
    beyond = sorted(
        (pair for pair in judged if (pair.p or 0.0) < CHANCE),
        key=lambda pair: (pair.p, -abs(pair.difference)),
    )
    if several := sum(pair.p is not None for pair in pairs):
        told += (
            f", {len(judged) - len(beyond)} within the spread of the seeds, {len(beyond)} beyond it"
            f" (expected by chance: about {CHANCE * several:.2g})"
        )
    if single := len(apart) - len(judged):
        told += f", {single} of a single seed, whose spread is unknown"
    decimals = outcome.table.decimals + 1
    sizes = np.abs([pair.difference for pair in pairs])
    told += (
        f"; difference {sizes.mean():.{decimals}f} on average, {sizes.max():.{decimals}f} at most"
    )
    lines = [told]
    if beyond:
        lines.append(
            "  furthest beyond: " + "; ".join(pair.told(decimals) for pair in beyond[:NAMED])
        )
    theirs = runs.collect(outcome.table, reference, outcome.tier).rows
    return "\n".join([*lines, *_machines(found, theirs), f"  {moved_by_processor()}"])


def p_of_one_distribution(
    ours: tuple[float, float, int], theirs: tuple[float, float, int]
) -> float:
    """p of Welch's test that two means over seeds, each as (mean, standard deviation, seeds), come
    from one distribution.

    p >= 0.05 is |m1 - m2| <= t(0.975, Welch's df) * sqrt(sd1^2 / S1 + sd2^2 / S2), the standard
    error of a difference of two independent means. Runs that share seeds share initial weights,
    data and draws, so what their means have in common cancels in the difference: the rule is then
    too wide rather than too narrow, and fewer than 5 % lie beyond it by chance."""
    with np.errstate(divide="ignore", invalid="ignore"):
        p = float(stats.ttest_ind_from_stats(*ours, *theirs, equal_var=False).pvalue)
    return 0.0 if np.isnan(p) else p  # no spread on either side


def _pairs(outcome: Outcome, path: Path) -> list[Pair]:
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        theirs = {
            (line["row"], line["column"]): line for line in csv.DictReader(file) if line["mean"]
        }
    pairs = []
    for key, cell in outcome.cells.items():
        if cell.mean is None or not (line := theirs.get(key)):
            continue
        mean, seeds = float(line["mean"]), int(line["n"]) if line["n_of"] == "seeds" else 1
        p = None
        if cell.seeds > 1 and cell.sd is not None and seeds > 1:
            p = p_of_one_distribution(
                (cell.mean, cell.sd, cell.seeds), (mean, float(line["sd"]), seeds)
            )
        pairs.append(Pair(cell, mean, p))
    return pairs


def _machines(ours: RecordsByRow, theirs: RecordsByRow) -> list[str]:
    """Whether processors and versions differ, as far as both sets of records say."""

    def both(what: str) -> tuple[str, str]:
        return runs.recorded(ours, what), runs.recorded(theirs, what)

    def told(title: str, here: str, there: str) -> str:
        return (
            f"{title} {here}"
            f" ({'the same' if here == there != NOT_RECORDED else f'committed: {there}'})"
        )

    versions = {what: both(what) for what in ("python", *records.PACKAGES)}
    known = {what: pair for what, pair in versions.items() if NOT_RECORDED not in pair}
    differing = [
        f"{what} {here} (committed: {there})"
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
