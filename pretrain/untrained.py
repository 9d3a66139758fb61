"""The Random row: a network as initialised (He et al., ICCV 2015), the lower control of every
table.

Example:

    python pretrain/untrained.py mini
"""

if __name__ == "__main__":  # before torch is imported: --help should not wait for it
    from pretrain import command, recipes

    command.main(__doc__, {"paper": recipes.UNTRAINED, "mini": recipes.UNTRAINED_MINI})

from torch import Tensor, nn

from pretrain import recipes
from protobench.checkpoints.resnet import build as build_backbone


class Untrained(nn.Module):
    """Never steps: its recipe has no epochs."""

    num_views = 1

    def __init__(self, recipe: recipes.Untrained):
        super().__init__()
        self.backbone = build_backbone(recipe.arch)


def build(recipe: recipes.Untrained, labels: Tensor, num_classes: int, seed: int) -> Untrained:
    """The method as the loop wants it; labels are not used."""
    return Untrained(recipe)
