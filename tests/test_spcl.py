import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from pretrain import loop, optim, spcl
from pretrain.augment import loader
from pretrain.recipes import simclr, supervised
from pretrain.recipes import spcl as spcl_recipes
from pretrain.simclr import nt_xent
from pretrain.spcl import (
    contrastive_loss,
    draw_batches,
    metric_loss,
    prototype_loss,
    symmetric_cross_entropy,
)
from protobench.checkpoints import encoders
from protobench.data import image_list
from protobench.kmeans import kmeans
from protobench.runtime import cores
from protobench.runtime.errors import UserError

pytestmark = pytest.mark.arithmetic

TINY = replace(
    spcl_recipes.MINI,
    num_prototypes=(8,),
    train=replace(spcl_recipes.MINI.train, epochs=2, batch_size=16),
)


def _unit(*shape, seed=0):
    return F.normalize(
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64),
        dim=-1,
    )


# Equations ----------------------------------------------------------------------------------------


def _naive_contrastive(a, b, image, temperature, decoupled):
    """Eqs. 1 and 2 view by view."""
    z, number, total = [*a, *b], [*image, *image], 0.0
    for i in range(len(z)):
        partner = (i + len(a)) % len(z)
        positive = math.exp(float(z[i] @ z[partner]) / temperature)
        rest = sum(
            math.exp(float(z[i] @ z[j]) / temperature)
            for j in range(len(z))
            if number[j] != number[i]
        )
        total -= math.log(positive / (rest + (0 if decoupled else positive)))
    return total / len(z)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("image", [[0, 1, 2, 3, 4], [7, 3, 7, 9, 3]])
def test_contrastive_loss_equals_a_naive_loop(decoupled, image):
    """With images drawn twice, too."""
    a, b = _unit(5, 6), _unit(5, 6, seed=1)
    ours = contrastive_loss(a, b, torch.tensor(image), 0.3, decoupled)
    assert float(ours) == pytest.approx(_naive_contrastive(a, b, image, 0.3, decoupled), abs=1e-13)


def test_contrastive_loss_is_simclr_s_where_no_image_comes_twice():
    a, b = _unit(8, 6), _unit(8, 6, seed=1)
    torch.testing.assert_close(contrastive_loss(a, b, torch.arange(8), 0.2), nt_xent(a, b, 0.2))


def test_contrastive_loss_by_hand():
    """Two images at right angles, views equal: s is 1 with the other view, 0 with the two views of
    the other image."""
    a = torch.eye(2)
    assert float(contrastive_loss(a, a, torch.arange(2), 1.0)) == pytest.approx(
        -math.log(math.e / (math.e + 2)), abs=1e-6
    )
    assert float(contrastive_loss(a, a, torch.arange(2), 1.0, decoupled=True)) == pytest.approx(
        math.log(2) - 1, abs=1e-6
    )


def test_a_view_with_nothing_to_be_told_from_has_no_term():
    """One image drawn for a whole half: no other one in it."""
    a, image = _unit(2, 6), torch.tensor([3, 3])
    for decoupled in (False, True):
        assert float(contrastive_loss(a, a, image, 0.2, decoupled)) == pytest.approx(0, abs=1e-9)


def test_metric_loss_equals_a_naive_loop():
    same, different = _unit(12).reshape(2, 6, 1), 3 * _unit(20, seed=1).reshape(2, 10, 1)

    def cross_entropy(logit, label):
        p = 1 / (1 + math.exp(-float(logit)))
        return -math.log(p if label else 1 - p)

    terms = (
        [cross_entropy(x, 1) for x in same.flatten()],
        [cross_entropy(x, 0) for x in different.flatten()],
    )
    expected = (sum(terms[0]) / 12 + sum(terms[1]) / 20) / 2
    assert float(metric_loss(same, different)) == pytest.approx(expected, abs=1e-13)


