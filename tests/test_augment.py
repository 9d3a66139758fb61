import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torchvision import transforms as v1
from torchvision.transforms.v2 import functional as tv

from pretrain.augment import tensor
from pretrain.recipes import moco, simclr
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


def _views(recipe, pictures, index, *key):
    return tensor.render(recipe, pictures, tensor.draw(recipe, "cpu", index, *key))


def _jittered(x, b, c, s, h):
    """Pixels [N, 3, S, S] in 0..1 after a jitter by these factors [N] and turns [N]."""
    always = Augment(size=x.shape[2], jitter=(1.0, 1.0, 1.0, 0.5), grayscale=0.0)
    uniforms = torch.zeros(len(x), tensor._UNIFORMS)
    uniforms[:, 4:8] = torch.stack([b / 2, c / 2, s / 2, h + 0.5], 1)
    drawn = tensor.Drawn(*tensor._places(always, uniforms), *tensor._colours(always, uniforms))
    return tensor._jittered(x.flatten(2) * 255, drawn).view_as(x)


GREY = np.array([0.2989, 0.587, 0.114])
YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def naive_view(recipe, picture, u):
    """The view of one picture [3, H, W] by its uniforms, step by step in double precision."""
    side, image = picture.shape[1], picture.numpy() / 255
    for area_u, aspect_u in u[11:].reshape(-1, 2):
        area = recipe.min_area + (1 - recipe.min_area) * area_u
        ratio = math.exp((2 * aspect_u - 1) * math.log(4 / 3))
        width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if width <= 1 and height <= 1:
            break
    else:
        width = height = 1.0
    x = np.empty((3, recipe.size, recipe.size))
    for row in range(recipe.size):
        for column in range(recipe.size):
            across = column if u[2] >= recipe.flip else recipe.size - 1 - column
            at_x = side * (u[0] * (1 - width) + width * (across + 0.5) / recipe.size) - 0.5
            at_y = side * (u[1] * (1 - height) + height * (row + 0.5) / recipe.size) - 0.5
            at_x, at_y = min(max(at_x, 0), side - 1), min(max(at_y, 0), side - 1)
            i, j = min(int(at_y), side - 2), min(int(at_x), side - 2)
            p, q = at_y - i, at_x - j
            x[:, row, column] = (1 - p) * (
                (1 - q) * image[:, i, j] + q * image[:, i, j + 1]
            ) + p * ((1 - q) * image[:, i + 1, j] + q * image[:, i + 1, j + 1])

    def grey(x):
        return np.tensordot(GREY, x, 1)[None].repeat(3, 0)

    def jitter(x):
        b, c, s = (
            1 + strength * (2 * v - 1)
            for strength, v in zip(recipe.jitter[:3], u[4:7], strict=True)
        )
        x = np.clip(x * b, 0, 1)
        x = np.clip(c * x + (1 - c) * grey(x).mean(), 0, 1)
        x = np.clip(s * x + (1 - s) * grey(x), 0, 1)
        y, i, q = np.tensordot(YIQ, x, 1)
        turn = 2 * math.pi * recipe.jitter[3] * (2 * u[7] - 1)
        chroma = (i + 1j * q) * np.exp(1j * turn)
        return np.clip(
            np.tensordot(np.linalg.inv(YIQ), np.stack([y, chroma.real, chroma.imag]), 1), 0, 1
        )

    steps = [(jitter, u[3] < recipe.jitter_p), (grey, u[8] < recipe.grayscale)]
    for step, taken in reversed(steps) if recipe.grayscale_first else steps:
        x = step(x) if taken else x
    if u[9] < recipe.blur:
        sigma = 0.1 + 1.9 * u[10]
        x = tv.gaussian_blur(torch.from_numpy(x), [9, 9], [sigma, sigma]).numpy()
    return x


@pytest.mark.parametrize(
    "recipe",
    [
        moco.MINI.augment,
        simclr.CIFAR10.augment,
        replace(moco.V1.augment, size=24, blur=0.5),
        replace(STRONG, jitter=(1.0, 1.0, 1.0, 0.5), size=33),
    ],
)
def test_a_view_is_what_its_uniforms_say(recipe):
    """Against each picture by itself, with each operation in its turn."""
    smooth = F.interpolate(_pictures(40, 8).float(), (36, 36), mode="bicubic").clamp(0, 255).byte()
    index, input_ = np.arange(40), moco.MINI.input
    drawn = tensor.draw(recipe, "cpu", index, 5, 2, 1)
    ours = tensor.render(recipe, smooth, drawn)
    uniforms = keyed.uniforms(tensor._UNIFORMS, index, 5, 2, 1)
    theirs = [naive_view(recipe, *of) for of in zip(smooth, uniforms, strict=True)]
    theirs = torch.from_numpy(np.stack(theirs)).float()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0, check_stride=False)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (input_.mean, input_.std))
    normalised = tensor.render(recipe, smooth, drawn, input_)
    torch.testing.assert_close(normalised, (ours - mean) / std, atol=1e-5, rtol=0)
    assert normalised.is_contiguous(memory_format=torch.channels_last)


