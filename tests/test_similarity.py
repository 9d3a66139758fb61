import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pretrain import loop, simclr, spcl
from pretrain.recipes import simclr as simclr_recipes
from pretrain.recipes import spcl as spcl_recipes
from pretrain.similarity import Similarity, tp_fn

pytestmark = pytest.mark.arithmetic


def _problem():
    generator = torch.Generator().manual_seed(0)
    a, b = (
        F.normalize(torch.randn(7, 5, generator=generator, dtype=torch.float64), dim=1)
        for _ in range(2)
    )
    return (
        a,
        b,
        torch.tensor([0, 1, 0, 1, 0, 2, 0]),
        torch.tensor([3, 4, 5, 6, 3, 8, 9]),
        torch.tensor([0, 1, 0, 2, 3, 4, 5]),
    )


def test_tp_and_fn_equal_a_naive_loop():
    """Image 3 comes twice and is no false negative of itself; images 3 and 5 were drawn together
    and are left out as well."""
    a, b, label, image, draw = _problem()
    z, negatives = [*zip(a, b, strict=True)], []
    for i in range(7):
        for j in range(7):
            if label[i] == label[j] and image[i] != image[j] and draw[i] != draw[j]:
                negatives += [float(u @ v) for u in z[i] for v in z[j]]
    tp, views, fn, pairs = tp_fn(a, b, label, image, draw).tolist()
    assert (views, pairs) == (7, len(negatives))
    assert tp / views == pytest.approx(np.mean([float(u @ v) for u, v in z]), abs=1e-13)
    assert fn / pairs == pytest.approx(np.mean(negatives), abs=1e-13)


def test_an_epoch_is_the_mean_over_all_pairs():
    """Not of batches: one that holds many pairs counts more."""
    similarity, (a, b, label, image, draw) = Similarity(0.5), _problem()
    batches = [(a, b, label, image, draw), (b, b, torch.tensor([0, 1, 2, 3, 4, 4, 5]), image, draw)]
    for batch in batches:
        similarity.add(*batch)
    sums = np.sum([tp_fn(*batch).numpy() for batch in batches], 0)
    tp, fn = sums[0] / sums[1], sums[2] / sums[3]
    assert similarity.epoch() == {
        "tp": round(tp, 6),
        "fn": round(fn, 6),
        "tp_release": round(tp / 0.5, 6),
        "fn_release": round(fn / 0.5, 6),
    }
    similarity.add(a, b, torch.arange(7), image, draw)
    assert set(similarity.epoch()) == {"tp", "tp_release"}, "no two images of a class"


def test_the_released_reading_is_of_clusters_and_divides_by_the_temperature():
    a, b, label, image, draw = _problem()
    cluster, z = torch.tensor([5, 5, 2, 2, 2, 5, 5]), [*zip(a, b, strict=True)]
    pairs = [
        float(u @ v) / 0.2
        for i in range(7)
        for j in range(7)
        if cluster[i] == cluster[j] and image[i] != image[j] and draw[i] != draw[j]
        for u in z[i]
        for v in z[j]
    ]
    similarity, plain = Similarity(0.2), Similarity(0.2)
    similarity.add(a, b, label, image, draw, cluster)
    plain.add(a, b, label, image, draw)
    found, text = similarity.epoch(), plain.epoch()
    assert (found["tp"], found["fn"]) == (text["tp"], text["fn"])
    assert found["tp_release"] == pytest.approx(text["tp"] / 0.2, abs=1e-5)
    assert found["fn_release"] == pytest.approx(np.mean(pairs), abs=1e-6)


def test_clusters_count_where_there_is_a_prototype_loss():
    for changes, clustered in (
        ({}, True),
        ({"gamma": 0.0}, False),
        ({"prototypes": "labels"}, False),
    ):
        labels = torch.arange(60) % 3
        method = spcl.build(
            replace(
                spcl_recipes.MINI,
                num_prototypes=(8,),
                train=replace(spcl_recipes.MINI.train, batch_size=16),
                **changes,
            ),
            labels,
            3,
            0,
        )
        features = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float16)
        method.start_epoch(0, lambda module, found=features, **how: found)
        index = torch.from_numpy(method.draw_batches(0, 1)[0])
        views = [torch.randn(16, 3, 32, 32) for _ in range(2)]
        method.loss(views, index)
        found = method.similarity.epoch()
        assert (found["fn_release"] != pytest.approx(found["fn"] / 0.2, abs=1e-5)) == clustered


def test_methods_measure_their_own_batches():
    """Labels by image number, partners of SPCL left out: a naive loop over the embeddings of a
    batch."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(60) % 3
    pictures = [torch.randn(16, 3, 32, 32, generator=generator) for _ in range(2)]
    torch.manual_seed(0)
    siamese = spcl.build(
        replace(
            spcl_recipes.MINI,
            num_prototypes=(8,),
            train=replace(spcl_recipes.MINI.train, batch_size=16),
        ),
        labels,
        3,
        0,
    )
    siamese.start_epoch(
        0, lambda module, **how: np.random.default_rng(0).normal(size=(60, 8)).astype(np.float16)
    )
    for method, index in (
        (siamese, torch.from_numpy(siamese.draw_batches(0, 1)[0])),
        (simclr.build(simclr_recipes.MINI, labels, 3, 0), torch.arange(40, 56)),
    ):
        method.loss(pictures, index)
        with torch.no_grad():
            z = (
                F.normalize(method.projection(method.backbone(torch.cat(pictures))), dim=1)
                .double()
                .view(2, 16, -1)
            )
        partners = {(n, (n + 4) % 8) for n in range(8)} if method is siamese else set()
        fn = [
            float(z[v, i] @ z[w, j])
            for i in range(16)
            for j in range(16)
            for v in (0, 1)
            for w in (0, 1)
            if labels[index[i]] == labels[index[j]]
            and index[i] != index[j]
            and (i, j) not in partners
        ]
        found = method.similarity.epoch()
        assert found["tp"] == pytest.approx(float((z[0] * z[1]).sum(1).mean()), abs=1e-5)
        assert found["fn"] == pytest.approx(np.mean(fn), abs=1e-5)


def test_simclr_and_spcl_log_it(train_images, tmp_path):
    for recipe in (simclr_recipes.MINI, replace(spcl_recipes.MINI, num_prototypes=(8,))):
        recipe = replace(recipe, train=replace(recipe.train, epochs=1, batch_size=32))
        path = loop.pretrain(recipe, train_images, tmp_path / recipe.method, seed=0)
        (epoch,) = json.loads((path.parent / "course.json").read_text())["epochs"]
        assert json.loads((path.parent / "log.jsonl").read_text()) == epoch
        assert all(-1 <= epoch[name] <= 1 for name in ("tp", "fn"))
        assert epoch["tp_release"] == pytest.approx(epoch["tp"] / recipe.temperature, abs=1e-5)