def test_prototype_losses_equal_naive_loops():
    logits, prototype = 2 * _unit(6, 5), torch.tensor([0, 4, 2, 2, 1, 0])
    plain = symmetric = 0.0
    for row, y in zip(logits.tolist(), prototype.tolist(), strict=True):
        p = [math.exp(v) / sum(map(math.exp, row)) for v in row]
        q = [float(k == y) for k in range(5)]
        plain -= math.log(p[y])
        symmetric += 6.0 * -math.log(p[y]) + 0.1 * -sum(
            pk * math.log(max(qk, 1e-4)) for pk, qk in zip(p, q, strict=True)
        )
    assert float(prototype_loss(logits, prototype)) == pytest.approx(plain / 6, abs=1e-13)
    assert float(symmetric_cross_entropy(logits, prototype, 6.0, 0.1)) == pytest.approx(
        symmetric / 6, abs=1e-13
    )


# The draw -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.integers(0, 9), min_size=4, max_size=60),
    st.sampled_from([4, 8, 20]),
    st.booleans(),
    st.integers(0, 99),
)
def test_pairs_share_a_group_and_the_others_do_not(group, size, one_anchor, seed):
    group = np.array(group)
    counts = np.bincount(group)
    if (counts > 0).sum() < 2 or counts.max() < 2:
        with pytest.raises(UserError, match=r"all images lie in one cluster|holds a single image"):
            draw_batches(group, 3, size, np.random.default_rng(seed))
        return
    batches = draw_batches(group, 3, size, np.random.default_rng(seed), one_anchor=one_anchor)
    assert batches.shape == (3, size)
    first, partner, other = np.split(batches, [size // 4, size // 2], 1)
    assert (first != partner).all()
    assert (group[first] == group[partner]).all()
    assert (group[np.concatenate([first, partner], 1)] != group[other]).all()
    assert (counts[group[first]] >= 2).all()
    if one_anchor:
        assert all(len(set(group[row])) == 1 for row in first)


def test_every_group_and_every_image_of_it_is_equally_likely():
    """Groups of 2, 3, 5, 1 and 0 images: p is one of the first three, q one of the four."""
    group = np.repeat([0, 1, 2, 4], [2, 3, 5, 1])
    batches = draw_batches(group, 1500, 8, np.random.default_rng(0))
    first, partner, other = np.split(batches, [2, 4], 1)
    p = Counter(group[first].ravel())
    assert set(p) == {0, 1, 2}
    assert stats.chisquare([p[g] for g in (0, 1, 2)]).pvalue > 0.01
    for of_group in (1, 2):
        members = np.flatnonzero(group == of_group)
        for drawn in (first, partner):
            counts = Counter(drawn[group[drawn] == of_group])
            assert stats.chisquare([counts[i] for i in members]).pvalue > 0.01
    of_zero = group[other[:, :2][group[first] == 0]]
    assert stats.chisquare([(of_zero == g).sum() for g in (1, 2, 4)]).pvalue > 0.01


def test_an_image_drawn_again_is_seen_in_other_views(train_images):
    chosen = np.array([[5, 5, 7, 5], [7, 1, 5, 2]])
    assert loader.numbered(chosen, 200).tolist() == [[5, 205, 7, 405], [207, 1, 605, 2]]
    permutation = np.random.default_rng(0).permutation(200).reshape(20, 10)
    np.testing.assert_array_equal(loader.numbered(permutation, 200), permutation)
    for memory in (True, False):
        source = (
            loader.TensorViews(TINY, [train_images.read(i) for i in range(200)], 0, "cpu")
            if memory
            else loader.FolderViews(TINY, train_images, 0, "cpu", 0)
        )
        (a, b), index = next(source.batches(1, 2, chosen))
        assert index.tolist() == [5, 5, 7, 5]
        seen = [
            *a[[0, 1, 3]],
            *b[[0, 1, 3]],
            *torch.cat(list(source.one_view(1, source.parts())))[[5]],
        ]
        assert all(not torch.equal(x, y) for i, x in enumerate(seen) for y in seen[:i])


# Pseudo-labels belong to images -------------------------------------------------------------------

NUMBERED = replace(TINY, augment=replace(TINY.augment, jitter_p=0.0, grayscale=0.0))


class _Colour(torch.nn.Module):
    """A backbone that reads the number that an image's colour says."""

    out_channels = 128

    def forward(self, x):
        pixel = x[:, :, 16, 16] * torch.tensor(TINY.input.std) + torch.tensor(TINY.input.mean)
        red, green, _ = (pixel * 255).round().unbind(1)
        number = (green * 16 + red / 10).round()
        angle = number.to(torch.float64)[:, None] * 2 * math.pi / 97
        return torch.cat([angle.cos(), angle.sin(), torch.zeros(len(x), 126)], 1).float()


def _number(view):
    """Of each image in a batch of views, by its colour."""
    pixel = view[:, :, 16, 16] * torch.tensor(TINY.input.std) + torch.tensor(TINY.input.mean)
    red, green, _ = (pixel * 255).round().unbind(1)
    return (green * 16 + red / 10).round().long()


@pytest.fixture(scope="module")
def numbered_images(tmp_path_factory):
    """97 images of one colour each, which says their number; sorted into folders at random."""
    root = tmp_path_factory.mktemp("numbered")
    classes = np.random.default_rng(0).integers(0, 3, 97)
    for number, label in enumerate(classes):
        (root / f"class{label}").mkdir(exist_ok=True)
        Image.new("RGB", (40, 40), (number % 16 * 10, number // 16, 99)).save(
            root / f"class{label}" / f"{number:02d}.png"
        )
    found = image_list.image_folder(root, "numbered")
    numbers = [int(path.split("/")[1][:2]) for path in found.paths]
    return found, np.array(numbers)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("workers", [None, 0, 1, 3])
def test_pseudo_labels_belong_to_their_images_in_any_order(
    numbered_images, workers, seed, monkeypatch
):
    """By shuffling (two seeds), in memory (None) or by 0 to 3 workers, and in the parts that 1, 2
    or 4 processes would take: the pixels of every row of every batch are those of the image whose
    prototype it is given, as an own clustering finds it."""
    monkeypatch.setattr(cores, "usable", lambda: 8)
    monkeypatch.setattr(loader, "IN_MEMORY_BYTES", 2**28 if workers is None else 0)
    source, number_of = numbered_images
    method = spcl.build(NUMBERED, torch.from_numpy(source.labels), 3, seed)
    method.backbone = _Colour()
    opened = loader.open_views(NUMBERED, source, seed, "cpu", workers or 0)
    method.start_epoch(3, loop.Training(NUMBERED, method, opened).extract)
    (prototype_I,) = method.prototypes
    same = prototype_I[:, None] == prototype_I
    angle = torch.from_numpy(number_of)
    apart = (angle[:, None] - angle).abs()
    assert torch.minimum(apart, 97 - apart)[same].max() < 40, (
        "clusters are arcs of the circle that the numbers lie on"
    )
    by_number = dict(zip(number_of.tolist(), prototype_I.tolist(), strict=True))
    batches = method.draw_batches(3, 6)
    for world in (1, 2, 4):
        for rank in range(world):
            for pictures, index in opened.batches(
                3, 2, np.ascontiguousarray(batches[:, rank::world])
            ):
                for view in pictures:
                    shown = _number(view).tolist()
                    assert shown == number_of[index.numpy()].tolist()
                    assert [by_number[number] for number in shown] == prototype_I[index].tolist()


# The method ---------------------------------------------------------------------------------------


def _method(labels=None, **changes):
    torch.manual_seed(0)
    labels = torch.arange(60) % 5 if labels is None else labels
    return spcl.build(replace(TINY, **changes), labels, 5, seed=0)


def _extract(module, *, epoch, dtype):
    return (
        F.normalize(torch.randn(60, 8, generator=torch.Generator().manual_seed(3 + epoch)), dim=1)
        .numpy()
        .astype(dtype)
    )


def _step(**changes):
    method = _method(**changes)
    method.start_epoch(0, _extract)
    index = torch.from_numpy(method.draw_batches(0, 1)[0])
    pictures = [
        torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(v)) for v in range(2)
    ]
    return method, index, pictures


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"alpha": 0.1},
        {"beta": 0.0},
        {"gamma": 0.0},
        {"alpha": 0.0},
        {"num_prototypes": (8, 4)},
        {"negatives": "halves"},
        {"decoupled": True},
        {"symmetric": True},
        {"pairs": "labels"},
        {"prototypes": "labels"},
        {"distance": "norm"},
        {"metric_head": "linear"},
    ],
    ids=str,
)
def test_the_loss_is_eq_5(changes):
    method, index, pictures = _step(**changes)
    recipe, loss = method.recipe, method.loss(pictures, index)
    h = method.backbone(torch.cat(pictures)).view(2, 16, -1)
    z = F.normalize(method.projection(h.flatten(0, 1)), dim=1).view(2, 16, -1)
    expected = torch.zeros(())
    if recipe.alpha:
        parts = [slice(0, 16)] if recipe.negatives == "union" else [slice(0, 8), slice(8, 16)]
        terms = [
            contrastive_loss(
                z[0, part], z[1, part], index[part], recipe.temperature, recipe.decoupled
            )
            for part in parts
        ]
        expected = expected + recipe.alpha * sum(terms) / len(terms)
    if recipe.beta:  # anchor by anchor: a partner of p, an image of q, the same view
        same, different = [], []
        for view in range(2):
            for anchor in range(8):
                for found, other in ((same, (anchor + 4) % 8), (different, anchor + 8)):
                    distance = h[view, anchor] - h[view, other]
                    distance = (
                        distance.abs()
                        if recipe.distance == "elementwise"
                        else distance.norm().reshape(1)
                    )
                    found.append(method.metric(distance))
        expected = expected + recipe.beta * metric_loss(torch.cat(same), torch.cat(different))
    if recipe.gamma:
        terms = []
        found = [method.labels] if recipe.prototypes == "labels" else method.prototypes
        for head, prototype in zip(method.prototype_heads, found, strict=True):
            logits, y = head(h.flatten(0, 1)), torch.cat([prototype[index], prototype[index]])
            terms.append(
                symmetric_cross_entropy(logits, y, 0.1, 1.0)
                if recipe.symmetric
                else prototype_loss(logits, y)
            )
        expected = expected + recipe.gamma * sum(terms) / len(terms)
    torch.testing.assert_close(loss, expected)


