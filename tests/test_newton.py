import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.svm import LinearSVC

from evaluate import lowshot
from evaluate.svm import liblinear, newton
from evaluate.svm.support_sets import all_support_sets
from protobench.data.image_list import ImageList
from protobench.runtime.errors import UserError

pytestmark = pytest.mark.arithmetic


def _residual(x, positive, cost, weight, b):
    """Return the relative distance of b from 2 C_n y_n max(0, 1 - y_n f_n), which it equals only at
    the optimum."""
    y, c = np.where(positive, 1.0, -1.0), cost * np.where(positive, weight, 1.0)
    f = (x @ x.T + 1) @ b
    expected = 2 * c * y * np.maximum(0, 1 - y * f)
    return np.abs(b - expected).max() / max(np.abs(expected).max(), 1e-300)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(2, 60),
    st.integers(1, 40),
    st.sampled_from([1.0, 2.0, 7.5]),
    st.booleans(),
)
def test_the_optimum_is_reached_at_every_cost(seed, n, d, weight, repeats):
    rng = np.random.default_rng(seed)
    x = liblinear.normalise(rng.normal(size=(n, d)))
    if repeats:  # a pool holds an image once for every class that it was drawn for
        x = x[rng.integers(0, n, n)]
    positive = rng.random(n) < 0.3
    positive[:2] = True, False
    costs = tuple(rng.permutation(liblinear.GOYAL_COSTS)[:6].tolist())
    for cost, b in zip(costs, newton.path(newton.gram(x), positive, costs, weight), strict=True):
        assert _residual(x, positive, cost, weight, b) < 1e-7, cost


def test_two_rows_by_hand():
    """For x = 1 and x = -1 with equal weights the bias is 0 and w = 2 b, so that b = 2 C (1 - 2 b),
    which gives b = 2 C / (1 + 4 C)."""
    (b,) = newton.path(newton.gram(np.array([[1.0], [-1.0]])), np.array([True, False]), (0.5,))
    np.testing.assert_allclose(b, [1 / 3, -1 / 3], rtol=1e-12)


def test_steps_that_overshoot_are_shortened(monkeypatch):
    """At high costs in few dimensions a full step can raise the objective. The optimum is the same
    from every starting point."""
    lengths = []
    search = newton._line_search

    def recorded(*args):
        lengths.append(search(*args))
        return lengths[-1]

    monkeypatch.setattr(newton, "_line_search", recorded)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x, positive = rng.normal(size=(15, 2)), rng.random(15) < 0.5
        positive[:2] = True, False
        gram, y = newton.gram(x), np.where(positive, 1.0, -1.0)
        for start in (np.zeros(15), 100 * rng.normal(size=15), 100 * y):
            b = newton._newton(gram, y, np.full(15, 300.0), start)
            assert _residual(x, positive, 300.0, 1.0, b) < 1e-7
    assert min(lengths) < 1, "no start needed the line search, so this tests nothing"


@pytest.mark.parametrize("cost", [0.01, 0.5, 10.0])
def test_liblinear_converges_to_the_same_at_a_small_tolerance(cost):
    rng = np.random.default_rng(1)
    x, test = (liblinear.normalise(rng.normal(size=(n, 30))) for n in (80, 200))
    positive = x[:, 0] > 0.1
    theirs = LinearSVC(
        C=cost, class_weight={1: 2, -1: 1}, dual=True, tol=1e-10, max_iter=10**6, random_state=0
    )
    expected = theirs.fit(x, np.where(positive, 1, -1)).decision_function(test)
    ours = newton.decision(test, x, newton.path(newton.gram(x), positive, (cost,), 2.0))[:, 0]
    np.testing.assert_allclose(ours, expected, atol=2e-5)


@pytest.mark.parametrize("protocol", ["pcl", "goyal"])
def test_map_over_a_grid_is_that_of_liblinear(protocol, monkeypatch):
    rng = np.random.default_rng(2)
    directions = rng.normal(size=(5, 60))

    def split(n):
        labels = rng.choice([-1, 0, 1], (n, 5), p=[0.8, 0.05, 0.15])
        labels[np.arange(n), rng.integers(0, 5, n)] = 1
        return labels, np.maximum((labels == 1) @ directions + 2 * rng.normal(size=(n, 60)), 0)

    (labels, train), (test_labels, test) = split(600), split(400)
    images = ImageList("toy", None, tuple(map(str, range(600))), labels, tuple("abcde"))
    support_sets = all_support_sets(images, protocol, (1, 4), 2, 0, "keyed")
    costs = (0.01, 0.5, 10.0)
    exact = lowshot.score(train, test, test_labels, support_sets, costs, exact=True)

    def fit_to_convergence(self, positive, cost, weight):
        fitted = LinearSVC(
            C=cost,
            class_weight={1: weight, -1: 1},
            dual=True,
            tol=1e-10,
            max_iter=10**6,
            random_state=0,
        )
        fitted.fit(self.x, np.where(positive, 1, -1))
        return np.append(fitted.coef_[0], fitted.intercept_)

    monkeypatch.setattr(liblinear.Problem, "__init__", lambda self, x: setattr(self, "x", x))
    monkeypatch.setattr(liblinear.Problem, "fit", fit_to_convergence)
    published = lowshot.score(train, test, test_labels, support_sets, costs)
    assert [(run["k"], run["draw"], run["cost"]) for run in exact] == [
        (run["k"], run["draw"], run["cost"]) for run in published
    ]
    for ours, theirs in zip(exact, published, strict=True):
        assert ours["value"] == pytest.approx(theirs["value"], abs=0.01)
    assert len({run["value"] for run in exact}) > 3


def test_problems_without_a_solution_are_refused():
    x = liblinear.normalise(np.random.default_rng(0).normal(size=(8, 3)))
    with pytest.raises(UserError, match="all 8 training images are positive"):
        newton.path(newton.gram(x), np.ones(8, dtype=bool), (0.5,))
    x[2, 1] = np.inf
    with pytest.raises(UserError, match="NaN or infinity"):
        newton.gram(x)
    # equal rows in both classes: at a huge cost the system is singular but for rounding
    twice = np.ones((4, 2))
    with pytest.raises(UserError, match="no SVM found at the cost 1e\\+30") as refusal:
        newton.path(newton.gram(twice), np.array([True, False, True, False]), (1e30,))
    assert "largest costs" in str(refusal.value)


def test_one_cost_is_solved_by_liblinear_and_several_by_newton(tmp_path):
    one, several = (lowshot.Config(tmp_path, costs=costs) for costs in ((), (0.1, 1.0)))
    assert not one.exact
    assert "solver" not in one.params(), "records of a single cost keep their keys"
    assert several.exact
    assert several.params()["solver"] == "newton"
    assert lowshot.Config(tmp_path, protocol="goyal").exact
    assert not lowshot.Config(tmp_path, costs=(0.1, 1.0), dataset="places205").exact
    assert not lowshot.Config(tmp_path, costs=(0.1, 1.0), solver="liblinear").exact
    assert lowshot.Config(tmp_path, solver="newton").exact
