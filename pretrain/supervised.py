"""The Supervised row: cross-entropy on the labels, the upper control of every table.

Examples:

    python pretrain/supervised.py mini
    python pretrain/supervised.py paper --data ROOT --device cuda  # torchvision's V1 recipe

torchvision's own weights serve as well.
"""

if __name__ == "__main__":  # before torch is imported, so that --help is instant
    from pretrain import command
    from pretrain.recipes import supervised as recipes

    command.main(__doc__, recipes.RECIPES)

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.method import Method, Networks
from pretrain.recipes import supervised as recipes
from protobench.checkpoints.resnet import build as build_backbone
from protobench.runtime import distributed


class Supervised(Method):
    """A classifier."""

    num_views = 1

    def __init__(self, recipe: recipes.Supervised, labels: Tensor, num_classes: int):
        super().__init__()
        self.backbone = build_backbone(recipe.arch)
        self.fc = nn.Linear(self.backbone.out_channels, num_classes)
        self.labels: Tensor
        self.register_buffer("labels", labels, persistent=False)

    def networks(self) -> Networks:
        """See ``Method``."""
        return Networks(self.backbone)

    def loss(self, views: list[Tensor], index_N: Tensor) -> Tensor:
        """Cross-entropy of one view's logits with the labels."""
        return F.cross_entropy(
            self.fc(self.backbone(views[0])), self.labels[distributed.shard_of(index_N)]
        )


def build(recipe: recipes.Supervised, labels: Tensor, num_classes: int, seed: int) -> Supervised:
    """See method.py."""
    return Supervised(recipe, labels, num_classes)
