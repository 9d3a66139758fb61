"""Projection heads that a checkpoint can hold: a linear layer, or two with a ReLU between them,
with or without BatchNorm."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def linear(width: int, hidden: int, dim: int) -> nn.Module:
    """MoCo v1's: one layer from ``width`` features to ``dim``; ``hidden`` is not used."""
    return nn.Linear(width, dim)


def mlp(width: int, hidden: int, dim: int) -> nn.Module:
    """MoCo v2's: two layers with a ReLU between them."""
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, dim))


def mlp_with_batch_norm(width: int, hidden: int, dim: int) -> nn.Module:
    """SimCLR's (google-research/simclr, model_util.py, with two layers): BatchNorm after both, so
    neither has a bias. The second BatchNorm learns a scale and no shift."""
    last = nn.BatchNorm1d(dim)
    last.bias.requires_grad_(False)
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, dim, bias=False),
        last,
    )


_KINDS: tuple[tuple[Callable[[int, int, int], nn.Module], str, str], ...] = (
    (linear, "weight", "weight"),
    (mlp, "0.weight", "2.weight"),
    (mlp_with_batch_norm, "0.weight", "3.weight"),
)
"""With the names of the first and the last weight, whose rows are ``hidden`` and ``dim``."""


def shaped_like(state: dict[str, Tensor], width: int) -> nn.Module | None:
    """Returns a head for ``width`` features, without memory (on the meta device), whose tensors
    have the names and shapes of ``state``; None if no head here has."""
    with torch.device("meta"):
        for build, first, last in _KINDS:
            if build(1, 1, 1).state_dict().keys() != state.keys():
                continue
            if not all(state[name].ndim and len(state[name]) for name in (first, last)):
                return None
            head = build(width, len(state[first]), len(state[last]))
            fits = all(t.shape == state[name].shape for name, t in head.state_dict().items())
            return head if fits else None
    return None
