"""Against scikit-learn, by hand, and on partitions whose agreement is known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma
from sklearn import metrics

from protobench.mutual_information import agreement, expected_mutual_information, ross


@pytest.mark.filterwarnings("ignore:The number of unique classes")  # scikit-learn 1.7's
@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.integers(2, 400),
    st.integers(1, 40),
    st.integers(1, 40),
    st.floats(0, 1),
    st.integers(0, 10**6),
)
def test_equals_scikit_learn(n, clusters, classes, coupling, seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    x = np.where(rng.random(n) < coupling, y % clusters, rng.integers(0, clusters, n))
    ours = agreement(x, y)
    if (
        len(set(x.tolist())) > 1 or len(set(y.tolist())) > 1
    ):  # where both are trivial, conventions differ
        assert ours["ami"] == pytest.approx(metrics.adjusted_mutual_info_score(y, x), abs=1e-8)
        assert ours["ami_max"] == pytest.approx(
            metrics.adjusted_mutual_info_score(y, x, average_method="max"), abs=1e-8
        )
        assert ours["nmi"] == pytest.approx(metrics.normalized_mutual_info_score(y, x), abs=1e-8)
        assert ours["ari"] == pytest.approx(metrics.adjusted_rand_score(y, x), abs=1e-8)
    purity = sum(np.bincount(y[x == c]).max() for c in set(x.tolist())) / n
    assert ours["purity"] == pytest.approx(purity)


def test_identical_partitions_agree_fully_whatever_their_labels():
    y = np.repeat(np.arange(30), np.arange(1, 31))
    for scores in (agreement(y, y), agreement((y * 7 + 3) % 101, y)):
        assert all(value == pytest.approx(1.0) for value in scores.values())
    assert agreement(np.zeros(5, int), np.ones(5, int))["ami"] == 1.0
    for n in (2, 10, 100, 1000):
        assert agreement(np.arange(n), np.arange(n)[::-1])["ami"] == 1.0, (
            "all clusters are single images"
        )


def test_independent_partitions_agree_by_chance_only():
    rng = np.random.default_rng(0)
    found = [agreement(rng.integers(0, 500, 20_000), rng.integers(0, 20, 20_000)) for _ in range(5)]
    assert np.mean([scores["ami"] for scores in found]) == pytest.approx(0.0, abs=2e-3)
    assert np.mean([scores["nmi"] for scores in found]) > 0.05, (
        "unlike NMI, which many clusters raise by chance"
    )


def test_expected_information_of_two_by_two_by_hand():
    """Sizes (1, 1) and (1, 1): both of the two tables have one image a cell twice, so the
    information is always ln 2."""
    assert expected_mutual_information(np.array([1, 1]), np.array([1, 1])) == pytest.approx(
        np.log(2)
    )
    # sizes (2, 1), (2, 1): overlap of the large ones is 2 with p = 1/3, else 1
    apart = 2 / 3 * (1 / 3 * np.log(3 / 4) + 2 / 3 * np.log(3 / 2))
    together = 1 / 3 * (2 / 3 * np.log(3 / 2) + 1 / 3 * np.log(3))
    assert expected_mutual_information(np.array([2, 1]), np.array([2, 1])) == pytest.approx(
        apart + together
    )


def test_many_clusters_of_many_images_equal_scikit_learn():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 100, 30_000)
    x = np.where(rng.random(30_000) < 0.3, y * 10, rng.integers(0, 1500, 30_000))
    assert agreement(x, y)["ami"] == pytest.approx(
        metrics.adjusted_mutual_info_score(y, x), abs=1e-8
    )


@pytest.mark.parametrize("classes", [2, 5, 40])
def test_ross_is_scikit_learn_s_in_one_dimension(classes):
    """But for its rounding of the radius, which moves some m by one."""
    from sklearn.feature_selection._mutual_info import _compute_mi_cd

    rng = np.random.default_rng(classes)
    labels = np.concatenate([rng.integers(0, classes, 397), [90, 91, 91]])  # one alone, two alike
    x = rng.normal(size=400) + labels % 7
    assert ross(torch.from_numpy(x[:, None]), labels) == pytest.approx(
        _compute_mi_cd(x, labels, 3), abs=2e-3
    )


def test_ross_of_vectors_lies_between_none_and_all():
    rng = np.random.default_rng(0)
    labels = np.arange(2000) % 8
    noise = torch.from_numpy(rng.normal(size=(2000, 16)))
    assert ross(noise, labels) < 0.1
    assert ross(noise * 0.01 + torch.eye(16)[labels] * 10, labels) == pytest.approx(
        np.log(8), abs=0.01
    )
    assert 0.3 < ross(noise + torch.eye(16)[labels] * 3, labels) < np.log(8)
    assert ross(noise[:3], np.arange(3)) == 0, "classes of one image"


def test_ross_sees_nothing_in_nearly_equal_vectors_that_hold_nothing():
    """As a collapsed encoder gives them: the differences are in the last digits."""
    rng, labels = np.random.default_rng(0), np.arange(1000) % 5
    collapsed = (np.ones(32) / 32**0.5 + 1e-4 * rng.normal(size=(1000, 32))).astype(np.float32)
    assert ross(torch.from_numpy(collapsed), labels) < 0.1


def test_ross_counts_the_neighbours_of_a_case_by_hand():
    """Points 0, 1, 3 of class a, 2, 10 of class b: k = 2 in a, 1 in b; radii 3, 2, 3 and 8, 8; m
    with the point itself."""
    x, labels = (
        torch.tensor([[0.0], [1.0], [3.0], [2.0], [10.0]], dtype=torch.float64),
        np.array([0, 0, 0, 1, 1]),
    )
    m = [3, 3, 3, 4, 2]
    psi = digamma
    expected = (
        psi(5)
        + np.mean([psi(2)] * 3 + [psi(1)] * 2)
        - np.mean([psi(3)] * 3 + [psi(2)] * 2)
        - np.mean([psi(i) for i in m])
    )
    assert ross(x, labels) == pytest.approx(max(expected, 0), abs=1e-12)