def test_what_is_clustered_is_as_configured(monkeypatch):
    """A view of this epoch, whitened where asked, by k-means as the recipe has it."""
    seen = []

    def extract(module, **how):
        seen.append(how["epoch"])
        return _extract(module, **how)

    def cluster(x, k, **how):
        seen.append((x.shape[1], how["niter"], how["nredo"], how["points_per_centroid"]))
        return kmeans(x, k, **how)

    monkeypatch.setattr(spcl, "kmeans", cluster)
    _method(whiten=4, niter=7, nredo=3).start_epoch(5, extract)
    assert seen == [5, (4, 7, 3, 256)]


def test_groups_are_what_the_recipe_names():
    for changes, labelled in (
        ({}, False),
        ({"pairs": "labels"}, True),
        ({"prototypes": "labels"}, False),
    ):
        method = _method(**changes)
        method.start_epoch(0, _extract)
        found = kmeans(_extract(None, epoch=0, dtype=np.float16), 8, seed=0, nredo=1).assignment
        assert np.array_equal(method.groups, method.labels.numpy()) == labelled
        assert len(np.unique(method.groups)) == (5 if labelled else len(np.unique(found)))
        assert method.prototype_heads[0].out_features == (
            5 if changes.get("prototypes") == "labels" else 8
        )
    leaking = _method(pairs="labels")
    leaking.start_epoch(0, _extract)
    leaking.draw_batches(0, 50)
    assert leaking.pair_statistics == {"positives_of_one_class": 1.0, "negatives_of_one_class": 0.0}


