"""Momentum contrast: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020 (v1),
and Chen et al., arXiv 2003.04297 (v2: two-layer head, stronger augmentation, cosine schedule, temperature 0.2).

Examples:

    python pretrain/moco.py mini                        # embedded data, about two minutes on one core
    python pretrain/moco.py v2 --data ROOT --device cuda  # ROOT/imagenet/train, the paper's recipe

Departures from the released code: the InfoNCE temperature, queue and key encoder are the same; BatchNorm shuffling
between GPUs has nothing to shuffle in one process. Shapes: N batch, C embedding, K queue.
"""

if __name__ == "__main__":  # before torch is imported: --help should not wait for it
    from pretrain import command, recipes

    command.main(__doc__, {"v1": recipes.MOCO_V1, "v2": recipes.MOCO_V2, "mini": recipes.MOCO_MINI})

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain import recipes
from protobench.backbones import ResNet
from protobench.backbones import build as build_backbone
from protobench.errors import UserError


def info_nce(q_NC: Tensor, k_NC: Tensor, queue_KC: Tensor, temperature: float) -> Tensor:
    """PCL's Eq. 1, the mean over i: -log exp(q.k+ / T) / sum_j exp(q.k_j / T), j over k+ and the queue. Unit-norm inputs."""
    pos_N1 = (q_NC * k_NC).sum(1, keepdim=True)
    neg_NK = q_NC @ queue_KC.T
    target_N = torch.zeros(len(q_NC), dtype=torch.long, device=q_NC.device)
    return F.cross_entropy(torch.cat([pos_N1, neg_NK], 1) / temperature, target_N)


@torch.no_grad()
def momentum_update(key: nn.Module, query: nn.Module, momentum: float) -> None:
    """key <- m key + (1 - m) query for every parameter; BatchNorm statistics stay the key encoder's own."""
    torch._foreach_lerp_(list(key.parameters()), list(query.parameters()), 1 - momentum)


class Encoder(nn.Module):
    """Backbone and projection head; the output has unit norm."""

    def __init__(self, arch: str, dim: int, mlp: bool):
        super().__init__()
        self.backbone = build_backbone(arch)
        width = self.backbone.out_channels
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim)) if mlp else nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] to embeddings [N, C]."""
        return F.normalize(self.head(self.backbone(x)), dim=1)


class MoCo(nn.Module):
    """Query encoder, its moving average, and a queue of the latter's past outputs."""

    num_views = 2

    def __init__(self, recipe: recipes.MoCo):
        super().__init__()
        if recipe.queue % recipe.train.batch_size:
            raise UserError(f"queue {recipe.queue} is not a multiple of the batch size {recipe.train.batch_size}",
                            hint="change --queue or --batch-size")
        self.recipe = recipe
        self.encoder_q = Encoder(recipe.arch, recipe.dim, recipe.mlp)
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        self.queue: Tensor
        self.register_buffer("queue", F.normalize(torch.randn(recipe.queue, recipe.dim), dim=1))
        self.pointer = 0

    @property
    def backbone(self) -> ResNet:
        """What is evaluated: the query encoder's."""
        return self.encoder_q.backbone

    def embed(self, views: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Queries [N, C] and, from the updated key encoder, keys [N, C] without gradient."""
        q_NC = self.encoder_q(views[0])
        with torch.no_grad():
            momentum_update(self.encoder_k, self.encoder_q, self.recipe.momentum)
            k_NC = self.encoder_k(views[1])
        return q_NC, k_NC

    @torch.no_grad()
    def enqueue(self, k_NC: Tensor) -> None:
        """The oldest keys make room; the queue is a multiple of the batch, so a batch never wraps."""
        self.queue[self.pointer : self.pointer + len(k_NC)] = k_NC
        self.pointer = (self.pointer + len(k_NC)) % len(self.queue)

    def loss(self, views: list[Tensor], index_N: Tensor) -> Tensor:
        """InfoNCE of the batch; moves the key encoder and the queue one step on.

        The queue is cloned because the backward pass still reads it after the keys have been put in.
        """
        q_NC, k_NC = self.embed(views)
        loss = info_nce(q_NC, k_NC, self.queue.clone(), self.recipe.temperature)
        self.enqueue(k_NC)
        return loss

    def get_extra_state(self) -> int:
        """The queue's pointer, for checkpoints."""
        return self.pointer

    def set_extra_state(self, state: int) -> None:
        """Restores the queue's pointer."""
        self.pointer = state


def build(recipe: recipes.MoCo, labels: Tensor, num_classes: int, seed: int) -> MoCo:
    """The method as the loop wants it; labels are not used."""
    return MoCo(recipe)
