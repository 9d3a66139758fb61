import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pretrain import spcl
from pretrain.recipes import simclr
from pretrain.recipes import spcl as spcl_recipes
from pretrain.simclr import SimCLR, nt_xent

pytestmark = pytest.mark.arithmetic


def test_nt_xent_equals_a_naive_loop():
    generator = torch.Generator().manual_seed(0)
    a, b = (
        F.normalize(torch.randn(4, 6, generator=generator, dtype=torch.float64), dim=1)
        for _ in range(2)
    )
    z, total = torch.cat([a, b]), 0.0
    for i in range(8):
        partner = (i + 4) % 8
        others = sum(math.exp(float(z[i] @ z[j]) / 0.2) for j in range(8) if j != i)
        total -= math.log(math.exp(float(z[i] @ z[partner]) / 0.2) / others)
    assert float(nt_xent(a, b, 0.2)) == pytest.approx(total / 8, abs=1e-12)


def test_nt_xent_by_hand():
    a, b = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    expected = -math.log(math.e / (math.e + 2))  # the other view at 1, two other images at 0
    assert float(nt_xent(a, b, 1.0)) == pytest.approx(expected, abs=1e-6)


def test_both_views_carry_gradients():
    torch.manual_seed(0)
    views = [torch.randn(4, 3, 32, 32, requires_grad=True) for _ in range(2)]
    SimCLR(simclr.MINI, torch.zeros(4, dtype=torch.long)).loss(views, torch.arange(4)).backward()
    assert all(view.grad is not None and view.grad.abs().sum() > 0 for view in views)


def _methods(**changes):
    labels = torch.arange(200) % 5
    return (
        SimCLR(replace(simclr.MINI, **changes), labels),
        spcl.build(replace(spcl_recipes.MINI, **changes), labels, 5, 0),
    )


def _standardised(x_NC):
    """BatchNorm before scale and shift."""
    return (x_NC - x_NC.mean(0)) / (x_NC.var(0, unbiased=False) + 1e-5).sqrt()


def test_the_projection_head_is_simclr_s():
    """google-research/simclr: neither layer has a bias, the first BatchNorm has scale and shift,
    the second a scale alone."""
    for method in _methods():
        h = torch.randn(12, 128, generator=torch.Generator().manual_seed(0))
        first, norm, _, second, last = method.projection
        with torch.no_grad():
            norm.weight.uniform_(0.5, 2), norm.bias.normal_(), last.weight.uniform_(0.5, 2)
        hidden = _standardised(h @ first.weight.T) * norm.weight + norm.bias
        expected = _standardised(hidden.clamp(min=0) @ second.weight.T) * last.weight
        torch.testing.assert_close(method.projection(h), expected, rtol=1e-4, atol=1e-5)
        trained = {name for name, p in method.projection.named_parameters() if p.requires_grad}
        assert trained == {"0.weight", "1.weight", "1.bias", "3.weight", "4.weight"}


def test_the_plain_head_is_an_option():
    for method in _methods(head_bn=False):
        assert [type(layer).__name__ for layer in method.projection] == ["Linear", "ReLU", "Linear"]


def test_blocks_start_as_the_identity():
    for zero, methods in ((True, _methods()), (False, _methods(zero_gamma=False))):
        for method in methods:
            block, scales = method.backbone.layer1[0], {"bn1": 1.0, "bn2": 0.0 if zero else 1.0}
            assert all(
                bool((getattr(block, name).weight == scale).all()) for name, scale in scales.items()
            )
            x = torch.rand(2, 16, 8, 8)
            assert torch.equal(block(x), x) == zero
            assert bool((method.backbone.layer2[0].downsample[1].weight == 1).all())


def test_the_paper_s_networks():
    for recipe in (simclr.PAPER, simclr.CIFAR10, spcl_recipes.CIFAR10, spcl_recipes.IMAGENET):
        assert (recipe.head_bn, recipe.zero_gamma) == (True, True)
