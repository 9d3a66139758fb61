"""Is one thing better than another? Decided on paired differences, with looks while the data grow.

A claim is tested again whenever pretrainings were added, and testing again is another chance to be
wrong: at 2.5 % each time, four looks err in 9 % of the cases. So each look has a smaller level, and
all of them together err in 2.5 % (in each direction; tests/test_sequential.py simulates it). Pure
statistics; nothing here knows a table or a file."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

ClaimVerdict = Literal[
    "holds", "weaker", "reversed", "negligible", "undecided", "invalid", "not-run"
]
OPEN = ("undecided", "not-run")
"""Verdicts that more pretrainings could change."""
FIXED_LEVEL = 0.025
"""Where nothing can be added: the draws of two given encoders."""


@dataclass(frozen=True)
class Looks:
    """The numbers of pretraining seeds at which claims are tested, and the one-sided level at each
    look."""

    sizes: tuple[int, ...]
    levels: tuple[float, ...]

    @property
    def first(self) -> int:
        """The least number of seeds that can decide anything."""
        return self.sizes[0]

    def upto(self, seeds: int) -> list[tuple[int, float]]:
        """(number of seeds, level) of every look that ``seeds`` pretrainings allow.

        A number that is no look (after --seeds) is one more look, at the smallest level; with it
        the error of a direction stays below 2.8 %."""
        taken = [look for look in zip(self.sizes, self.levels, strict=True) if look[0] <= seeds]
        if taken and seeds not in self.sizes:
            taken.append((seeds, min(self.levels)))
        return taken

    def after(self, seeds: int, most: int) -> int | None:
        """The next look beyond ``seeds`` that is at most ``most``, if there is one."""
        return next((size for size in self.sizes if seeds < size <= most), None)


LOOKS = Looks((4, 6, 9, 12), (0.0043, 0.0065, 0.0097, 0.0130))
"""Of tables and figures: 2.5 % in all. A paired t must exceed 6.2, 3.8, 2.9 and 2.6."""
EARLY_LOOKS = Looks((3, 5, 8), (0.007, 0.009, 0.012))
"""Where differences are expected to be large beside their spread: 2.4 % in all."""


@dataclass(frozen=True)
class Lead:
    """The mean difference of two rows, with what its error is known by."""

    mean: float
    error: float | None
    """standard error; None for a single difference"""
    freedom: float = 1.0
    """its degrees of freedom"""
    delta: float | None = None
    """a lead below this is negligible; None: none is"""

    def interval(self, level: float) -> tuple[float, float] | None:
        """The interval that leaves out ``level`` on each side."""
        if self.error is None:
            return None
        half = float(special.stdtrit(self.freedom, 1 - level)) * self.error
        return self.mean - half, self.mean + half

    def p_at_most(self, bound: float) -> float:
        """p of "the true lead is at most ``bound``": small where it clearly exceeds it."""
        return self._p(self.mean - bound)

    def p_at_least(self, bound: float) -> float:
        """p of "the true lead is at least ``bound``": small where it clearly falls short of it."""
        return self._p(bound - self.mean)

    def _p(self, beyond: float) -> float:
        """p of lying so far beyond a bound by chance. A single difference shows nothing; equal ones
        leave no doubt."""
        if self.error is None:
            return 1.0
        if self.error == 0:
            return 0.0 if beyond > 0 else 1.0
        return float(special.stdtr(self.freedom, -beyond / self.error))


def lead(differences_SD: np.ndarray, *, delta: float | None = None) -> Lead:
    """The lead from paired differences of S pretraining seeds by D draws that all seeds share; [S]
    where each seed has draws of its own, which then are part of its value.

    Seeds and draws both vary, so both count: the variance of the mean is (MS_seed + MS_draw) /
    (S D), with Satterthwaite's degrees of freedom. A t-test over the seeds' means alone would take
    what the shared draws favour for a lead of the method. (The residual is counted twice, which
    errs on the safe side.) With one seed the draws speak for that encoder alone."""
    grid = differences_SD.reshape(len(differences_SD), -1)
    seeds, draws = grid.shape
    parts = []  # (variance of the mean, degrees of freedom)
    if seeds > 1:
        parts.append((float(grid.mean(1).var(ddof=1)) / seeds, seeds - 1))
    if draws > 1:
        parts.append((float(grid.mean(0).var(ddof=1)) / draws, draws - 1))
    if not parts:
        return Lead(float(grid.mean()), None, delta=delta)
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / df for part, df in parts) if variance > 0 else 1.0
    return Lead(float(grid.mean()), math.sqrt(variance), freedom, delta)


def judge(leads: Sequence[Lead], by: float, level: float) -> ClaimVerdict:
    """The verdict on "every lead exceeds ``by``" (at least 0) at one look.

    holds: every lead does, each at ``level`` (a conjunction needs no correction). reversed: at
    least one of m leads is below 0, at ``level`` / m. weaker: the same of ``by``, but not of 0:
    what fails is the size. negligible: every lead lies between -delta and delta, by two one-sided
    tests at twice the level. undecided: anything else."""
    if not leads:
        return "not-run"
    if all(x.p_at_most(by) < level for x in leads):
        return "holds"
    each = level / len(leads)
    if any(x.p_at_least(0.0) < each for x in leads):
        return "reversed"
    if by > 0 and any(x.p_at_least(by) < each for x in leads):
        return "weaker"
    if by == 0 and all(is_within(x, x.delta, 2 * level) for x in leads):
        return "negligible"
    return "undecided"


def is_within(lead: Lead, delta: float | None, level: float) -> bool:
    """Whether the lead lies between -delta and delta, by two one-sided tests."""
    return delta is not None and lead.p_at_least(delta) < level and lead.p_at_most(-delta) < level


def judge_unchanged(leads: Sequence[Lead], margin: float, level: float) -> ClaimVerdict:
    """The verdict on "no lead is further from 0 than ``margin``" at one look.

    holds: every one lies inside, by two one-sided tests. reversed: at least one of m lies outside,
    at ``level`` / m."""
    if not leads:
        return "not-run"
    if all(is_within(x, margin, level) for x in leads):
        return "holds"
    each = level / len(leads)
    outside = any(x.p_at_most(margin) < each or x.p_at_least(-margin) < each for x in leads)
    return "reversed" if outside else "undecided"


@dataclass(frozen=True)
class Decision:
    """What became of a claim: at the first look that decided it, else at the last."""

    verdict: ClaimVerdict
    seeds: int
    """behind the verdict"""
    level: float
    """one-sided, at that look"""
    leads: list[Lead]


def decide(
    seeds: int,
    leads: Callable[[int], list[Lead]],
    looks: Looks,
    judged: Callable[[list[Lead], float], ClaimVerdict],
) -> Decision:
    """Takes the looks that ``seeds`` pretrainings allow, in order, until one decides. ``leads(n)``
    are those of the first n pretrainings.

    A verdict stays what it was when more pretrainings are added later. Before the first look
    nothing is decided."""
    decision = Decision("undecided", seeds, min(looks.levels), leads(seeds))
    for size, level in looks.upto(seeds):
        found = leads(size)
        decision = Decision(judged(found, level), size, level, found)
        if decision.verdict not in OPEN:
            break
    return decision
