import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pretrain.moco import info_nce
from pretrain.pcl import PCL, concentration, draw_negatives, proto_nce
from pretrain.recipes import pcl

pytestmark = pytest.mark.arithmetic


def _naive_concentration(distance, assignment, k, temperature, alpha, singleton_rule, clip):
    """Eq. 12 and the released code's three steps, cluster by cluster."""
    phi = []
    for c in range(k):
        members = [d for d, a in zip(distance, assignment, strict=True) if a == c]
        phi.append(
            sum(members) / (len(members) * math.log(len(members) + alpha)) if members else 0.0
        )
    if singleton_rule:
        sizes = Counter(assignment)
        largest = max(p for c, p in enumerate(phi) if sizes[c] > 1)
        phi = [largest if sizes[c] <= 1 else p for c, p in enumerate(phi)]
    low, high = np.percentile(phi, clip[0]), np.percentile(phi, clip[1])
    phi = [min(max(p, low), high) for p in phi]
    return [temperature * p / (sum(phi) / k) for p in phi]


@pytest.mark.parametrize("singleton_rule", [True, False])
def test_concentration_equals_a_naive_loop(singleton_rule):
    rng = np.random.default_rng(0)
    assignment = np.concatenate(
        [rng.integers(0, 8, 60), [8]]
    )  # cluster 8 is a singleton, 9 would be empty
    distance = rng.uniform(0.1, 1.0, 61)
    ours = concentration(distance, assignment, 9, temperature=0.1, singleton_rule=singleton_rule)
    naive = _naive_concentration(
        distance, assignment.tolist(), 9, 0.1, 10.0, singleton_rule, (10, 90)
    )
    np.testing.assert_allclose(ours, naive, rtol=1e-12)


def test_concentration_by_hand():
    """Two clusters of sizes 1 and 2 with distances 1 | 0.5, 0.5; no rules from the code."""
    phi = concentration(
        np.array([1.0, 0.5, 0.5]),
        np.array([0, 1, 1]),
        2,
        temperature=0.2,
        singleton_rule=False,
        clip_percentiles=(0, 100),
    )
    raw = [1 / math.log(11), 1 / (2 * math.log(12))]
    np.testing.assert_allclose(phi, [0.2 * 2 * r / sum(raw) for r in raw])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 2)), min_size=1, max_size=40))
def test_concentration_is_finite_positive_and_has_the_mean_asked(points):
    assignment, distance = (np.array(column) for column in zip(*points, strict=True))
    phi = concentration(distance, assignment, 6, temperature=0.1)
    assert np.isfinite(phi).all()
    assert (phi > 0).all()
    assert phi.mean() == pytest.approx(0.1)


def test_tight_and_large_clusters_get_small_phi():
    assignment = np.repeat([0, 1, 2], [50, 50, 5])
    distance = np.where(assignment == 0, 0.1, 0.5)
    phi = concentration(distance, assignment, 3, temperature=0.1, clip_percentiles=(0, 100))
    assert phi[0] < phi[1] < phi[2]


def test_drawn_negatives_are_distinct_and_never_positive():
    generator = torch.Generator().manual_seed(0)
    positive = torch.tensor([3, 3, 7, 49])
    for _ in range(200):
        drawn = draw_negatives(positive, 50, 40, generator).tolist()
        assert len(set(drawn)) == 40
        assert not {3, 7, 49} & set(drawn)


def test_every_other_prototype_is_equally_likely():
    """Including the last one, which the released code left out until May 2022."""
    generator = torch.Generator().manual_seed(1)
    positive = torch.tensor([0, 5])
    counts = Counter(
        i for _ in range(3000) for i in draw_negatives(positive, 20, 6, generator).tolist()
    )
    observed = [counts[i] for i in range(20) if i not in (0, 5)]
    assert sum(observed) == 18_000
    # without replacement the counts vary less than the multinomial, so the chi-square test is
    # conservative
    assert stats.chisquare(observed).pvalue > 0.01


@pytest.mark.parametrize("positive", [[4], [1, 1], [0, 6]])
def test_every_set_of_negatives_is_equally_likely(positive):
    """Also where two images share a prototype, and where all that is left is drawn but for one or
    two."""
    generator = torch.Generator().manual_seed(2)
    drawn = Counter(
        frozenset(draw_negatives(torch.tensor(positive), 7, 4, generator).tolist())
        for _ in range(6000)
    )
    allowed = set(range(7)) - set(positive)
    sets = [frozenset(chosen) for chosen in itertools.combinations(sorted(allowed), 4)]
    assert drawn.keys() == set(sets)
    assert stats.chisquare([drawn[one] for one in sets]).pvalue > 0.01


def test_more_negatives_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="5 negatives beside 4 images' own, of 8 prototypes"):
        draw_negatives(torch.tensor([1, 2, 3, 4]), 8, 5, torch.Generator())


