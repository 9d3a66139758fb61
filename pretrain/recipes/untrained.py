"""Recipes of the Random row."""

from dataclasses import dataclass, field
from typing import ClassVar

from pretrain.recipes.common import Recipe, Train, cifar_input, mini, small


@dataclass(frozen=True)
class Untrained(Recipe):
    """Initial weights, the lower control row."""

    method: ClassVar[str] = "untrained"
    train: Train = field(default_factory=lambda: Train(epochs=0))


PAPER = Untrained()
CIFAR10, CIFAR100 = (
    Untrained(arch="resnet18-cifar", dataset=name, input=cifar_input(name))
    for name in ("cifar10", "cifar100")
)

MINI = mini(PAPER)

SMALL, SMALL_GPU = small(MINI), CIFAR10

RECIPES = {"paper": PAPER, "mini": MINI, "small": SMALL, "small-gpu": SMALL_GPU}