def test_heads_start_anew_as_configured():
    for reset, anew in (
        ("prototype", {"prototype_heads"}),
        ("all", {"prototype_heads", "projection", "metric"}),
    ):
        method = _method(reset=reset)
        weights = []
        for epoch in (0, 1, 1):
            method.start_epoch(epoch, _extract)
            weights.append({name: tensor.clone() for name, tensor in method.named_parameters()})
            names = {id(parameter): name for name, parameter in method.named_parameters()}
            assert {names[id(parameter)].split(".")[0] for parameter in method.renewed()} == anew
        assert {
            name.split(".")[0]
            for name in weights[0]
            if not torch.equal(weights[0][name], weights[1][name])
        } == anew
        assert all(torch.equal(weights[1][name], weights[2][name]) for name in weights[0]), (
            "a function of seed and epoch"
        )
    fixed = _method(prototypes="labels")
    fixed.start_epoch(0, _extract)
    assert fixed.renewed() == [], "true classes keep their meaning"


def test_the_optimiser_forgets_renewed_heads(train_images):
    recipe = replace(TINY, num_prototypes=(4,))
    opened = loader.open_views(recipe, train_images, 0, "cpu", 0)
    method = spcl.build(recipe, torch.from_numpy(train_images.labels), 20, 0)
    training = loop.Training(recipe, method, opened)
    training.optimizer = optimizer = torch.optim.SGD(method.parameters(), 0.0, momentum=0.9)
    training.steps = 1
    for _ in range(2):
        training.epoch()
    head, trunk = method.prototype_heads[0].weight, method.backbone.conv1.weight
    torch.testing.assert_close(optimizer.state[head]["momentum_buffer"], head.grad)
    assert not torch.allclose(optimizer.state[trunk]["momentum_buffer"], trunk.grad)


