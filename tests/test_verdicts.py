import numpy as np
import pytest
from scipy import stats

from tables.engine import verdicts
from tables.engine.verdicts import compare, holm, lead


def _released(runs, margin=2.0):
    """The paper's own encoder: one seed, draws only."""
    return compare("46.9", 5, np.array([runs]), margin, same_encoder=True)


def test_worked_cells():
    assert _released([46.8, 46.9, 47.0, 46.9, 46.9]).verdict == "reproduced"
    assert _released([44.0, 49.0, 47.0, 45.0, 49.5]).verdict == "within", (
        "the mean agrees, the interval does not"
    )
    for few in ([46.9], [46.9, 46.9]):
        assert _released(few).verdict == "within", "too few runs prove nothing"
        assert _released(few).interval is None
    assert _released([40.0, 40.1, 40.2]).verdict == "short"
    assert _released([52.0, 52.1, 52.2]).verdict == "above", "better than the paper is no success"
    assert _released([40.0, 40.1, 40.2]).delta == pytest.approx(-6.8)


def test_one_pretraining_of_our_own_cannot_reproduce():
    """Its draws say nothing about how much pretrainings differ."""
    result = compare("46.9", 5, np.full((1, 5), 46.9), 2.0, same_encoder=False)
    assert (result.verdict, result.interval) == ("within", None)


def test_the_interval_of_a_released_encoder_counts_the_papers_draws_and_rounding():
    result = _released([46.0, 47.0, 48.0], margin=5.0)
    error = np.sqrt(1.0 * (1 / 3 + 1 / 5) + 0.1**2 / 12)
    half = stats.t(2).ppf(0.95) * error
    assert result.interval == pytest.approx((0.1 - half, 0.1 + half))


def test_the_interval_of_retrained_encoders_counts_pretrainings_too():
    runs = np.array(
        [[46.0, 48.0], [47.0, 49.0], [48.0, 50.0]]
    )  # seed means 47, 48, 49; draw means 47, 49
    result = compare("48.0", 5, runs, 5.0, same_encoder=False)
    encoders, draws = 1.0 * (1 / 3 + 1), 2.0 * (1 / 2 + 1 / 5)
    freedom = (encoders + draws) ** 2 / (encoders**2 / 2 + draws**2 / 1)
    half = stats.t(freedom).ppf(0.95) * np.sqrt(encoders + draws + 0.1**2 / 12)
    assert result.interval == pytest.approx((-half, half))


def _simulated(rng, truth, seeds, encoder_sd, draw_sd):
    """The paper's printed mean of 5 draws of one encoder, and our seeds by 5 draws, which all seeds
    share."""
    paper = f"{50 + rng.normal(0, encoder_sd) + rng.normal(0, draw_sd, 5).mean():.1f}"
    ours = truth + rng.normal(0, encoder_sd, (seeds, 1)) + rng.normal(0, draw_sd, (1, 5))
    return paper, ours


@pytest.mark.parametrize(("encoder_sd", "draw_sd"), [(0.5, 2.0), (0.5, 0.5), (1.0, 0.1)])
@pytest.mark.parametrize("seeds", [3, 5])
def test_retrained_cells_a_margin_away_are_rarely_called_reproduced(seeds, encoder_sd, draw_sd):
    """At most 5 % at the margin, where the error is largest; and the interval covers the truth as
    it says."""
    rng = np.random.default_rng(seeds)
    margin, trials, wrong, covered = 3.0, 2000, 0, 0
    for _ in range(trials):
        paper, ours = _simulated(rng, 50 - margin, seeds, encoder_sd, draw_sd)
        result = compare(paper, 5, ours, margin, same_encoder=False)
        wrong += result.verdict == "reproduced"
        covered += result.interval[0] <= -margin <= result.interval[1]
    slack = 2 * np.sqrt(0.05 * 0.95 / trials)
    assert wrong / trials <= 0.05 + slack
    assert covered / trials >= 0.90 - 2 * np.sqrt(0.1 * 0.9 / trials)


@pytest.mark.parametrize("draws", [3, 5, 10])
def test_released_cells_a_margin_away_are_rarely_called_reproduced(draws):
    rng = np.random.default_rng(draws)
    margin, trials, wrong = 3.0, 3000, 0
    for _ in range(trials):
        paper = f"{50 + rng.normal(0, 1 / np.sqrt(5)):.1f}"
        wrong += (
            compare(
                paper, 5, 50 - margin + rng.normal(0, 1, (1, draws)), margin, same_encoder=True
            ).verdict
            == "reproduced"
        )
    assert wrong / trials <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / trials)


def test_a_cell_that_truly_agrees_is_usually_called_reproduced():
    rng = np.random.default_rng(0)
    right = 0
    for _ in range(500):
        paper, ours = _simulated(rng, 50, 1, 0.0, 1.0)
        right += compare(paper, 5, ours, 4.0, same_encoder=True).verdict == "reproduced"
    assert right / 500 > 0.9


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
    assert _claim([unclear, up], by=10.0) == "weaker", (
        "ten points are out of reach, the order is open"
    )
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
