"""Ranks of encoders in one column of the leaderboard, as far as the test can tell.

Each pair is compared in both directions by a one-sided p: of "A is no better than B".

  outcomes   where both have an outcome for each test image: McNemar's exact test. Several draws
             are tested one by one, and the least clear one counts: A must be better in each.
  draws      otherwise, the paired t-test of A - B over the draws, at least two, where both have the
             same. It is about support sets like those drawn, on these test images.
  neither    a single number without outcomes: no test, so no rank.

The hypotheses of a column, two a pair, are tested together by Holm's method at 5 % (Holm, 1979):
the probability that any of its statements "A is better than B" is false is at most 5 %, whatever
is true; the hypotheses are one-sided, so a wrong direction counts as false. So all rank ranges of
a column contain the true ranks together with 95 %. Columns are not corrected for one another.

A is at best next after those that are better than it, and at worst next before those that it is
better than."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

LEVEL = 0.05
TESTS = ("images", "draws", "none")


@dataclass(frozen=True)
class Runs:
    """What one encoder has in a column."""

    values: Mapping[int, float]
    """draw -> value"""
    right: Mapping[int, np.ndarray] = field(default_factory=dict)
    """draw -> which test images were right, bool [N]; empty where that was not recorded"""
    subsets: Mapping[int, str] = field(default_factory=dict)
    """draw -> what was drawn, where that was recorded"""

    @property
    def mean(self) -> float:
        """Mean over the draws."""
        return float(np.mean(list(self.values.values())))

    @property
    def spread(self) -> float | None:
        """Standard deviation over the draws; None of a single one."""
        return float(np.std(list(self.values.values()), ddof=1)) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Rank:
    """The ranks that the test does not exclude, out of 1 to ``of``."""

    best: int
    worst: int
    of: int

    @property
    def told(self) -> bool:
        """Whether the test excludes any rank."""
        return (self.best, self.worst) != (1, self.of)

    @property
    def leads(self) -> bool:
        """Whether it may be the best, and is in the better half for certain."""
        return self.best == 1 and 2 * self.worst <= self.of

    def __str__(self) -> str:
        if not self.told:
            return ""
        return str(self.best) if self.best == self.worst else f"{self.best}–{self.worst}"


def ranks(runs: Sequence[Runs], *, higher_is_better: bool = True) -> list[Rank]:
    """Return the rank of each encoder in a column."""
    return from_comparisons(told_apart(p_values(runs, higher_is_better=higher_is_better)))


def from_comparisons(better_NN: np.ndarray) -> list[Rank]:
    """Return the ranks that statements "i is better than j", at (i, j), leave possible."""
    n = len(better_NN)
    return [Rank(1 + int(better_NN[:, i].sum()), n - int(better_NN[i].sum()), n) for i in range(n)]


def p_values(runs: Sequence[Runs], *, higher_is_better: bool = True) -> np.ndarray:
    """Return [N, N]: at (i, j) the p of "i is no better than j"; NaN where there is no test."""
    return compared(runs, higher_is_better=higher_is_better)[0]


def compared(
    runs: Sequence[Runs], *, higher_is_better: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return the same and, [N, N], by what each pair was compared: one of ``TESTS``."""
    p_NN = np.full((len(runs), len(runs)), np.nan)
    test_NN = np.full(p_NN.shape, "none", dtype="<U6")
    alike: dict[object, list[int]] = {}
    for i, of in enumerate(runs):
        alike.setdefault(tuple(sorted((d, of.subsets.get(d, "")) for d in of.values)), []).append(i)
    for same_draws in alike.values():
        draws = sorted(runs[same_draws[0]].values)
        sign = 1 if higher_is_better else -1
        values_ND = sign * np.array([[runs[i].values[d] for d in draws] for i in same_draws])
        if len(draws) > 1:
            p_NN[np.ix_(same_draws, same_draws)] = _over_draws(values_ND)
            test_NN[np.ix_(same_draws, same_draws)] = "draws"
        recorded = [i for i in same_draws if all(d in runs[i].right for d in draws)]
        if recorded:
            by_draw = [np.stack([runs[i].right[d] for i in recorded]) for d in draws]
            p_NN[np.ix_(recorded, recorded)] = np.max([mcnemar(r) for r in by_draw], axis=0)
            test_NN[np.ix_(recorded, recorded)] = "images"
    np.fill_diagonal(p_NN, np.nan)
    return p_NN, test_NN


def mcnemar(right_NM: np.ndarray) -> np.ndarray:
    """Return the exact one-sided p [N, N] of N encoders' outcomes on the same M images, bool."""
    right = right_NM.astype(np.float32)  # counts below 2 ** 24 are exact
    alone_NN = (right @ (1 - right).T).round().astype(np.int64)
    return np.asarray(stats.binom.sf(alone_NN - 1, alone_NN + alone_NN.T, 0.5))


def _over_draws(values_ND: np.ndarray) -> np.ndarray:
    """Return the one-sided p [N, N] of the paired t-test over D draws. Equal differences in all
    draws have no spread to test by, so they tell nothing: 1."""
    n, d = values_ND.shape
    p_NN = np.ones((n, n))
    for i in range(n):
        difference_ND = values_ND[i] - values_ND
        error_N = difference_ND.std(1, ddof=1) / np.sqrt(d)
        told = error_N > 1e-12
        t = difference_ND[told].mean(1) / error_N[told]
        p_NN[i, told] = stats.t.sf(t, d - 1)
    return p_NN


def told_apart(p_NN: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Return bool [N, N]: at (i, j) whether i is better than j, by Holm's method over every pair
    and direction that has a p."""
    rejected_NN = np.zeros(p_NN.shape, dtype=bool)
    there = np.flatnonzero(~np.isnan(p_NN))
    order = there[np.argsort(p_NN.flat[there], kind="stable")]
    holds = p_NN.flat[order] > level / np.arange(len(order), 0, -1)
    first = int(holds.argmax()) if holds.any() else len(order)
    rejected_NN.flat[order[:first]] = True
    return rejected_NN