def test_blocks_do_not_show(monkeypatch):
    pictures, index = _pictures(), np.arange(16)
    whole = _views(STRONG, pictures, index, 0)
    monkeypatch.setattr(tensor, "_BLOCK_BYTES", 1)
    torch.testing.assert_close(_views(STRONG, pictures, index, 0), whole, atol=1e-6, rtol=0)


def test_a_view_depends_on_its_key_not_on_its_batch():
    pictures, index = _pictures(), np.arange(100, 116)
    together = _views(STRONG, pictures, index, 1, 0, 0)
    for i in (0, 7, 15):
        alone = _views(STRONG, pictures[i : i + 1], index[i : i + 1], 1, 0, 0)
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-6, rtol=0)
    assert not torch.equal(together, _views(STRONG, pictures, index, 1, 0, 1)), "views differ"
    assert not torch.equal(together, _views(STRONG, pictures, index, 1, 1, 0)), "epochs differ"


def test_values_stay_in_range():
    x = _views(STRONG, _pictures(64), np.arange(64), 0)
    assert x.shape == (64, 3, 32, 32)
    assert x.min() >= 0
    assert x.max() <= 1


def test_nothing_switched_on_is_a_plain_resize():
    pictures = _pictures(side=32)
    x = _views(PLAIN, pictures, np.arange(16), 0)
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
    flipped = _views(replace(PLAIN, flip=1.0), pictures, np.arange(16), 0)
    torch.testing.assert_close(flipped, pictures.flip(3).float() / 255, atol=1e-5, rtol=0)


def test_colour_jitter_equals_torchvisions_but_for_hue():
    x = _pictures(4, 32).float() / 255
    b, c, s = torch.tensor([[0.7, 1.0, 1.3, 1.1], [1.2, 0.6, 1.0, 1.4], [0.5, 1.5, 1.2, 1.0]])
    ours = _jittered(x, b, c, s, torch.zeros(4))
    for i in range(4):
        theirs = tv.adjust_saturation(
            tv.adjust_contrast(tv.adjust_brightness(x[i], float(b[i])), float(c[i])), float(s[i])
        )
        torch.testing.assert_close(ours[i], theirs, atol=2e-3, rtol=0)


def test_hue_turns_colours_and_keeps_greys_and_luma():
    x = torch.tensor([0.5, 0.3, 0.3]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    turned = _jittered(x, *[torch.ones(1)] * 3, torch.tensor([1 / 3]))
    assert turned[0, :, 0, 0].argmax() != 0
    weights = torch.from_numpy(GREY).float().view(3, 1, 1)
    torch.testing.assert_close((turned * weights).sum(1), (x * weights).sum(1), atol=5e-3, rtol=0)
    grey = torch.full((1, 3, 4, 4), 0.4)
    torch.testing.assert_close(
        _jittered(grey, *[torch.ones(1)] * 3, torch.tensor([0.2])), grey, atol=1e-3, rtol=0
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
    x = _views(replace(PLAIN, grayscale=0.2), pictures, np.arange(4000), 0)
    grey = ((x.amax(1) - x.amin(1)).amax((1, 2)) < 1e-4).float().mean()
    assert grey == pytest.approx(0.2, abs=0.03)


def test_the_order_of_grey_and_jitter_is_the_recipe_s():
    always = Augment(size=32, min_area=1.0, flip=0.0, jitter=(0.9, 0.0, 0.0, 0.0), grayscale=1.0)
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(64, 3, 32, 32)
    before, after = (
        _views(replace(always, grayscale_first=first), red, np.arange(64), 0)[:, 0, 0, 0]
        for first in (True, False)
    )
    # brightness above 1 clips pure red, but not the grey it turns into: only before can exceed
    # red's own luma
    assert after.max() < 0.2989 + 1e-3
    assert before.max() > 0.4
    dim = before < 0.29
    torch.testing.assert_close(before[dim], after[dim], atol=1e-3, rtol=0)
