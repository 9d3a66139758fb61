import math

import pytest
import torch
import torch.nn.functional as F

from pretrain.recipes import simclr
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