@pytest.mark.parametrize("kind", ["sgd", "lars"])
def test_renewed_heads_keep_the_peak_rate(kind):
    for changes, apart in (
        ({}, {"prototype_heads"}),
        ({"renewed_rate": "scheduled"}, set()),
        ({"prototypes": "labels"}, set()),
        ({"reset": "all"}, {"prototype_heads", "projection", "metric"}),
    ):
        method = _method(**changes)
        train = replace(TINY.train, optimizer=kind, lr=0.5)
        optimizer = optim.optimizer(train, method, method.unscheduled())
        optim.set_rate(optimizer, 0.125)
        rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
        assert len(rate) == len(trained)
        for name, parameter in trained.items():
            assert rate[id(parameter)] == (0.5 if name.split(".")[0] in apart else 0.125), name


def test_the_log_tells_each_term(train_images, tmp_path):
    path = loop.pretrain(replace(TINY, beta=0.5), train_images, tmp_path, seed=0)
    for line in map(json.loads, (path.parent / "log.jsonl").read_text().splitlines()):
        assert line["contrastive"] + line["metric"] + line["prototype"] == pytest.approx(
            line["loss"], rel=1e-4
        )
        assert 0 <= line["positives_of_one_class"] <= 1


def test_only_clusters_that_are_needed_are_made():
    asked = []

    def extract(module, **how):
        asked.append(how)
        return _extract(module, **how)

    for changes, log in (
        ({"pairs": "labels", "prototypes": "labels"}, set()),
        ({"pairs": "labels", "gamma": 0.0}, set()),
        ({"gamma": 0.0, "num_prototypes": (8, 4)}, {8}),
        ({"num_prototypes": (8, 4)}, {8, 4}),
    ):
        method = _method(**changes)
        found = method.start_epoch(0, extract)
        assert {int(name.split("_")[1]) for name in found} == log
    assert len(asked) == 2


def test_batch_norm_trains(train_images, tmp_path):
    """Clustering puts the network into evaluation mode; it must not stay there."""
    path = loop.pretrain(TINY, train_images, tmp_path, seed=0)
    assert int(encoders.load(path).backbone.bn1.num_batches_tracked) == 2 * (200 // 16)


def _weights(path):
    return encoders.load(path).backbone.state_dict()


@pytest.mark.parametrize(
    ("changes", "leaks"),
    [
        ({}, False),
        ({"gamma": 0.0}, False),
        ({"pairs": "labels"}, True),
        ({"prototypes": "labels"}, True),
    ],
)
def test_labels_train_nothing_unless_asked_to(train_images, tmp_path, changes, leaks):
    """The same training on shuffled labels."""
    recipe = replace(TINY, train=replace(TINY.train, epochs=1), **changes)
    shuffled = replace(
        train_images, labels=np.random.default_rng(0).permutation(train_images.labels)
    )
    a, b = (
        loop.pretrain(recipe, source, tmp_path / name, seed=0)
        for name, source in (("true", train_images), ("shuffled", shuffled))
    )
    assert (
        all(
            torch.equal(x, y)
            for x, y in zip(_weights(a).values(), _weights(b).values(), strict=True)
        )
        != leaks
    )


def test_one_batch_can_be_learnt(train_images):
    """All three losses fall when the same few images are seen again and again."""
    recipe = replace(TINY, num_prototypes=(4,))
    method = spcl.build(recipe, torch.from_numpy(train_images.labels), 20, 0)
    opened = loader.open_views(recipe, train_images, 0, "cpu", 0)
    method.start_epoch(0, loop.Training(recipe, method, opened).extract)
    pictures, index = next(opened.batches(0, 2, method.draw_batches(0, 1)))
    optimizer = torch.optim.SGD(method.parameters(), 0.1, momentum=0.9)
    losses = []
    for _ in range(40):
        loss = method.loss(pictures, index)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0.0, "beta": 0.0, "gamma": 0.0}, "weights"),
        ({"beta": -1.0}, "weights"),
        ({"gamma": float("nan")}, "weights"),
        ({"train": replace(TINY.train, batch_size=6)}, "quarters"),
        ({"num_prototypes": (61,)}, "61 prototypes requested of 60 images"),
        ({"num_prototypes": ()}, "2 or more"),
        ({"sce_alpha": float("nan")}, "sce-alpha"),
        ({"whiten": -1}, "whiten"),
        ({"num_prototypes": (8, 1)}, "2 or more"),
    ],
)
def test_senseless_recipes_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        _method(**changes)


