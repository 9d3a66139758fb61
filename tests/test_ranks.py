"""Ranks of the leaderboard: their tests, their multiplicity by simulation, and when there are
none."""

import itertools

import numpy as np
import pytest
from scipy import stats

from tables.engine.scoring import paired, ranks
from tables.engine.scoring.ranks import Rank, Runs

SIMULATIONS = 300
ALLOWED = 0.05 + 3 * np.sqrt(0.05 * 0.95 / SIMULATIONS)
"""of simulations in which anything false is said, if the true level is 5 %"""


def by_draws(values_ND):
    return [Runs(dict(enumerate(values))) for values in values_ND]


def by_images(right_NM):
    return [Runs({0: 100 * right.mean()}, {0: right}) for right in right_NM]


def test_mcnemar_is_that_of_paired_comparisons():
    right_NM = np.random.default_rng(0).random((5, 400)) < np.linspace(0.5, 0.7, 5)[:, None]
    p_NN = ranks.mcnemar(right_NM)
    for i, j in itertools.combinations(range(5), 2):
        two_sided = paired.difference(right_NM[i], right_NM[j]).p
        assert min(1, 2 * min(p_NN[i, j], p_NN[j, i])) == pytest.approx(two_sided)


def test_the_test_over_draws_is_the_paired_t_test():
    values_ND = np.random.default_rng(0).normal(50, 3, (4, 6))
    p_NN = ranks.p_values(by_draws(values_ND))
    for i, j in itertools.permutations(range(4), 2):
        wanted = stats.ttest_rel(values_ND[i], values_ND[j], alternative="greater").pvalue
        assert p_NN[i, j] == pytest.approx(wanted)
    assert ranks.p_values(by_draws(values_ND), higher_is_better=False)[0, 1] == pytest.approx(
        p_NN[1, 0]
    )


def test_holm_by_hand():
    """Six hypotheses at 5 %: .05/6 = .0083, .05/5 = .01, .05/4 = .0125."""
    p = np.full((3, 3), np.nan)
    p[0, 1], p[0, 2], p[1, 2] = 0.008, 0.0099, 0.013
    p[1, 0], p[2, 0], p[2, 1] = 0.992, 0.99, 0.987
    assert ranks.told_apart(p).tolist() == [[0, 1, 1], [0, 0, 0], [0, 0, 0]]
    p[0, 1] = 0.009
    assert not ranks.told_apart(p).any(), "the first step fails, so nothing follows"
    p[1, 0] = p[2, 0] = p[2, 1] = np.nan
    assert ranks.told_apart(p).sum() == 3, "what is not tested does not count"


def test_ranks_by_hand():
    """A and B are far above C, and not told from each other."""
    values = [[60, 62, 61, 60], [61, 61, 60, 62], [20, 22, 21, 19]]
    found = ranks.ranks(by_draws(values))
    assert found == [Rank(1, 2, 3), Rank(1, 2, 3), Rank(3, 3, 3)]
    assert [str(rank) for rank in found] == ["1–2", "1–2", "3"]
    assert [Rank(1, 2, 4).leads, Rank(1, 2, 3).leads, Rank(2, 2, 4).leads] == [True, False, False]
    lower = ranks.ranks(by_draws(values), higher_is_better=False)
    assert lower == [Rank(2, 3, 3), Rank(2, 3, 3), Rank(1, 1, 3)]


@pytest.mark.parametrize(
    "runs",
    [
        [Runs({0: 80.0}), Runs({0: 20.0})],
        by_draws([[80, 81, 82], [80, 81, 82]]),
        by_draws([[80, 81, 82], [70, 71, 72]]),  # no spread of the difference to test by
        [Runs({0: 80.0, 1: 81.0, 2: 80.5}), Runs({0: 10.0, 1: 11.0})],
        [
            Runs({0: 80.0, 1: 81.0}, subsets={0: "a", 1: "b"}),
            Runs({0: 10.0, 1: 12.0}, subsets={0: "c", 1: "d"}),
        ],
        [Runs({0: 80.0})],
        [],
    ],
)
def test_no_rank_where_nothing_can_be_tested(runs):
    """Single numbers, equal ones, a constant difference, other draws, one alone, none."""
    assert not any(rank.told for rank in ranks.ranks(runs) if rank.of > 1)
    assert all(str(rank) == "" for rank in ranks.ranks(runs))


