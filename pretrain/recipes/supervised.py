"""Recipes of the Supervised row."""

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
class Supervised(Recipe):
    """Cross-entropy on the labels, the upper control row."""

    method: ClassVar[str] = "supervised"
    trained_views: ClassVar[int] = 1


PAPER = Supervised(
    augment=Augment(min_area=0.08, jitter_p=0.0, grayscale=0.0),
    train=Train(epochs=90, lr=0.1, milestones=(30, 60)),
)
"""torchvision's recipe for its V1 weights, the paper's Supervised row."""
CIFAR10, CIFAR100 = on_cifar(Supervised(), "cifar10"), on_cifar(Supervised(), "cifar100")
"""Trained like the other rows of SPCL's Table 2, which says no more of it than "CE" and "GT"."""

MINI = mini(PAPER, train=replace(MINI_TRAIN, epochs=12, lr=0.24))

SMALL, SMALL_GPU = small(MINI), small_gpu(CIFAR10)

RECIPES = {"paper": PAPER, "mini": MINI, "small": SMALL, "small-gpu": SMALL_GPU}
