import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain import optim
from pretrain.recipes import moco, simclr
from pretrain.recipes.common import Train

pytestmark = pytest.mark.arithmetic


def test_the_paper_s_step_schedule():
    rates = {
        epoch: optim.learning_rate(Train(), epoch, 7, 100) for epoch in (0, 119, 120, 159, 160, 199)
    }
    assert rates == pytest.approx(
        {0: 0.03, 119: 0.03, 120: 0.003, 159: 0.003, 160: 0.0003, 199: 0.0003}
    )


def test_cosine_per_epoch_and_per_step():
    v2 = moco.V2.train
    assert optim.learning_rate(v2, 0, 99, 100) == v2.lr, "constant within an epoch"
    assert optim.learning_rate(v2, 100, 50, 100) == pytest.approx(0.015)
    mini = moco.MINI.train
    assert optim.learning_rate(mini, 0, 0, 31) == pytest.approx(0.06 / 31)
    assert optim.learning_rate(mini, 0, 30, 31) == pytest.approx(0.06)
    middle = optim.learning_rate(mini, 10, 15, 30)
    assert middle == pytest.approx(0.06 * 0.5 * (1 + math.cos(math.pi * 9.5 / 19)))


def test_without_unscheduled_parameters_there_is_one_rate():
    module = nn.Linear(2, 2)
    optimizer = optim.optimizer(Train(), module)
    optim.set_rate(optimizer, 0.007)
    assert [group["lr"] for group in optimizer.param_groups] == [0.007]


def test_lars_by_hand():
    """w = (3, 4), g = (0, 1), wd = 0.1: g + wd w = (0.3, 1.4); ratio = 0.001 * 5 / |that|."""
    w = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    optimizer = optim.LARS([w], lr=2.0, momentum=0.5, weight_decay=0.1)
    w.grad = torch.tensor([[0.0, 1.0]])
    optimizer.step()
    ratio = 0.001 * 5 / math.hypot(0.3, 1.4)
    first = torch.tensor([[0.3, 1.4]]) * ratio
    torch.testing.assert_close(w.detach(), torch.tensor([[3.0, 4.0]]) - 2 * first)
    before = w.detach().clone()
    w.grad = torch.zeros(1, 2)
    optimizer.step()
    decayed = 0.1 * before
    second = 0.5 * first + decayed * 0.001 * before.norm() / decayed.norm()
    torch.testing.assert_close(w.detach(), before - 2 * second)


def test_lars_leaves_biases_and_batch_norm_to_plain_sgd():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    train = replace(simclr.PAPER.train, lr=1.0, weight_decay=0.5)
    optimizer = optim.optimizer(train, module)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = [p.detach().clone() for p in module.parameters()]
    optimizer.step()
    moved = [(b - p.detach()) for b, p in zip(before, module.parameters(), strict=True)]
    assert moved[0].abs().max() < 0.01, "the weight is adapted"
    for change in moved[1:]:
        (
            torch.testing.assert_close(change, torch.ones_like(change)),
            "bias and BatchNorm: lr * gradient, no decay",
        )


def test_lars_moves_a_zero_weight():
    w = nn.Parameter(torch.zeros(1, 2))
    w.grad = torch.ones(1, 2)
    optim.LARS([w], lr=1.0).step()
    torch.testing.assert_close(w.detach(), -torch.ones(1, 2))


def test_lars_updates_all_parameters_together():
    """However many there are: on a GPU each operator is at least one kernel. (Dispatch modes see
    what is called, not what a CPU makes of it.)"""

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.append(str(function))
            return function(*args, **kwargs or {})

    counts = []
    for parameters in (3, 30):
        ws = [nn.Parameter(torch.randn(2, 3)) for _ in range(parameters)]
        optimizer = optim.LARS(ws, lr=0.1, weight_decay=0.1)
        for _ in range(2):  # the first step makes the momenta
            for w in ws:
                w.grad = torch.randn(2, 3)
            called: list[str] = []
            with Calls():
                optimizer.step()
        counts.append(len([name for name in called if "detach" not in name]))
    assert counts[0] == counts[1] < 25


def test_frozen_parameters_are_not_optimised():
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    optimizer = optim.optimizer(Train(), module)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 1
