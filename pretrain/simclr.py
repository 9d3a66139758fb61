"""SimCLR: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations",
ICML 2020.

Examples:

    python pretrain/simclr.py mini                          # embedded data
    python pretrain/simclr.py paper --data ROOT --device cuda  # batch 256, 200 epochs, as a row of PCL's Table 1
    python pretrain/simclr.py cifar10 --data ROOT --device cuda # batch 512, 1000 epochs, as a row
    of SPCL's Table 2 torchrun --nproc_per_node 8 pretrain/simclr.py paper --data ROOT   # the same
    batch, shared by eight GPUs

Departure: inputs are normalised by ImageNet's mean and deviation, as for all methods here (the
original uses 0..1). Shapes: N batch, C embedding."""

if __name__ == "__main__":  # before torch is imported: --help should not wait for it
    from pretrain import command, recipes

    command.main(
        __doc__,
        {"paper": recipes.SIMCLR, "cifar10": recipes.SIMCLR_CIFAR10, "mini": recipes.SIMCLR_MINI},
    )

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain import recipes
from pretrain.precision import in_fp32
from pretrain.similarity import Similarity
from protobench.checkpoints.resnet import build as build_backbone
from protobench.runtime import distributed


@in_fp32
def nt_xent(a_NC: Tensor, b_NC: Tensor, temperature: float) -> Tensor:
    """SimCLR's Eq. 1, the mean over all 2N views: cross-entropy of the other view among the 2N - 1
    others. Unit norm."""
    z = torch.cat([a_NC, b_NC])
    logits = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
    n = len(a_NC)
    partner = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(logits, partner)


class SimCLR(nn.Module):
    """One encoder, two views, a two-layer projection head."""

    num_views = 2

    def __init__(self, recipe: recipes.SimCLR, labels: Tensor):
        super().__init__()
        self.recipe, self.similarity = recipe, Similarity()
        self.labels: Tensor
        self.register_buffer("labels", labels, persistent=False)
        self.backbone = build_backbone(recipe.arch)
        width = self.backbone.out_channels
        self.projection = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, recipe.dim)
        )

    def loss(self, views: list[Tensor], index_N: Tensor) -> Tensor:
        """NT-Xent of the whole batch, of which ``views`` may be a share; both views pass together,
        so BatchNorm sees 2N images as in the original."""
        z_VNC = F.normalize(self.projection(self.backbone(torch.cat(views))), dim=1).view(
            2, len(views[0]), -1
        )
        a_NC, b_NC = distributed.concat_all_gather_with_grad(z_VNC, dim=1)
        self.similarity.add(a_NC.detach(), b_NC.detach(), self.labels[index_N], index_N, index_N)
        return nt_xent(a_NC, b_NC, self.recipe.temperature)

    def end_epoch(self) -> dict[str, float]:
        """TP and FN similarity, for the log."""
        return self.similarity.epoch()

    def get_extra_state(self) -> dict[str, Tensor]:
        """What the epoch has measured so far, for checkpoints."""
        return {"similarity": self.similarity.total}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Restores it."""
        self.similarity.total = state["similarity"].to(self.labels.device)


def build(recipe: recipes.SimCLR, labels: Tensor, num_classes: int, seed: int) -> SimCLR:
    """The method as the loop wants it; labels are used to measure FN similarity only."""
    return SimCLR(recipe, labels)
