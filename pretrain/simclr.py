"""SimCLR: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations",
ICML 2020.

Examples:

    python pretrain/simclr.py mini  # bundled synthetic data
    python pretrain/simclr.py paper --data ROOT --device cuda    # a row of PCL's Table 1
    python pretrain/simclr.py cifar10 --data ROOT --device cuda  # a row of SPCL's Table 2
    torchrun --nproc_per_node 8 pretrain/simclr.py paper --data ROOT  # the same batch on eight GPUs

The network is the original's (google-research/simclr): BatchNorm after both layers of the
projection head, residual blocks that start as the identity. The released code of SPCL starts them
as usual, and others' implementations often have no BatchNorm in the head: ``zero_gamma``,
``head_bn``. Authors of tables that "re-implement SimCLR" (PCL) do not say which they have.

Departures from the original's code:

- Inputs are normalised by ImageNet's mean and standard deviation, as for all methods here (the
  original uses 0..1).
- Crops are resized bilinearly, as torchvision's are, not bicubically. CIFAR is held in memory, and
  its views are made from whole batches; pretrain/augment/tensor.py says how they differ from
  torchvision's.
- The loss is the paper's mean over 2N views; the code adds the means of both halves, twice as much.
  LARS hides a factor, but for BatchNorm and biases.
- LARS multiplies by the learning rate after the momentum (pretrain/optim.py).

Shapes: N batch, C embedding."""

if __name__ == "__main__":  # before torch is imported, so that --help is instant
    from pretrain import command
    from pretrain.recipes import simclr as recipes

    command.main(__doc__, recipes.RECIPES)

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.method import Method, Networks
from pretrain.precision import in_fp32
from pretrain.recipes import simclr as recipes
from pretrain.similarity import Similarity
from protobench.checkpoints import heads
from protobench.checkpoints.resnet import build as build_backbone
from protobench.runtime import distributed


@in_fp32
def nt_xent(a_NC: Tensor, b_NC: Tensor, temperature: float) -> Tensor:
    """SimCLR's Eq. 1, the mean over all 2N views: cross-entropy of identifying a view's partner
    among the 2N - 1 other views. Inputs have unit norm."""
    z = torch.cat([a_NC, b_NC])
    logits = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
    n = len(a_NC)
    partner = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(logits, partner)


class SimCLR(Method):
    """One encoder, two views, a two-layer projection head."""

    def __init__(self, recipe: recipes.SimCLR, labels: Tensor):
        super().__init__()
        self.recipe, self.similarity = recipe, Similarity(recipe.temperature)
        self.labels: Tensor
        self.register_buffer("labels", labels, persistent=False)
        self.backbone = build_backbone(recipe.arch, zero_gamma=recipe.zero_gamma)
        width, head = self.backbone.out_channels, heads.mlp_with_batch_norm
        self.projection = (head if recipe.head_bn else heads.mlp)(width, width, recipe.dim)

    def networks(self) -> Networks:
        """See ``Method``."""
        return Networks(self.backbone, self.projection)

    def loss(self, views: list[Tensor], index_N: Tensor) -> Tensor:
        """NT-Xent of the global batch. Both views pass the network together, so BatchNorm sees 2N
        images, as in the original."""
        z_VNC = F.normalize(self.projection(self.backbone(torch.cat(views))), dim=1).view(
            2, len(views[0]), -1
        )
        a_NC, b_NC = distributed.concat_all_gather_with_grad(z_VNC, dim=1)
        self.similarity.add(a_NC.detach(), b_NC.detach(), self.labels[index_N], index_N, index_N)
        return nt_xent(a_NC, b_NC, self.recipe.temperature)

    def end_epoch(self) -> dict[str, float]:
        """Returns TP and FN similarity."""
        return self.similarity.epoch()

    def get_extra_state(self) -> dict[str, Tensor]:
        """What has been measured in the current epoch, for checkpoints."""
        return {"similarity": self.similarity.total}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Restores what ``get_extra_state`` returned."""
        self.similarity.total = state["similarity"].to(self.labels.device)


def build(recipe: recipes.SimCLR, labels: Tensor, num_classes: int, seed: int) -> SimCLR:
    """See method.py; labels are used to measure FN similarity only."""
    return SimCLR(recipe, labels)
