"""The Random row: a network as initialised (He et al., ICCV 2015), the lower control of every
table.

Example:

    python pretrain/untrained.py mini
"""

if __name__ == "__main__":  # before torch is imported, so that --help is instant
    from pretrain import command
    from pretrain.recipes import untrained as recipes

    command.main(__doc__, recipes.RECIPES)

from torch import Tensor

from pretrain.method import Method, Networks
from pretrain.recipes import untrained as recipes
from protobench.checkpoints.resnet import build as build_backbone


class Untrained(Method):
    """A backbone that is never trained: its recipe has no epochs."""

    def __init__(self, recipe: recipes.Untrained):
        super().__init__()
        self.backbone = build_backbone(recipe.arch)

    def networks(self) -> Networks:
        """See ``Method``."""
        return Networks(self.backbone)


def build(recipe: recipes.Untrained, labels: Tensor, num_classes: int, seed: int) -> Untrained:
    """See method.py; labels are not used."""
    return Untrained(recipe)
