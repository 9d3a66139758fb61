import numpy as np
import pytest
from scipy import stats

from tables.engine import sequential
from tables.engine.sequential import EARLY_LOOKS, LOOKS, Lead, decide, judge, judge_unchanged, lead

SEED = 20
TRIALS = 40_000


def test_a_lead_over_seeds_is_the_paired_t_interval():
    a, b = np.array([5.0, 6.0, 8.0]), np.array([4.0, 4.5, 6.0])
    theirs = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert lead(a - b).interval(0.025) == pytest.approx((theirs.low, theirs.high))
    assert lead(a - b).p_at_most(0) == pytest.approx(
        stats.ttest_rel(a, b, alternative="greater")[1]
    )


def test_a_lead_over_seeds_and_shared_draws_by_hand():
    grid = np.array([[1.0, 3.0], [2.0, 4.0], [6.0, 8.0]])  # seeds 2, 3, 7; draws 3, 5
    found = lead(grid)
    of_seeds, of_draws = 7.0 / 3, 2.0 / 2
    variance = of_seeds + of_draws
    assert found.mean == 4.0
    assert found.error == pytest.approx(np.sqrt(variance))
    assert found.freedom == pytest.approx(variance**2 / (of_seeds**2 / 2 + of_draws**2 / 1))
    # the mean squares of the two-way layout, divided by all its values
    mean_squares = 2 * 7.0 + 3 * 2.0
    assert variance == pytest.approx(mean_squares / 6)


def test_one_difference_has_no_interval_and_equal_ones_are_sure():
    assert lead(np.array([5.0])).interval(0.025) is None
    assert lead(np.array([5.0])).p_at_most(0) == 1.0
    assert judge([lead(np.array([5.0]))], 0, 0.025) == "undecided"
    assert judge([lead(np.full(4, 5.0))], 0, 0.025) == "holds"
    assert judge([lead(np.zeros(4))], 0, 0.025) == "undecided", "identical rows"
    assert judge([lead(np.zeros(4), delta=1.0)], 0, 0.025) == "negligible"


def _judged(*differences, by=0.0, delta=None, level=0.025):
    return judge([lead(np.array(d), delta=delta) for d in differences], by, level)


def test_verdicts_on_worked_claims():
    up, down, unclear = [3.0, 3.2, 2.8], [-3.0, -3.1, -2.9], [1.0, -1.0, 0.5]
    assert _judged(up, up) == "holds"
    assert _judged(up, unclear) == "undecided"
    assert _judged(up, down) == "reversed"
    assert _judged(up, up, by=10.0) == "weaker"
    assert _judged(unclear, up, by=10.0) == "weaker", (
        "ten points are out of reach, the order is open"
    )
    assert _judged(down, up, by=10.0) == "reversed"
    assert _judged([0.1, -0.1, 0.05], delta=1.0) == "negligible"
    assert _judged([0.1, -0.1, 0.05]) == "undecided", "without a delta nothing is negligible"
    assert _judged([0.1, -0.1, 0.05], up, delta=1.0) == "undecided", "one of two leads is large"
    assert _judged() == "not-run"


def test_the_level_of_a_reversal_is_shared_by_all_leads():
    below = Lead(-2.0, 1.0, 30.0)  # p = 0.027
    assert judge([below], 0, 0.03) == "reversed"
    assert judge([below, Lead(1.0, 1.0, 30.0)], 0, 0.03) == "undecided"


def test_unchanged_by_hand():
    close, far = [0.1, 0.0, -0.1, 0.05], [3.0, 3.1, 2.9, 3.0]
    assert judge_unchanged([lead(np.array(close))] * 2, 1.0, 0.025) == "holds"
    assert judge_unchanged([lead(np.array(close)), lead(np.array(far))], 1.0, 0.025) == "reversed"
    assert judge_unchanged([lead(np.array([0.5, 1.5, 1.0]))], 1.0, 0.025) == "undecided"
    assert judge_unchanged([], 1.0, 0.025) == "not-run"


def test_looks():
    assert LOOKS.upto(3) == []
    assert LOOKS.upto(4) == [(4, 0.0043)]
    assert LOOKS.upto(5) == [(4, 0.0043), (5, 0.0043)]
    assert [n for n, _ in LOOKS.upto(12)] == [4, 6, 9, 12]
    assert (LOOKS.after(4, 12), LOOKS.after(4, 5), LOOKS.after(12, 99)) == (6, None, None)


def _decided(differences, looks=LOOKS, by=0.0, delta=None):
    return decide(
        len(differences),
        lambda n: [lead(np.array(differences[:n]), delta=delta)],
        looks,
        lambda leads, level: judge(leads, by, level),
    )


