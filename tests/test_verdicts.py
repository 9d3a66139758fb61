import numpy as np
import pytest
from scipy import stats

from tables.engine.verdicts import Scaled, ceiling, compare, holm, row_gain


def _released(runs, margin=2.0):
    """The paper's own encoder: one seed, draws only."""
    return compare("46.9", 5, np.array([runs]), margin, same_encoder=True)


def test_worked_cells():
    assert _released([46.8, 46.9, 47.0, 46.9, 46.9]).verdict == "reproduced"
    assert _released([44.0, 49.0, 47.0, 45.0, 49.5]).verdict == "undecided", (
        "the mean agrees, the interval does not"
    )
    assert _released([42.0, 47.0, 45.0, 43.0, 46.0]).verdict == "undecided", (
        "the mean is 2.3 short of a margin of 2, but that may be chance"
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


def test_the_papers_own_encoder_on_its_own_draws():
    runs = np.array([[46.0, 48.0, 46.2]])  # a mean of 46.73 for 46.9

    def same(tolerance, printed="46.9", margin=2.0):
        return compare(printed, 5, runs, margin, same_encoder=True, tolerance=tolerance)

    assert same(0.3).verdict == "re-evaluated"
    assert same(0.1).verdict == "within", "nothing is drawn: only the protocol can differ"
    assert same(0.3, "50.0").verdict == "short"
    assert same(0.3, "50.0").p_short == 0
    assert same(0.3, "43.0").verdict == "above"
    assert same(0.3).interval is None
    one = compare("54.5", 1, np.array([[54.5]]), 2.0, same_encoder=True, tolerance=0.3)
    assert one.verdict == "re-evaluated", "one value of one file is enough for that"


def test_the_ceiling_of_reproduced():
    assert ceiling(2.925, 1.0) == pytest.approx(0.8, abs=0.002)
    assert ceiling(1.0, 1.0) == 0.0
    assert ceiling(0.5, 0.0) == 1.0


@pytest.mark.parametrize("noise", [0.5, 1.0])
def test_no_number_of_runs_reproduces_more_often_than_the_ceiling(noise):
    rng, margin, trials = np.random.default_rng(0), 2.5, 1000
    right = 0
    for _ in range(trials):
        paper = f"{50 + rng.normal(0, noise):.1f}"
        ours = 50 + rng.normal(0, noise, (60, 1))
        right += compare(paper, 1, ours, margin, same_encoder=False).verdict == "reproduced"
    assert right / trials == pytest.approx(ceiling(margin, noise), abs=0.06)


@pytest.mark.parametrize("shortfall", [1.0, 1.5])
def test_a_cell_beyond_the_margin_is_rarely_within_or_reproduced(shortfall):
    """The mean alone would let every fourth cell that is one and a half margins off pass."""
    rng, trials, wrong = np.random.default_rng(1), 1500, 0
    for _ in range(trials):
        paper, ours = _simulated(rng, 50 - 2 * shortfall, 3, 0.8, 1.5)
        verdict = compare(paper, 5, ours, 2.0, same_encoder=False).verdict
        wrong += verdict in ("within", "reproduced")
    assert wrong / trials <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)


def test_a_row_by_hand():
    a = Scaled(np.array([[49.0, 51.0, 50.0]]), 52.0, 0.1, 2.0, exact=False)
    b = Scaled(np.array([[9.0, 9.5, 10.0]]), 10.0, 0.1, 0.5, exact=False)
    found = row_gain([a, b], 5, same_encoder=True)
    z = ((np.array([49.0, 51, 50]) - 52) / 2 + (np.array([9.0, 9.5, 10]) - 10) / 0.5) / 2
    rounding = np.sqrt((0.1 / 2) ** 2 + (0.1 / 0.5) ** 2) / 2
    error = np.sqrt(z.var(ddof=1) * (1 / 3 + 1 / 5) + rounding**2 / 12)
    assert found.mean == pytest.approx(z.mean())
    assert found.error == pytest.approx(error)
    assert found.p_at_least(-1) == pytest.approx(stats.t(2).cdf((z.mean() + 1) / error))


def test_a_row_of_cells_of_which_some_are_exact_and_some_differ_in_draws():
    exact = Scaled(np.array([[49.0, 51.0]]), 50.0, 0.1, 2.0, exact=True)
    drawn = Scaled(np.array([[9.0, 9.5, 10.0]]), 10.0, 0.1, 0.5, exact=False)
    both = row_gain([exact, drawn], 5, same_encoder=True)
    assert both.mean == pytest.approx(-0.5)
    assert both.error is not None
    alone = row_gain([exact], 5, same_encoder=True)
    assert (alone.mean, alone.error, alone.p_at_least(-1.0)) == (0.0, None, 1.0)
    lower = Scaled(np.array([[0.3]]), 0.2, 0.01, -0.05, exact=True)
    assert row_gain([lower], 1, same_encoder=True).mean == pytest.approx(-2), "lower is better"
    single = Scaled(np.array([[9.0]]), 10.0, 0.1, 0.5, exact=False)
    assert row_gain([single, drawn], 1, same_encoder=True).error is None, "one draw of one number"
