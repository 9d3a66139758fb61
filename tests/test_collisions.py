"""The collision dial: what it weighs, and that labels set it and nothing else."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cdist
from tiny import tiny

from pretrain import loop
from pretrain.collisions import UNKNOWN, Collisions, clusters_within_classes, log_weights
from pretrain.moco import info_nce
from pretrain.recipes import collisions, moco, pcl
from pretrain.recipes.collisions import collision_rate, dial
from protobench.checkpoints import encoders
from protobench.runtime.errors import UserError

pytestmark = pytest.mark.arithmetic
MOCO, PCL = tiny(moco.MINI), tiny(pcl.MINI, num_prototypes=(20, 30))


def _unit(*shape, seed):
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(drawn, dim=1)


# The equation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, 16.0])
def test_weighted_info_nce_and_its_gradient_equal_a_naive_loop(weight):
    q, k, queue, temperature = _unit(4, 8, seed=0), _unit(4, 8, seed=1), _unit(7, 8, seed=2), 0.2
    label, queue_label = [0, 1, 1, 2], [0, 1, UNKNOWN, 1, 2, 2, 2]
    q.requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for i in range(4):
        positive = torch.exp(q[i] @ k[i] / temperature)
        negatives = sum(
            (weight if label[i] == queue_label[j] else 1.0)
            * torch.exp(q[i] @ queue[j] / temperature)
            for j in range(7)
        )
        total = total - torch.log(positive / (positive + negatives))
    (expected,) = torch.autograd.grad(total / 4, q)
    weights = log_weights(torch.tensor(label), torch.tensor(queue_label), weight)
    loss = info_nce(q, k, queue, temperature, weights)
    (found,) = torch.autograd.grad(loss, q)
    assert float(loss.detach()) == pytest.approx(
        float(total.detach() / 4), rel=1e-6
    )  # log w is a float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_a_weight_stands_for_so_many_negatives():
    """w = 3 gives the loss of a queue that holds the colliding key three times."""
    q, k, queue = _unit(1, 8, seed=0), _unit(1, 8, seed=1), _unit(3, 8, seed=2)
    thrice = torch.cat([queue, queue[:1], queue[:1]])
    weights = log_weights(torch.tensor([5]), torch.tensor([5, 4, UNKNOWN]), 3.0)
    assert float(info_nce(q, k, queue, 0.1, weights)) == pytest.approx(
        float(info_nce(q, k, thrice, 0.1)), rel=1e-6
    )


def test_without_weight_colliding_keys_are_left_out():
    q, k, queue = _unit(1, 8, seed=0), _unit(1, 8, seed=1), _unit(3, 8, seed=2)
    weights = log_weights(torch.tensor([5]), torch.tensor([5, 4, UNKNOWN]), 0.0)
    assert float(info_nce(q, k, queue, 0.1, weights)) == pytest.approx(
        float(info_nce(q, k, queue[1:], 0.1)), rel=1e-12
    )


def test_the_rate_by_hand():
    assert collision_rate(0, 20) == 0
    assert collision_rate(1, 20) == 0.05
    assert collision_rate(16, 20) == pytest.approx(0.05 * 16 / (0.05 * 16 + 0.95))
    drawn = np.random.default_rng(0).integers(0, 20, 100_000)
    mass = np.where(drawn == 3, 16.0, 1.0)
    assert mass[drawn == 3].sum() / mass.sum() == pytest.approx(collision_rate(16, 20), abs=0.01)


# Labels set the dial and nothing else -------------------------------------------------------------


def _weights(recipe, images, folder):
    encoder = encoders.load(loop.pretrain(recipe, images, folder, seed=1))
    return encoder.backbone.state_dict()


def _equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


@pytest.fixture(scope="module")
def permuted_images(train_images):
    """The same images, whose labels say nothing. (Images in memory: the fingerprint, and with it
    the order and the views, is of pixels.)"""
    labels = np.random.default_rng(0).permutation(train_images.labels)
    return replace(train_images, labels=labels)


@pytest.mark.parametrize("recipe", [MOCO, PCL], ids=["moco", "pcl"])
def test_at_weight_1_the_weights_are_those_of_the_plain_method_bit_for_bit(
    recipe, train_images, permuted_images, tmp_path
):
    plain = _weights(recipe, train_images, tmp_path / "plain")
    assert _equal(plain, _weights(dial(recipe, 1.0), train_images, tmp_path / "dial"))
    assert _equal(plain, _weights(dial(recipe, 1.0), permuted_images, tmp_path / "permuted"))


@pytest.mark.parametrize("weight", [0.0, 16.0])
def test_at_another_weight_they_depend_on_the_labels(
    weight, train_images, permuted_images, tmp_path
):
    recipe = dial(tiny(moco.MINI, epochs=1), weight)
    plain = _weights(replace(recipe, weight=1.0), train_images, tmp_path / "plain")
    right = _weights(recipe, train_images, tmp_path / "right")
    wrong = _weights(recipe, permuted_images, tmp_path / "wrong")
    assert not _equal(plain, right)
    assert not _equal(right, wrong)


def test_the_names_of_classes_do_not_matter(train_images, tmp_path):
    """Only which images are of one class enters."""
    renamed = replace(train_images, labels=(train_images.labels + 7) % 20)
    recipe = dial(tiny(pcl.MINI), 16.0)
    right = _weights(recipe, train_images, tmp_path / "right")
    assert _equal(right, _weights(recipe, renamed, tmp_path / "renamed"))


def test_the_dial_leaves_the_rest_of_a_recipe_as_it_is():
    for recipe in (moco.MINI, pcl.MINI):
        dialled = dial(recipe, 16.0)
        assert all(
            getattr(dialled, field.name) == getattr(recipe, field.name) for field in fields(recipe)
        )
    assert dial(moco.MINI).num_prototypes == ()


# The queue ----------------------------------------------------------------------------------------


def _method(**changes):
    torch.manual_seed(0)
    recipe = replace(
        dial(moco.MINI, 16.0), queue=24, train=replace(moco.MINI.train, batch_size=8), **changes
    )
    return Collisions(recipe, torch.arange(100) % 20, seed=0)


def test_the_queue_knows_the_labels_of_its_keys():
    method = _method()
    assert (method.queue_label == UNKNOWN).all()
    expected = torch.full((24,), UNKNOWN)
    for step in range(5):
        index = torch.randperm(100, generator=torch.Generator().manual_seed(step))[:8]
        method.loss([torch.randn(8, 3, 32, 32) for _ in range(2)], index).backward()
        place = step * 8 % 24
        expected[place : place + 8] = index % 20
        assert torch.equal(method.queue_label, expected)
    assert "queue_label" in method.state_dict()
    assert "labels" not in method.state_dict(), "they come from the data"


def test_the_keys_a_queue_starts_with_are_of_no_class():
    weights = log_weights(torch.arange(20), _method().queue_label, 16.0)
    assert not weights.any()


# Prototypes ---------------------------------------------------------------------------------------


def _blobs():
    """Three classes of 30 images, each of two far groups of 20 and 10."""
    rng = np.random.default_rng(0)
    centre = 10 * rng.normal(size=(6, 5))
    group = np.repeat(np.arange(6), [20, 10] * 3)
    order = rng.permutation(90)
    x = (centre[group] + rng.normal(size=(90, 5))).astype(np.float32)[order]
    return x, (group // 2)[order], group[order]


def test_clusters_within_classes_are_pure_and_those_of_each_class():
    x, label, group = _blobs()
    found = clusters_within_classes(x, label, 6, seed=0, niter=20, nredo=5)
    for cluster in range(6):
        members = found.assignment == cluster
        assert len(set(label[members])) == 1
        assert len(set(group[members])) == 1, "two clusters find the two groups"
        np.testing.assert_allclose(found.centroids[cluster], x[members].mean(0), rtol=1e-4)
    distance = cdist(x, found.centroids)[np.arange(90), found.assignment]
    np.testing.assert_allclose(found.distance, distance, rtol=1e-3)


def test_clusters_are_shared_out_among_classes():
    x, label, _ = _blobs()
    found = clusters_within_classes(x, label, 7, seed=0, niter=5, nredo=1)
    assert sorted(len(set(found.assignment[label == c])) for c in range(3)) == [2, 2, 3]
    assert set(found.assignment) == set(range(7))


def _e_step(prototypes, seed=0):
    torch.manual_seed(0)
    recipe = dial(tiny(pcl.MINI, num_prototypes=(3, 6), warmup=0), prototypes=prototypes)
    x, label, _ = _blobs()
    method = Collisions(recipe, torch.from_numpy(label), seed)
    method.start_epoch(0, lambda module: x)
    return method


def test_permuted_prototypes_keep_all_but_who_belongs_to_whom():
    plain, permuted, other = _e_step("clusters"), _e_step("permuted"), _e_step("permuted", seed=1)
    for (centroids, phi, image), (c, p, i), (_, _, j) in zip(
        plain.prototypes, permuted.prototypes, other.prototypes, strict=True
    ):
        assert torch.equal(centroids, c)
        assert torch.equal(phi, p)
        assert torch.equal(image.bincount(), i.bincount())
        assert not torch.equal(image, i)
        assert not torch.equal(i, j)
    before = permuted.prototypes[0][2]
    permuted.steps += 10
    permuted.start_epoch(1, lambda module: _blobs()[0])
    assert not torch.equal(before, permuted.prototypes[0][2]), "drawn anew in every epoch"


def test_prototypes_of_classes_are_of_one_class_each():
    method = _e_step("classes")
    for centroids, phi, image in method.prototypes:
        assert torch.isfinite(phi).all()
        torch.testing.assert_close(centroids.norm(dim=1), torch.ones(len(centroids)))
        for cluster in image.unique():
            assert len(method.labels[image == cluster].unique()) == 1


def test_moco_clusters_nothing():
    def refuse(module):
        raise AssertionError("features for no prototypes")

    method = _method(warmup=0)
    assert method.start_epoch(0, refuse) == {}
    assert method.prototypes == []


# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "classes", "complaint"),
    [
        (dial(MOCO, -1.0), 20, "--weight -1"),
        (dial(MOCO, math.nan), 20, "--weight nan"),
        (dial(MOCO, math.inf), 20, "--weight inf"),
        (dial(MOCO), 1, "all of one class"),
        (dial(tiny(pcl.MINI), prototypes="classes"), 20, "8 prototypes, each of one class, for 20"),
        (dial(replace(PCL, num_prototypes=(300,))), 20, "300 clusters requested of 200 images"),
    ],
)
def test_what_cannot_be_trained_is_refused(recipe, classes, complaint):
    from pretrain.collisions import build

    with pytest.raises(UserError, match=complaint):
        build(recipe, torch.arange(200) % classes, classes, 0)


def test_named_recipes_turn_the_dial():
    assert {recipe.weight for recipe in collisions.RECIPES.values()} == {16.0}
