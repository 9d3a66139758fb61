"""Times the momentum update of a ResNet-50: parameter by parameter into new tensors, as published,
and all at once in place."""

import copy
from collections.abc import Iterator

import torch
from alternate import Ratio, alternate, ratio, show

from pretrain.moco import momentum_update
from protobench.checkpoints import resnet

MOMENTUM = 0.999


def published(key: torch.nn.Module, query: torch.nn.Module) -> None:
    """Computes m k + (1 - m) q as a new tensor for every parameter."""
    for k, q in zip(key.parameters(), query.parameters(), strict=True):
        k.data = k.data * MOMENTUM + q.data * (1.0 - MOMENTUM)


def rows() -> Iterator[Ratio]:
    """Yields the row; the two ways are compared after ten updates from equal weights."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    query, theirs = resnet.build("resnet50"), resnet.build("resnet50")
    ours, exact = copy.deepcopy(theirs), copy.deepcopy(theirs).double()
    for _ in range(10):
        published(theirs, query)
        momentum_update(ours, query, MOMENTUM)
        published(exact, copy.deepcopy(query).double())
    off = [
        max(
            float((p - e).abs().max())
            for p, e in zip(way.parameters(), exact.parameters(), strict=True)
        )
        for way in (ours, theirs)
    ]
    parameters = sum(p.numel() for p in query.parameters())
    yield ratio(
        "momentum update of a ResNet-50",
        alternate(lambda: published(theirs, query), lambda: momentum_update(ours, query, MOMENTUM)),
        f"error after 10 updates, against float64: ours {off[0]:.1e}, published {off[1]:.1e}",
        target=3,
        bytes_moved=3 * 4 * parameters,
    )


if __name__ == "__main__":
    show(rows())
