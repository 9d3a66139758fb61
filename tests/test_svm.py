import numpy as np
import pytest
from sklearn.svm import LinearSVC

from evaluate import fullsvm, lowshot
from evaluate.svm import newton
from evaluate.svm.liblinear import (
    GOYAL_COSTS,
    LARGEST_COST,
    Problem,
    check_costs,
    decision,
    normalise,
)
from protobench.runtime.errors import UserError

pytestmark = pytest.mark.arithmetic


def _data(n=80, d=30, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x, x[:, 0] + 0.3 * rng.normal(size=n) > 0


@pytest.mark.parametrize("cost", [0.01, 0.5, 10.0])
@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_the_optimum_is_that_of_scikit_learn(cost, weight):
    x, positive = _data()
    theirs = LinearSVC(
        C=cost,
        class_weight={1: weight, -1: 1},
        loss="squared_hinge",
        dual=True,
        tol=1e-8,
        max_iter=100_000,
        intercept_scaling=1.0,
        random_state=0,
    ).fit(x, np.where(positive, 1, -1))
    ours = decision(x, Problem(x).fit(positive, cost, weight)[None])[:, 0]
    np.testing.assert_allclose(ours, theirs.decision_function(x), atol=2e-3)


@pytest.mark.parametrize("first_is_positive", [True, False])
def test_the_sign_does_not_depend_on_the_order_of_the_labels(first_is_positive):
    """LIBLINEAR takes the first label it meets as the positive one."""
    x, positive = _data()
    order = np.argsort(positive != first_is_positive, kind="stable")
    x, positive = x[order], positive[order]
    assert positive[0] == first_is_positive
    scores = decision(x, Problem(x).fit(positive, 1.0)[None])[:, 0]
    assert scores[positive].mean() > scores[~positive].mean()


def test_a_fit_does_not_depend_on_earlier_fits():
    x, positive = _data()
    problem = Problem(x)
    first = problem.fit(positive, 0.5)
    problem.fit(~positive, 3.0)
    np.testing.assert_array_equal(problem.fit(positive, 0.5), first)


def test_what_liblinear_would_accept_silently_is_refused():
    x, _ = _data()
    x[3, 4] = np.nan
    with pytest.raises(UserError, match="NaN"):
        Problem(x)
    with pytest.raises(UserError, match="all 80 training images are negative"):
        Problem(_data()[0]).fit(np.zeros(80, dtype=bool), 0.5)
    with pytest.raises(UserError, match="positive"):
        Problem(_data()[0]).fit(np.ones(80, dtype=bool), 0.5)


def test_training_and_test_features_that_are_not_finite_are_refused():
    """NaN among the test features would give NaN scores, and ranking them a plausible number."""
    x, _ = _data()
    for wrong in (np.nan, np.inf):
        x[3, 4] = wrong
        with pytest.raises(UserError, match="NaN"):
            normalise(x)


@pytest.mark.parametrize("evaluation", [fullsvm, lowshot])
@pytest.mark.parametrize("costs", [(1e5,), (0.5, 1001.0), ("inf",), (-1.0,), (0.5, 0.5)])
def test_both_evaluations_refuse_the_same_costs_before_anything_is_read(
    command, tmp_path, evaluation, costs
):
    code, _, err = command(
        evaluation.EVALUATION.main, "--ckpt", tmp_path / "absent.pth", "--costs", *costs
    )
    assert code == 2
    assert "--costs must be different positive numbers of at most 1000, not" in err
    check_costs(GOYAL_COSTS)
    check_costs((LARGEST_COST,))


def test_liblinear_reaches_the_optimum_at_the_largest_cost_but_not_far_beyond():
    """The features are correlated, as a network's are: independent ones are easy at any cost."""
    rng = np.random.default_rng(0)
    scales = 1 / np.arange(1.0, 513.0)
    z = rng.normal(size=(320, 512)) * scales
    rotation = np.linalg.qr(rng.normal(size=(512, 512)))[0]
    x = normalise(np.maximum(0, z @ rotation * np.sqrt(512) / np.linalg.norm(scales) + 0.5))
    score = z[:, :20].sum(1)
    positive = score > np.quantile(score, 0.9)
    with_bias, y = np.hstack([x, np.ones((320, 1))]), np.where(positive, 1.0, -1.0)

    def excess(cost):
        def objective(w):
            hinge = np.maximum(0, 1 - y * (with_bias @ w))
            return 0.5 * w @ w + cost * np.where(positive, 2, 1) @ hinge**2

        (b,) = newton.path(newton.gram(x), positive, (cost,), 2.0)
        return objective(Problem(x).fit(positive, cost, 2.0)) / objective(with_bias.T @ b) - 1

    assert excess(LARGEST_COST) < 1e-3
    assert excess(100 * LARGEST_COST) > 2e-3