def test_a_verdict_is_kept_when_pretrainings_are_added():
    clear = [3.0, 3.1, 2.9, 3.0]
    assert (_decided(clear).verdict, _decided(clear).seeds) == ("holds", 4)
    later = _decided([*clear, -9.0, -9.0])
    assert (later.verdict, later.seeds) == ("holds", 4)
    assert _decided(clear[:3]).verdict == "undecided", "before the first look"
    assert _decided([1.0, 2.0, 3.0, -1.0, 2.5, 2.0]).seeds == 6, (
        "undecided: the last look's numbers"
    )


def _mc(rate, trials=TRIALS):
    """Three Monte-Carlo standard errors."""
    return 3 * np.sqrt(rate * (1 - rate) / trials)


def _crossings(rng, looks, seeds, theta=0.0, delta=None, trials=TRIALS):
    """Shares of simulated claims about leads of mean ``theta`` and sd 1 that are found above 0 and
    negligible: the arithmetic of ``judge`` for all at once."""
    x = theta + rng.standard_normal((trials, seeds))
    above, null, done = (np.zeros(trials, bool) for _ in range(3))
    for n, level in looks.upto(seeds):
        mean, error = x[:, :n].mean(1), x[:, :n].std(1, ddof=1) / np.sqrt(n)
        t, wide = stats.t(n - 1).ppf(1 - level), stats.t(n - 1).ppf(1 - 2 * level)
        up, down = mean > t * error, mean < -t * error
        inside = (
            ~up & ~down & (mean + wide * error < delta) & (mean - wide * error > -delta)
            if delta
            else np.zeros(trials, bool)
        )
        above |= up & ~done
        null |= inside & ~done
        done |= up | down | inside
    return above.mean(), null.mean()


def test_the_simulation_judges_as_the_engine_does():
    for theta in (0.0, 0.8):
        for trial in range(40):
            seed = 1000 * trial + int(10 * theta)
            above, null = _crossings(np.random.default_rng(seed), LOOKS, 12, theta, 1.0, trials=1)
            x = theta + np.random.default_rng(seed).standard_normal((1, 12))[0]
            verdict = _decided(x.tolist(), delta=1.0).verdict
            assert (verdict == "holds", verdict == "negligible") == (bool(above), bool(null))


@pytest.mark.parametrize(
    ("looks", "seeds", "allowed"),
    [(LOOKS, 12, 0.025), (EARLY_LOOKS, 8, 0.025), (LOOKS, 5, 0.025), (LOOKS, 20, 0.028)],
)
def test_all_looks_together_err_in_one_case_of_forty(looks, seeds, allowed):
    error, _ = _crossings(np.random.default_rng(SEED), looks, seeds)
    assert error <= allowed + _mc(0.025)


def test_four_looks_at_the_plain_level_would_err_far_more_often():
    plain = sequential.Looks(LOOKS.sizes, (0.025,) * 4)
    error, _ = _crossings(np.random.default_rng(SEED), plain, 12)
    assert error > 0.06


def test_negligible_is_rarely_wrong_and_often_found():
    wrong = _crossings(np.random.default_rng(SEED), LOOKS, 12, theta=1.0, delta=1.0)[1]
    right = _crossings(np.random.default_rng(SEED), LOOKS, 12, theta=0.0, delta=1.0)[1]
    assert wrong <= 0.037 + _mc(0.037)
    assert right > 0.75


@pytest.mark.parametrize("seeds", [4, 6, 9])
@pytest.mark.parametrize("draw_sd", [1.0, 2.0])
def test_shared_draws_do_not_pass_for_a_lead(seeds, draw_sd):
    """All seeds see the same 5 draws, which may favour a row by chance; a t-test over the seeds'
    means alone would hold that for a lead far too often."""
    rng, trials, level = np.random.default_rng(SEED), 1500, 0.025
    wrong = naive = 0
    for _ in range(trials):
        grid = (
            rng.normal(0, 1.0, (seeds, 1))
            + rng.normal(0, draw_sd, (1, 5))
            + rng.normal(0, 0.5, (seeds, 5))
        )
        wrong += lead(grid).p_at_most(0) < level
        naive += lead(grid.mean(1)).p_at_most(0) < level
    assert wrong / trials <= level + _mc(level, trials)
    assert naive / trials > 1.5 * level


def test_a_claim_about_equal_rows_in_several_columns_is_rarely_decided():
    rng, trials = np.random.default_rng(SEED), 800
    verdicts = [judge([lead(x) for x in rng.normal(0, 1, (5, 4))], 0, 0.025) for _ in range(trials)]
    assert verdicts.count("holds") / trials < 0.025
    assert verdicts.count("reversed") / trials <= 0.025 + _mc(0.025, trials)


def test_unchanged_is_rarely_wrong_at_the_margin():
    rng, trials = np.random.default_rng(SEED), 1500
    found = [judge_unchanged([lead(rng.normal(1.0, 0.3, 4))], 1.0, 0.025) for _ in range(trials)]
    assert found.count("holds") / trials <= 0.025 + _mc(0.025, trials)
