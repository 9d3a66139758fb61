"""Does a number agree with the paper's? Pure statistics; nothing here knows a table or a file.

A cell is compared by equivalence, not by "no significant difference", which would reward few and
noisy runs: the 90 % interval of the difference must lie inside a margin fixed beforehand (two
one-sided tests at 5 %). The paper's number has noise of its own: one pretraining and a few draws of
training images. So the standard error counts both sides of both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

CellVerdict = Literal[
    "reproduced",
    "within",
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
ClaimVerdict = Literal["holds", "weaker", "reversed", "undecided", "invalid", "not-run"]
MIN_RUNS = 3
"""Fewer seeds (or, for the paper's own encoder, draws) than this give no interval and cannot
reproduce anything."""


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
) -> Comparison:
    """The verdict on one cell: ``paper`` as printed, a mean over ``paper_draws`` of one
    pretraining; ``runs_SD`` our values, S pretraining seeds by D draws that all seeds share.
    ``same_encoder``: ours is the checkpoint the paper released.

    reproduced: the interval lies inside +- margin. within: the mean does, the interval does not or
    there is none. short, above: the mean is outside, on the worse and on the better side.

    Standard error: draws vary around each encoder (s_d over draws of the mean over seeds) and,
    unless the encoder is the paper's own, encoders vary (s_e over the seeds' means), theirs as well
    as ours: s_d^2 (1/D + 1/paper_draws) + s_e^2 (1/S + 1) + rounding, with Welch-Satterthwaite's
    degrees of freedom. One seed of our own says nothing about s_e, so there is no interval."""
    seeds, draws = runs_SD.shape
    delta = float(runs_SD.mean()) - float(paper)
    gain = -delta if lower_is_better else delta
    interval = p_short = None
    parts = []  # (variance, degrees of freedom)
    if draws >= 2:
        parts.append(
            (float(runs_SD.mean(0).var(ddof=1)) * (1 / draws + 1 / paper_draws), draws - 1)
        )
    if not same_encoder and seeds >= 2:
        parts.append((float(runs_SD.mean(1).var(ddof=1)) * (1 / seeds + 1), seeds - 1))
    if (draws if same_encoder else seeds) >= MIN_RUNS:
        noise = sum(variance for variance, _ in parts)
        freedom = noise**2 / sum(variance**2 / df for variance, df in parts) if noise > 0 else 1e6
        error = math.sqrt(noise + (10.0 ** -len(paper.partition(".")[2])) ** 2 / 12)
        t = stats.t(freedom)
        half = float(t.ppf(0.95)) * error
        interval = (delta - half, delta + half)
        p_short = float(t.cdf((gain + margin) / error))
    if abs(delta) > margin:
        verdict: CellVerdict = "short" if gain < 0 else "above"
    elif interval is not None and -margin <= interval[0] and interval[1] <= margin:
        verdict = "reproduced"
    else:
        verdict = "within"
    return Comparison(verdict, delta, interval, p_short)


def holm(p_values: Sequence[float], alpha: float = 0.05) -> list[bool]:
    """Which hypotheses are rejected with a family-wise error of at most ``alpha`` (Holm 1979)."""
    rejected = [False] * len(p_values)
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[index] > alpha / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected


@dataclass(frozen=True)
class Lead:
    """The mean paired difference of two rows in one column and its 95 % interval (None for a single
    pair)."""

    mean: float
    interval: tuple[float, float] | None
    p_below: float | None
    """one-sided p of "the lead is at least ``by``" """


def lead(differences: Sequence[float], by: float = 0.0) -> Lead:
    """Paired t over runs that share seed or draw."""
    mean = float(np.mean(differences))
    if len(differences) < 2:
        return Lead(mean, None, None)
    error = float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    t = stats.t(len(differences) - 1)
    half = float(t.ppf(0.975)) * error
    below = float(t.cdf((mean - by) / error)) if error > 0 else float(mean >= by)
    return Lead(mean, (mean - half, mean + half), below)


def claim(leads: Sequence[Lead], by: float = 0.0) -> ClaimVerdict:
    """The verdict on "every lead exceeds ``by``".

    holds: every interval lies above (each at 2.5 %, one side; a conjunction needs no correction).
    reversed: at least one lead is below, at 2.5 % after Holm. weaker: the same where ``by`` > 0,
    but no lead lies below 0: what fails is the size. undecided: anything else, a single run
    included. (Intervals over draws of one training of ours decide nothing either;
    tables/engine/compare.py sees to that.)"""
    if not leads:
        return "not-run"
    if all(x.interval is not None and x.interval[0] > by for x in leads):
        return "holds"
    if all(x.p_below is not None for x in leads) and any(
        holm([x.p_below for x in leads if x.p_below is not None], 0.025)
    ):
        below_zero = any(x.interval is not None and x.interval[1] < 0 for x in leads)
        return "reversed" if by == 0 or below_zero else "weaker"
    return "undecided"


def insensitive(found: Sequence[Sequence[float]], margin: float) -> tuple[ClaimVerdict, list[Lead]]:
    """The verdict on "what is changed moves the score by no more than ``margin``", from paired
    differences per change.

    holds: every 95 % interval lies inside +- margin. reversed: at least one true difference lies
    outside, at 2.5 % after Holm. undecided: anything else, a single run included."""
    leads = [lead(differences) for differences in found]
    if not all(x.interval for x in leads) or not leads:
        return "undecided" if leads else "not-run", leads
    if all(x.interval and -margin <= x.interval[0] and x.interval[1] <= margin for x in leads):
        return "holds", leads
    outside = [
        min(lead(d, -margin).p_below or 0.0, 1 - (lead(d, margin).p_below or 0.0)) for d in found
    ]
    return "reversed" if any(holm(outside, 0.025)) else "undecided", leads
