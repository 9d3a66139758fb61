import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pretrain import loop, recipes
from pretrain.similarity import Similarity, tp_fn


def _problem():
    generator = torch.Generator().manual_seed(0)
    a, b = (F.normalize(torch.randn(7, 5, generator=generator, dtype=torch.float64), dim=1) for _ in range(2))
    return a, b, torch.tensor([0, 1, 0, 1, 0, 2, 0]), torch.tensor([3, 4, 5, 6, 3, 8, 9]), torch.tensor([0, 1, 0, 2, 3, 4, 5])


def test_tp_and_fn_equal_a_naive_loop():
    """Image 3 comes twice and is no false negative of itself; images 3 and 5 were drawn together and are left out as well."""
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
    similarity, batch = Similarity(), _problem()
    similarity.add(*batch)
    once = similarity.epoch()
    for _ in range(3):
        similarity.add(*batch)
    assert similarity.epoch() == once
    a, b, _, image, draw = batch
    similarity.add(a, b, torch.arange(7), image, draw)
    assert set(similarity.epoch()) == {"tp"}, "no two images of a class"


def test_simclr_and_spcl_log_it(train_images, tmp_path):
    from dataclasses import replace

    for recipe in (recipes.SIMCLR_MINI, replace(recipes.SPCL_MINI, num_prototypes=(8,))):
        recipe = replace(recipe, train=replace(recipe.train, epochs=1, batch_size=32))
        path = loop.pretrain(recipe, train_images, tmp_path / recipe.method, seed=0)
        assert '"tp": 0.' in (path.parent / "log.jsonl").read_text()
        assert '"fn": 0.' in (path.parent / "course.json").read_text()
