"""Recipes of the Random row."""

from dataclasses import dataclass, field
from typing import ClassVar

from pretrain.recipes.common import Recipe, Train, mini
from protobench.data.transforms import NORMALISATIONS, EvalInput


@dataclass(frozen=True)
class Untrained(Recipe):
    """Initial weights, the lower control row."""

    method: ClassVar[str] = "untrained"
    train: Train = field(default_factory=lambda: Train(epochs=0))


PAPER = Untrained()
CIFAR10, CIFAR100 = (
    Untrained(arch="resnet18-cifar", dataset=name, input=EvalInput(32, 32, *NORMALISATIONS[name]))
    for name in ("cifar10", "cifar100")
)

MINI = mini(PAPER)

RECIPES = {"paper": PAPER, "mini": MINI}
