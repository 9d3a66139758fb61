"""Does a number agree with the paper's? Pure statistics; nothing here knows a table or a file.

A cell is compared by equivalence, not by "no significant difference", which would reward few and
noisy runs: the 90 % interval of the difference must lie inside a margin fixed beforehand (two
one-sided tests at 5 %). The paper's number has noise of its own: one pretraining and a few draws of
training images. So the standard error counts both sides of both. If the paper printed the best of
three or five runs, the difference is biased by about -0.8 or -1.2 of their standard deviations:
nothing here can tell."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

CellVerdict = Literal[
    "re-evaluated",
    "reproduced",
    "within",
    "undecided",
    "short",
    "above",
    "invalid",
    "unchecked",
    "off-protocol",
    "unprinted",
    "not-run",
    "cited",
    "absent",
]
MIN_RUNS = 3
"""Fewer seeds (or, for the paper's own encoder, draws) than this give no interval and cannot
reproduce anything."""
DECIDABLE = 0.5
"""A column whose ceiling is lower cannot be decided: most of what is identical would not be called
reproduced."""


@dataclass(frozen=True)
class Difference:
    """Ours less the paper's, with what its error is known by."""

    mean: float
    error: float | None
    """standard error; None where the runs are too few for one"""
    freedom: float = 1e6
    exact: bool = False
    """whether nothing in it is drawn: the paper's own encoder, evaluated as the paper did"""

    def interval(self) -> tuple[float, float] | None:
        """The 90 % interval."""
        if self.error is None:
            return None
        half = float(special.stdtrit(self.freedom, 0.95)) * self.error
        return self.mean - half, self.mean + half

    def p_at_least(self, bound: float) -> float | None:
        """p of "the true difference is at least ``bound``"; None where nothing tells."""
        if self.error is None:
            return float(self.mean >= bound) if self.exact else None
        if self.error == 0:
            return float(self.mean >= bound)
        return float(special.stdtr(self.freedom, (self.mean - bound) / self.error))


def difference(
    ours_SD: np.ndarray, paper: float, rounding: float, paper_draws: int, *, same_encoder: bool
) -> Difference:
    """Our values, S pretraining seeds by D draws that all seeds share, less the paper's, a mean
    over ``paper_draws`` of one pretraining that is rounded to ``rounding``. ``same_encoder``: ours
    is the checkpoint that the paper released.

    Standard error: draws vary around each encoder (s_d over draws of the mean over seeds) and,
    unless the encoder is the paper's own, encoders vary (s_e over the seeds' means), theirs as well
    as ours: s_d^2 (1/D + 1/paper_draws) + s_e^2 (1/S + 1) + rounding, with Welch-Satterthwaite's
    degrees of freedom. One seed of our own says nothing about s_e, so there is no interval."""
    seeds, draws = ours_SD.shape
    mean = float(ours_SD.mean()) - paper
    if (draws if same_encoder else seeds) < MIN_RUNS:
        return Difference(mean, None)
    parts = []  # (variance, degrees of freedom)
    if draws >= 2:
        of_draws = float(ours_SD.mean(0).var(ddof=1))
        parts.append((of_draws * (1 / draws + 1 / paper_draws), draws - 1))
    if not same_encoder:
        parts.append((float(ours_SD.mean(1).var(ddof=1)) * (1 / seeds + 1), seeds - 1))
    noise = sum(variance for variance, _ in parts)
    freedom = noise**2 / sum(variance**2 / df for variance, df in parts) if noise > 0 else 1e6
    return Difference(mean, math.sqrt(noise + rounding**2 / 12), freedom)


@dataclass(frozen=True)
class Comparison:
    """Ours against the paper's: delta = mean of ours - paper; its 90 % interval; p of "at most a
    margin short"."""

    verdict: CellVerdict
    delta: float
    interval: tuple[float, float] | None
    p_short: float | None


def compare(
    paper: str,
    paper_draws: int,
    runs_SD: np.ndarray,
    margin: float,
    *,
    same_encoder: bool,
    lower_is_better: bool = False,
    tolerance: float | None = None,
) -> Comparison:
    """The verdict on one cell, see ``difference``; ``paper`` is the number as printed.

    ``tolerance``: given where the paper's own encoder was evaluated just as the paper did it, on
    the same draws, so that only rounding and arithmetic differ. Then re-evaluated: the difference
    is no larger.

    reproduced: the interval lies inside +- margin. short, above: all of it lies outside, on the
    worse and on the better side. undecided: it lies across. Without an interval the mean alone
    says: within, short or above."""
    rounding = 10.0 ** -len(paper.partition(".")[2])
    found = difference(runs_SD, float(paper), rounding, paper_draws, same_encoder=same_encoder)
    if tolerance is not None:
        found = Difference(found.mean, None, exact=True)
    worse = -1 if lower_is_better else 1  # so that falling short is negative
    gain = Difference(worse * found.mean, found.error, found.freedom, found.exact)
    interval = found.interval()
    return Comparison(
        _verdict(gain, margin, tolerance), found.mean, interval, gain.p_at_least(-margin)
    )


def _verdict(gain: Difference, margin: float, tolerance: float | None) -> CellVerdict:
    if tolerance is not None and abs(gain.mean) <= tolerance + 1e-9:
        return "re-evaluated"
    low, high = gain.interval() or (gain.mean, gain.mean)
    if high < -margin:
        return "short"
    if low > margin:
        return "above"
    if gain.error is None:
        return "within"
    return "reproduced" if -margin <= low and high <= margin else "undecided"


@dataclass(frozen=True)
class Scaled:
    """The values behind a cell, and what they are measured by."""

    ours_SD: np.ndarray
    paper: float
    rounding: float
    margin: float
    """negative where lower values are better"""
    exact: bool
    """whether nothing is drawn that the paper did not draw alike"""


def row_gain(cells: Sequence[Scaled], paper_draws: int, *, same_encoder: bool) -> Difference:
    """A row's mean over its cells of (ours - paper) / margin, with its error (see ``difference``):
    one test for the whole row, since its cells are of one encoder and rise and fall together.

    Draws of one number belong together across the cells; cells of other numbers of draws enter with
    their means over them."""
    if all(cell.exact for cell in cells):
        gains = [(cell.ours_SD.mean() - cell.paper) / cell.margin for cell in cells]
        return Difference(float(np.mean(gains)), None, exact=True)
    drawn = [cell.ours_SD.shape for cell in cells if not cell.exact]
    alike = len(set(drawn)) == 1
    total: np.ndarray | float = 0.0
    for cell in cells:
        values = cell.ours_SD
        if cell.exact:
            values = values.mean(keepdims=True)
        elif not alike:
            values = values.mean(1, keepdims=True)
        total = total + (values - cell.paper) / (cell.margin * len(cells))
    rounding = math.sqrt(sum((cell.rounding / cell.margin) ** 2 for cell in cells)) / len(cells)
    ours_SD = np.broadcast_to(total, (drawn[0][0], drawn[0][1] if alike else 1))
    return difference(ours_SD, 0.0, rounding, paper_draws, same_encoder=same_encoder)


def ceiling(margin: float, noise: float) -> float:
    """The chance that a method identical to the paper's is called reproduced, however many runs of
    ours there are. ``noise``: the standard deviation of the paper's number, which is one
    pretraining and a few draws.

    With our side known perfectly, the difference is the paper's error alone, and the interval
    reaches 1.645 ``noise`` to each side of it: P(|N(0, noise)| + 1.645 noise <= margin). 80 % need
    a margin of 2.9 ``noise``."""
    if noise == 0:
        return 1.0
    return max(0.0, 2 * float(special.ndtr(margin / noise - special.ndtri(0.95))) - 1)


def holm(p_values: Sequence[float], alpha: float = 0.05) -> list[bool]:
    """Which hypotheses are rejected with a family-wise error of at most ``alpha`` (Holm 1979)."""
    rejected = [False] * len(p_values)
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[index] > alpha / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected
