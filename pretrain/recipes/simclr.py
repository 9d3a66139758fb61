"""Recipes of SimCLR."""

from dataclasses import dataclass, replace
from typing import ClassVar

from pretrain.recipes.common import (
    MINI_TRAIN,
    Augment,
    Recipe,
    Train,
    mini,
    on_cifar,
    small,
    small_gpu,
)


@dataclass(frozen=True)
class SimCLR(Recipe):
    """SimCLR (Chen et al., ICML 2020)."""

    method: ClassVar[str] = "simclr"
    dim: int = 128
    """size of the embedding"""
    temperature: float = 0.1
    head_bn: bool = True
    """BatchNorm after both layers of the projection head (google-research/simclr). Others'
    implementations often have none"""
    zero_gamma: bool = True
    """the last BatchNorm of every residual block starts with the scale 0 (the same)"""


PAPER = SimCLR(
    augment=Augment(
        min_area=0.08, jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=0.8, grayscale_first=False, blur=0.5
    ),
    train=Train(lr=0.3, schedule="cosine", warmup_epochs=10, optimizer="lars", weight_decay=1e-6),
)
"""PCL's paper re-implements SimCLR for 200 epochs and gives no batch size, rate or optimiser: this
is the widely reproduced batch-256 recipe, LARS 0.3 per 256 images."""
CIFAR10 = on_cifar(SimCLR(temperature=0.5), "cifar10")

MINI = mini(PAPER, dim=64, temperature=0.2, train=replace(MINI_TRAIN, lr=0.24))
"""SGD, as LARS is made for far larger batches."""

SMALL, SMALL_GPU = small(MINI), small_gpu(CIFAR10)

RECIPES = {
    "paper": PAPER,
    "cifar10": CIFAR10,
    "mini": MINI,
    "small": SMALL,
    "small-gpu": SMALL_GPU,
}