def _problem(seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = F.normalize(torch.randn(6, 8, generator=generator, dtype=torch.float64), dim=1)
    prototypes = F.normalize(torch.randn(12, 8, generator=generator, dtype=torch.float64), dim=1)
    phi = torch.rand(12, generator=generator, dtype=torch.float64) * 0.2 + 0.05
    return q, prototypes, phi, torch.tensor([2, 5, 2, 11, 0, 5])  # prototypes 2 and 5 twice


def _naive_proto_nce(q, prototypes, phi, positive, columns):
    total = 0.0
    for i in range(len(q)):
        weight = {j: math.exp(float(q[i] @ prototypes[j]) / float(phi[j])) for j in columns}
        total -= math.log(weight[int(positive[i])] / sum(weight.values()))
    return total / len(q)


def test_proto_nce_equals_a_naive_loop_over_all_prototypes():
    q, prototypes, phi, positive = _problem()
    expected = _naive_proto_nce(q, prototypes, phi, positive, range(12))
    assert float(proto_nce(q, prototypes, phi, positive, None)) == pytest.approx(
        expected, abs=1e-12
    )


def test_proto_nce_counts_a_shared_prototype_once():
    q, prototypes, phi, positive = _problem()
    negative = torch.tensor([1, 3, 8])
    expected = _naive_proto_nce(q, prototypes, phi, positive, sorted({2, 5, 11, 0} | {1, 3, 8}))
    assert float(proto_nce(q, prototypes, phi, positive, negative)) == pytest.approx(
        expected, abs=1e-12
    )


def test_drawing_every_negative_equals_comparing_all():
    q, prototypes, phi, positive = _problem()
    rest = torch.tensor([j for j in range(12) if j not in {2, 5, 11, 0}])
    torch.testing.assert_close(
        proto_nce(q, prototypes, phi, positive, rest), proto_nce(q, prototypes, phi, positive, None)
    )


RECIPE = replace(
    pcl.MINI,
    num_prototypes=(4, 8),
    warmup=1,
    queue=16,
    dim=8,
    temperature=0.1,
    train=replace(pcl.MINI.train, batch_size=8),
)


def _method(**changes):
    torch.manual_seed(0)
    return PCL(replace(RECIPE, **changes), seed=0)


def _features(n=60):
    return F.normalize(torch.randn(n, 8, generator=torch.Generator().manual_seed(3)), dim=1).numpy()


def test_the_e_step_gives_each_image_its_nearest_prototype():
    method = _method()
    features = _features()
    log = method.start_epoch(1, lambda module: features)
    assert [tuple(p.shape) for p, _, _ in method.prototypes] == [(4, 8), (8, 8)]
    for prototypes, phi, assignment in method.prototypes:
        torch.testing.assert_close(prototypes.norm(dim=1), torch.ones(len(prototypes)))
        assert float(phi.mean()) == pytest.approx(0.1, abs=1e-6)
        means = torch.stack(
            [torch.from_numpy(features)[assignment == c].mean(0) for c in range(len(prototypes))]
        )
        torch.testing.assert_close(F.normalize(means, dim=1), prototypes, atol=1e-4, rtol=0)
    assert log["clusters_4_empty"] == 0


def test_the_loss_is_eq_11():
    method = _method()
    method.start_epoch(1, lambda module: _features())
    views, index, queue = (
        [torch.randn(8, 3, 32, 32) for _ in range(2)],
        torch.arange(20, 28),
        method.queue.clone(),
    )
    torch.manual_seed(1)
    loss = method.loss(views, index)
    twin = _method()
    twin.load_state_dict({k: v for k, v in _method().state_dict().items()})
    q, k = twin.embed(views)
    expected = info_nce(q, k, queue, 0.1)
    terms = [
        proto_nce(q, p, phi, assignment[index], None) for p, phi, assignment in method.prototypes
    ]
    torch.testing.assert_close(loss, expected + (terms[0] + terms[1]) / 2)


def test_warm_up_is_moco():
    method = _method()
    assert method.start_epoch(0, lambda module: pytest.fail("no E-step in warm-up")) == {}
    queue = method.queue.clone()
    views = [torch.randn(8, 3, 32, 32) for _ in range(2)]
    loss = method.loss(views, torch.arange(8))
    q, k = _method().embed(views)
    torch.testing.assert_close(loss, info_nce(q, k, queue, 0.1))


def test_switches_reach_what_they_name():
    fixed = _method(concentration="fixed")
    fixed.start_epoch(1, lambda module: _features())
    assert all(torch.equal(phi, torch.full_like(phi, 0.1)) for _, phi, _ in fixed.prototypes)
    unclipped = _method(clip_percentiles=(0.0, 100.0))
    unclipped.start_epoch(1, lambda module: _features())
    clipped = _method()
    clipped.start_epoch(1, lambda module: _features())
    assert unclipped.prototypes[1][1].std() > clipped.prototypes[1][1].std()


def test_negatives_are_drawn_only_where_there_are_more_than_needed():
    method = _method(num_negatives=3, num_prototypes=(8, 30))
    assert method._negatives(0, torch.arange(8), 8) is None
    drawn = method._negatives(1, torch.arange(8), 30)
    assert drawn is not None
    assert len(drawn) == 3
    assert torch.equal(drawn, method._negatives(1, torch.arange(8), 30)), (
        "a function of seed, epoch, step and granularity"
    )