@pytest.mark.parametrize("changes", [{"pairs": "labels"}, {"prototypes": "labels"}])
def test_labels_must_be_there_where_they_are_needed(changes):
    with pytest.raises(UserError, match="need labels"):
        spcl.build(replace(TINY, **changes), torch.zeros(60, dtype=torch.long), 1, seed=0)


def test_collapsed_features_stop_the_training():
    method = _method()
    method.start_epoch(0, lambda module, **how: np.ones((60, 8), np.float16))
    with pytest.raises(UserError, match="collapsed"):
        method.draw_batches(0, 2)


def test_as_many_clusters_as_images_leave_no_pair():
    method = _method(num_prototypes=(60,))
    method.start_epoch(0, _extract)
    with pytest.raises(UserError, match="single image"):
        method.draw_batches(0, 2)


@pytest.mark.gpu
def test_spcl_trains_on_a_gpu(train_images, tmp_path):
    path = loop.pretrain(TINY, train_images, tmp_path, seed=0, device="cuda")
    assert all(
        np.isfinite(json.loads(line)["loss"])
        for line in (path.parent / "log.jsonl").read_text().splitlines()
    )


def test_the_paper_s_hyper_parameters():
    """SPCL, section 4.1; SimCLR's augmentation for CIFAR."""
    cifar, imagenet = spcl_recipes.CIFAR10, spcl_recipes.IMAGENET
    for recipe in (cifar, imagenet):
        train = recipe.train
        assert (train.optimizer, train.lr, train.weight_decay, train.schedule) == (
            "lars",
            1.0,
            1e-6,
            "cosine",
        )
        assert (recipe.alpha, recipe.beta, recipe.gamma, train.warmup_epochs) == (1, 1, 1, 10)
    assert (cifar.train.epochs, cifar.train.batch_size, cifar.num_prototypes) == (1000, 512, (512,))
    assert (imagenet.train.epochs, imagenet.train.batch_size, imagenet.num_prototypes) == (
        200,
        1024,
        (2048,),
    )
    assert (cifar.augment.jitter, cifar.augment.blur, cifar.augment.min_area) == (
        (0.4, 0.4, 0.4, 0.1),
        0,
        0.08,
    )
    assert simclr.CIFAR10.train == cifar.train == supervised.CIFAR10.train
    assert simclr.CIFAR10.augment == cifar.augment


def test_parameters_are_table_1_s():
    """36 million with a two-layer g_m, as printed; K = 2048."""
    method = spcl.build(spcl_recipes.IMAGENET, torch.zeros(2048, dtype=torch.long), 1000, seed=0)
    assert round(sum(parameter.numel() for parameter in method.parameters()) / 1e6) == 36


def test_bundled_spcl_inherits_simclr_s_values():
    shared = ("arch", "augment", "input", "train", "dim", "temperature", "head_bn", "zero_gamma")
    for name in shared:
        assert getattr(simclr.MINI, name) == getattr(spcl_recipes.MINI, name), name
