from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision import transforms as v1
from torchvision.transforms.v2 import functional as tv

from pretrain.augment import tensor
from pretrain.recipes.common import Augment
from protobench import keyed

pytestmark = pytest.mark.arithmetic

PLAIN = Augment(size=32, min_area=1.0, flip=0.0, jitter_p=0.0, grayscale=0.0)
STRONG = Augment(
    size=32,
    min_area=0.3,
    flip=0.5,
    jitter=(0.4, 0.4, 0.4, 0.1),
    jitter_p=0.8,
    grayscale=0.2,
    blur=0.5,
)


def _pictures(n=16, side=40):
    return torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (n, 3, side, side), dtype=np.uint8)
    )


def test_a_view_depends_on_its_key_not_on_its_batch():
    pictures, index = _pictures(), np.arange(100, 116)
    together = tensor.of_batch(STRONG, pictures, index, 1, 0, 0)
    for i in (0, 7, 15):
        alone = tensor.of_batch(STRONG, pictures[i : i + 1], index[i : i + 1], 1, 0, 0)
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-6, rtol=0)
    assert not torch.equal(together, tensor.of_batch(STRONG, pictures, index, 1, 0, 1)), (
        "views differ"
    )
    assert not torch.equal(together, tensor.of_batch(STRONG, pictures, index, 1, 1, 0)), (
        "epochs differ"
    )


def test_values_stay_in_range():
    x = tensor.of_batch(STRONG, _pictures(64), np.arange(64), 0)
    assert x.shape == (64, 3, 32, 32)
    assert x.min() >= 0
    assert x.max() <= 1


def test_nothing_switched_on_is_a_plain_resize():
    pictures = _pictures(side=32)
    x = tensor.of_batch(PLAIN, pictures, np.arange(16), 0)
    torch.testing.assert_close(
        x, pictures.float() / 255, atol=1e-5, rtol=0
    )  # area 1 fits only as the whole image


def test_boxes_are_drawn_as_torchvision_draws_them():
    """Areas and aspects of 20 000 boxes against RandomResizedCrop's own, which rejects what does
    not fit."""
    ours = torch.stack(
        tensor._box(0.2, torch.from_numpy(keyed.uniforms(20, np.arange(20_000), 0)).float())
    )
    torch.manual_seed(0)
    image = torch.empty(3, 400, 400)
    theirs = (
        torch.tensor(
            [
                v1.RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3])[2:]
                for _ in range(20_000)
            ]
        ).T
        / 400
    )
    assert ours.max() <= 1
    for values in (
        (ours[0] * ours[1], theirs[0] * theirs[1]),
        (ours[0] / ours[1], theirs[1] / theirs[0]),
    ):
        assert stats.ks_2samp(*(value.numpy() for value in values)).statistic < 0.02


def test_flip_mirrors():
    pictures = _pictures(side=32)
    whole, middle = [torch.ones(16)] * 2, [torch.full((16,), 0.5)] * 2
    flipped = tensor._crop(
        pictures.float() / 255, replace(PLAIN, flip=1.0), *whole, *middle, torch.zeros(16)
    )
    torch.testing.assert_close(flipped, pictures.flip(3).float() / 255, atol=1e-5, rtol=0)


def test_colour_jitter_equals_torchvisions_but_for_hue():
    x = _pictures(4, 32).float() / 255
    b, c, s = torch.tensor([[0.7, 1.0, 1.3, 1.1], [1.2, 0.6, 1.0, 1.4], [0.5, 1.5, 1.2, 1.0]])
    ours = tensor._jitter(x, b, c, s, torch.zeros(4))
    for i in range(4):
        theirs = tv.adjust_saturation(
            tv.adjust_contrast(tv.adjust_brightness(x[i], float(b[i])), float(c[i])), float(s[i])
        )
        torch.testing.assert_close(ours[i], theirs, atol=2e-3, rtol=0)


def test_hue_turns_colours_and_keeps_greys_and_luma():
    x = torch.tensor([0.5, 0.3, 0.3]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    turned = tensor._jitter(x, *[torch.ones(1)] * 3, torch.tensor([1 / 3]))
    assert turned[0, :, 0, 0].argmax() != 0
    torch.testing.assert_close(tensor._luma(turned), tensor._luma(x), atol=5e-3, rtol=0)
    grey = torch.full((1, 3, 4, 4), 0.4)
    torch.testing.assert_close(
        tensor._jitter(grey, *[torch.ones(1)] * 3, torch.tensor([0.2])), grey, atol=1e-3, rtol=0
    )


def test_blur_equals_torchvisions_gaussian():
    x = _pictures(2, 32).float() / 255
    ours = tensor._blur(x, torch.tensor([0.5, 2.0]))
    for i, sigma in enumerate((0.5, 2.0)):
        torch.testing.assert_close(
            ours[i], tv.gaussian_blur(x[i], [9, 9], [sigma, sigma]), atol=1e-5, rtol=0
        )


def test_probabilities_are_the_recipe_s():
    pictures = _pictures(1).expand(4000, -1, -1, -1)
    x = tensor.of_batch(replace(PLAIN, grayscale=0.2), pictures, np.arange(4000), 0)
    grey = ((x.amax(1) - x.amin(1)).amax((1, 2)) < 1e-4).float().mean()
    assert grey == pytest.approx(0.2, abs=0.03)


def test_the_order_of_grey_and_jitter_is_the_recipe_s():
    always = Augment(size=32, min_area=1.0, flip=0.0, jitter=(0.9, 0.0, 0.0, 0.0), grayscale=1.0)
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(64, 3, 32, 32)
    before, after = (
        tensor.of_batch(replace(always, grayscale_first=first), red, np.arange(64), 0)[:, 0, 0, 0]
        for first in (True, False)
    )
    # brightness above 1 clips pure red, but not the grey it turns into: only before can exceed
    # red's own luma
    assert after.max() < 0.2989 + 1e-3
    assert before.max() > 0.4
    dim = before < 0.29
    torch.testing.assert_close(before[dim], after[dim], atol=1e-3, rtol=0)
