import numpy as np
import pytest
from scipy import stats

from tables import verdicts
from tables.verdicts import compare, holm, lead


def test_worked_cells():
    assert compare("46.9", 5, [46.8, 46.9, 47.0, 46.9, 46.9], 2.0).verdict == "reproduced"
    noisy = compare("46.9", 5, [44.0, 49.0, 47.0, 45.0, 49.5], 2.0)
    assert noisy.verdict == "within", "the mean agrees, the interval does not"
    assert compare("46.9", 5, [46.9], 2.0).verdict == "within", "one run proves nothing"
    assert compare("46.9", 5, [46.9], 2.0).interval is None
    assert compare("46.9", 5, [40.0, 40.1, 40.2], 2.0).verdict == "short"
    assert compare("46.9", 5, [52.0, 52.1, 52.2], 2.0).verdict == "above", "better than the paper is no success"
    assert compare("46.9", 5, [40.0, 40.1, 40.2], 2.0).delta == pytest.approx(-6.8)


def test_the_interval_counts_the_paper_s_own_noise_and_rounding():
    runs = [46.0, 47.0, 48.0]
    result = compare("46.9", 5, runs, 5.0)
    error = np.sqrt(1.0 * (1 / 3 + 1 / 5) + 0.1**2 / 12)
    half = stats.t(2).ppf(0.95) * error
    assert result.interval == pytest.approx((0.1 - half, 0.1 + half))


@pytest.mark.parametrize("n", [3, 5, 10])
def test_a_cell_that_is_truly_a_margin_away_is_rarely_called_reproduced(n):
    """At most 5 % at the margin, where the error is largest; the paper's number is itself a noisy mean of 5 runs."""
    rng = np.random.default_rng(n)
    margin, trials = 3.0, 4000
    wrong = sum(compare(f"{50 + rng.normal(0, 1 / np.sqrt(5)):.1f}", 5, list(50 - margin + rng.normal(0, 1, n)), margin).verdict
                == "reproduced" for _ in range(trials))
    assert wrong / trials <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / trials)


def test_a_cell_that_truly_agrees_is_usually_called_reproduced_with_five_runs():
    rng = np.random.default_rng(0)
    right = sum(compare(f"{50 + rng.normal(0, 1 / np.sqrt(5)):.1f}", 5, list(50 + rng.normal(0, 1, 5)), 4.0).verdict
                == "reproduced" for _ in range(1000))
    assert right / 1000 > 0.9


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03], 0.05) == [True, False, False]  # 0.01 <= 0.05/3, 0.03 > 0.05/2
    assert holm([0.01, 0.02, 0.03], 0.05) == [True, True, True]
    assert holm([]) == []


def _claim(differences, by=0.0):
    return verdicts.claim([lead(d, by) for d in differences], by)


def test_claims():
    up, down, unclear = [3.0, 3.2, 2.8], [-3.0, -3.1, -2.9], [1.0, -1.0, 0.5]
    assert _claim([up, up]) == "holds"
    assert _claim([up, unclear]) == "undecided"
    assert _claim([up, down]) == "reversed"
    assert _claim([up, up], by=10.0) == "weaker"
    assert _claim([down, up], by=10.0) == "reversed"
    assert _claim([[5.0]]) == "undecided", "one seed has no interval"
    assert _claim([]) == "not-run"
    assert _claim([[0.0, 0.0, 0.0]]) == "undecided", "identical rows"


def test_a_claim_about_equal_rows_is_rarely_decided():
    rng = np.random.default_rng(0)
    decided = [_claim(rng.normal(0, 1, (5, 3)).tolist()) for _ in range(2000)]
    assert decided.count("holds") / 2000 < 0.025
    assert decided.count("reversed") / 2000 < 0.04


def test_a_lead_is_the_paired_t_interval():
    a, b = np.array([5.0, 6.0, 8.0]), np.array([4.0, 4.5, 6.0])
    result = lead(list(a - b))
    theirs = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert result.interval == pytest.approx((theirs.low, theirs.high))
