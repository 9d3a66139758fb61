import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from evaluate.svm.average_precision import average_precision


def _naive(scores, positive, counted):
    """Compute precision and recall image by image, then the area under the envelope with sentinels
    (0, 0) and (1, 0)."""
    ranking = sorted(zip(-scores, positive, counted, strict=True), key=lambda row: row[0])
    ranked = [is_hit for _, is_hit, is_counted in ranking if is_counted]
    total, hits, recall, precision = sum(ranked), 0, [0.0], [0.0]
    for rank, hit in enumerate(ranked, start=1):
        hits += hit
        recall.append(hits / total)
        precision.append(hits / rank)
    recall.append(1.0)
    precision.append(0.0)
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return sum((recall[i + 1] - recall[i]) * precision[i + 1] for i in range(len(recall) - 1))


def _one(scores, positive, counted=None):
    counted = None if counted is None else np.array(counted)[:, None]
    return float(
        average_precision(np.array(scores)[:, None], np.array(positive)[:, None], counted)[0]
    )


def test_worked_examples():
    assert _one([3.0, 2.0, 1.0], [True, True, False]) == 1.0
    assert _one([3.0, 2.0, 1.0], [False, False, True]) == pytest.approx(1 / 3)
    # hits at ranks 1, 3, 4: precisions 1, 2/3, 3/4; the envelope lifts 2/3 to 3/4
    assert _one([5.0, 4.0, 3.0, 2.0, 1.0], [True, False, True, True, False]) == pytest.approx(
        (1 + 0.75 + 0.75) / 3
    )


def test_scikit_learn_computes_another_value():
    scores, positive = [5.0, 4.0, 3.0, 2.0, 1.0], [True, False, True, True, False]
    assert average_precision_score(positive, scores) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_difficult_images_are_left_out():
    assert _one([3.0, 2.0, 1.0], [False, True, False], counted=[False, True, True]) == 1.0
    assert _one([3.0, 2.0, 1.0], [False, True, False]) == 0.5


@given(st.integers(0, 10_000), st.integers(2, 40))
def test_equals_a_naive_loop(seed, n):
    rng = np.random.default_rng(seed)
    scores, positive = rng.normal(size=(n, 3)), rng.random((n, 3)) < 0.4
    counted = rng.random((n, 3)) < 0.8
    positive[0] = counted[0] = True
    ours = average_precision(scores, positive, counted)
    for column in range(3):
        assert ours[column] == pytest.approx(
            _naive(scores[:, column], positive[:, column], counted[:, column]), abs=1e-12
        )


@given(st.integers(0, 10_000), st.integers(2, 40), st.sampled_from([1, 2, 5]))
def test_ties_keep_the_order_of_the_rows(seed, n, values):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, values, (n, 1)).astype(float)
    positive = rng.random((n, 1)) < 0.4
    positive[rng.integers(n)] = True
    untied = scores - 1e-6 * np.arange(n)[:, None]
    assert average_precision(scores, positive) == pytest.approx(
        average_precision(untied, positive), abs=1e-12
    )