def test_outcomes_are_preferred_to_draws_and_must_agree_in_each_draw():
    rng = np.random.default_rng(0)
    good, bad = rng.random(500) < 0.9, rng.random(500) < 0.3

    def two_draws(first, second):
        right = {0: first, 1: second}
        return Runs({draw: 100 * of.mean() for draw, of in right.items()}, right)

    clear = ranks.ranks([two_draws(good, good), two_draws(bad, bad)])
    assert clear == [Rank(1, 1, 2), Rank(2, 2, 2)]
    mixed = ranks.ranks([two_draws(good, bad), two_draws(bad, good)])
    assert mixed == [Rank(1, 2, 2)] * 2


def test_one_without_outcomes_is_compared_by_its_draws():
    rng = np.random.default_rng(0)
    right = rng.random((3, 400)) < 0.9
    values = {draw: 100 * right[draw].mean() for draw in range(3)}
    recorded = Runs(values, dict(enumerate(right)))
    lower = Runs({draw: value - 50 + draw for draw, value in values.items()})
    p_NN = ranks.p_values([recorded, lower])
    differences = [values[draw] - lower.values[draw] for draw in range(3)]
    assert p_NN[0, 1] == pytest.approx(stats.ttest_1samp(differences, 0, alternative="greater")[1])


def simulated(make):
    """The share of simulations in which anything false is said: that one is better than another
    that is truly as good or better."""
    wrong = 0
    for seed in range(SIMULATIONS):
        runs, true_N = make(np.random.default_rng(seed))
        better_NN = ranks.told_apart(ranks.p_values(runs))
        wrong += bool((better_NN & (true_N[:, None] <= true_N)).any())
    return wrong / SIMULATIONS


def test_equal_methods_are_rarely_told_apart_over_draws():
    """Draws that all share, and noise of each: nine encoders, 72 hypotheses."""

    def equal(rng):
        return by_draws(50 + rng.normal(0, 3, 5) + rng.normal(0, 1, (9, 5))), np.zeros(9)

    assert simulated(equal) <= ALLOWED


def test_equal_methods_are_rarely_told_apart_by_images():
    """Images of different difficulty, equal for all."""

    def equal(rng):
        return by_images(rng.random((9, 600)) < rng.beta(2, 1, 600)), np.zeros(9)

    assert simulated(equal) <= ALLOWED


def test_different_methods_are_rarely_put_in_a_wrong_order():
    true_N = np.array([0.0, 0.0, 0.5, 1.0, 3.0, 6.0])

    def different(rng):
        return by_draws(50 + true_N[:, None] + rng.normal(0, 1, (6, 6))), true_N

    assert simulated(different) <= ALLOWED


def test_different_methods_are_told_apart_and_more_images_tell_more():
    def excluded(images):
        rng = np.random.default_rng(0)
        difficulty = rng.beta(2, 1, images)
        right = rng.random((5, images)) < difficulty * np.linspace(0.8, 1.0, 5)[:, None]
        return sum(rank.of - 1 - (rank.worst - rank.best) for rank in ranks.ranks(by_images(right)))

    few, some, many = map(excluded, (100, 2000, 50_000))
    assert few < some <= many == 20, "each has one rank"


def test_by_what_each_pair_was_compared():
    """Two with outcomes, two of several draws without, one of a single draw."""
    right_2M = np.random.default_rng(0).random((2, 50)) < 0.5
    both = [Runs({0: 50.0, 1: 51.0}, {0: right, 1: ~right}) for right in right_2M]
    runs = [*both, *by_draws([[40.0, 41.0], [42.0, 44.0]]), Runs({0: 45.0})]
    p_NN, test_NN = ranks.compared(runs)
    images, draws, none = ranks.TESTS
    assert test_NN[0].tolist() == [images, images, draws, draws, none]
    assert test_NN[2].tolist() == [draws, draws, draws, draws, none]
    off_NN = ~np.eye(5, dtype=bool)
    assert ((test_NN == none) == np.isnan(p_NN))[off_NN].all()
