"""Learning-rate schedules and LARS."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.recipes.common import Train


def learning_rate(train: Train, epoch: int, step: int, steps_per_epoch: int) -> float:
    """The learning rate of one step. Warm-up is linear over its epochs; the schedule covers the
    remaining ones."""
    now = epoch + step / steps_per_epoch
    if now < train.warmup_epochs:
        return (
            train.lr
            * (epoch * steps_per_epoch + step + 1)
            / (train.warmup_epochs * steps_per_epoch)
        )
    if train.schedule == "step":
        return train.lr * 0.1 ** sum(epoch >= milestone for milestone in train.milestones)
    if train.schedule == "cosine-epoch":
        now = epoch
    progress = (now - train.warmup_epochs) / max(train.epochs - train.warmup_epochs, 1)
    return train.lr * 0.5 * (1 + math.cos(math.pi * progress))


def optimizer(
    train: Train, module: nn.Module, unscheduled: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """SGD with momentum, or LARS with biases and BatchNorm excluded from decay and adaptation
    (SimCLR, appendix B). The ``unscheduled`` parameters keep the rate ``train.lr``: see
    ``set_rate``."""
    unscheduled_ids = {id(p) for p in unscheduled}
    groups: list[dict[str, Any]] = []
    for scheduled in (True, False):
        own = [
            p
            for p in module.parameters()
            if p.requires_grad and (id(p) not in unscheduled_ids) == scheduled
        ]
        if train.optimizer == "sgd":
            groups.append({"params": own, "scheduled": scheduled})
        else:
            groups.append({"params": [p for p in own if p.ndim > 1], "scheduled": scheduled})
            groups.append(
                {
                    "params": [p for p in own if p.ndim <= 1],
                    "scheduled": scheduled,
                    "weight_decay": 0.0,
                    "adapt": False,
                }
            )
    groups = [group for group in groups if group["params"]]
    if train.optimizer == "sgd":
        return torch.optim.SGD(
            groups, train.lr, train.sgd_momentum, weight_decay=train.weight_decay, foreach=True
        )
    return LARS(groups, lr=train.lr, momentum=train.sgd_momentum, weight_decay=train.weight_decay)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of all parameter groups that follow the schedule."""
    for group in optimizer.param_groups:
        if group.get("scheduled", True):
            group["lr"] = rate


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017), without Nesterov momentum. P parameters
    are updated together: one by one, they would be two thirds of the kernels of SimCLR's step.

    SimCLR's code differs in one way: it has the rate inside the momentum, m <- mu m + lr g and w <-
    w - m. Where the rate changes, its momentum remembers earlier rates for some ten steps.

    g <- g + wd w;  g <- g * eta |w| / |g| (where both norms are positive);  m <- mu m + g;
    w <- w - lr m.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.001,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "eta": eta,
                "adapt": True,
            },
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient. Never synchronises with the device."""
        for group in self.param_groups:
            ws = [w for w in group["params"] if w.grad is not None]
            if not ws:
                continue
            gs = torch._foreach_add([w.grad for w in ws], ws, alpha=group["weight_decay"])
            if group["adapt"]:
                w_norm_P, g_norm_P = (torch.stack(torch._foreach_norm(of)) for of in (ws, gs))
                ratio_P = torch.where(
                    (w_norm_P > 0) & (g_norm_P > 0),
                    group["eta"] * w_norm_P / g_norm_P,
                    torch.ones_like(w_norm_P),
                )
                torch._foreach_mul_(gs, list(ratio_P.unbind()))
            for w in ws:
                if "momentum" not in self.state[w]:
                    self.state[w]["momentum"] = torch.zeros_like(w)
            ms = [self.state[w]["momentum"] for w in ws]
            torch._foreach_mul_(ms, group["momentum"])
            torch._foreach_add_(ms, gs)
            torch._foreach_sub_(ws, ms, alpha=group["lr"])
