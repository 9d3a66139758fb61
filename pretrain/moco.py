"""Momentum contrast: He et al., "Momentum Contrast for Unsupervised Visual Representation
Learning", CVPR 2020 (v1), and Chen et al., arXiv 2003.04297 (v2: two-layer head, stronger
augmentation, cosine schedule, temperature 0.2).

Examples:

    python pretrain/moco.py mini  # bundled synthetic data, about a minute and a half on one core
    python pretrain/moco.py v2 --data ROOT --device cuda  # ROOT/imagenet/train, the paper's recipe
    torchrun --nproc_per_node 8 pretrain/moco.py v2 --data ROOT  # the same batch on eight GPUs

Departure from the released code: it shuffles keys between GPUs, whose BatchNorms see 32 images
each; here groups of the batch (``bn_groups``) take the place of GPUs, whatever the number of
processes.

Shapes: N batch, C embedding, K queue."""

if __name__ == "__main__":  # before torch is imported, so that --help is instant
    from pretrain import command
    from pretrain.recipes import moco as recipes

    command.main(__doc__, recipes.RECIPES)

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.method import Method, Networks
from pretrain.precision import in_fp32
from pretrain.recipes import moco as recipes
from protobench import batch_norm, keyed
from protobench.checkpoints.resnet import build as build_backbone
from protobench.runtime import distributed
from protobench.runtime.errors import UserError


@in_fp32
def info_nce(
    q_NC: Tensor,
    k_NC: Tensor,
    queue_KC: Tensor,
    temperature: float,
    log_weight_NK: Tensor | None = None,
) -> Tensor:
    """PCL's Eq. 1, the mean over i: -log exp(q.k+ / T) / sum_j exp(q.k_j / T), where j runs over
    k+ and the queue. Inputs have unit norm. With ``log_weight_NK``, the terms of the queue are
    weighted."""
    pos_N1 = (q_NC * k_NC).sum(1, keepdim=True)
    neg_NK = q_NC @ queue_KC.T
    target_N = torch.zeros(len(q_NC), dtype=torch.long, device=q_NC.device)
    logits = torch.cat([pos_N1, neg_NK], 1) / temperature
    if log_weight_NK is not None:
        logits = logits + F.pad(log_weight_NK, (1, 0))
    return F.cross_entropy(logits, target_N)


@torch.no_grad()
def momentum_update(key: nn.Module, query: nn.Module, momentum: float) -> None:
    """key <- m key + (1 - m) query for every parameter; BatchNorm statistics stay the key encoder's
    own."""
    torch._foreach_lerp_(list(key.parameters()), list(query.parameters()), 1 - momentum)


class Encoder(nn.Module):
    """Backbone and projection head; the output has unit norm."""

    def __init__(self, arch: str, dim: int, mlp: bool):
        super().__init__()
        self.backbone = build_backbone(arch)
        width = self.backbone.out_channels
        self.head = (
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim))
            if mlp
            else nn.Linear(width, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] to embeddings [N, C]."""
        return F.normalize(self.head(self.backbone(x)), dim=1)


class MoCo(Method):
    """Query encoder, key encoder (its moving average), and a queue of past keys."""

    def __init__(self, recipe: recipes.MoCo, seed: int):
        super().__init__()
        batch_size = recipe.train.batch_size
        if recipe.queue % batch_size:
            raise UserError(
                f"queue {recipe.queue} is not a multiple of the batch size {batch_size}",
                hint="change --queue or --batch-size",
            )
        if recipe.bn_groups < 1 or batch_size % recipe.bn_groups or batch_size == recipe.bn_groups:
            raise UserError(
                f"a batch of {batch_size} does not split into {recipe.bn_groups} groups of two or"
                " more",
                hint="change --bn-groups or --batch-size",
            )
        self.recipe, self.seed = recipe, seed
        self.encoder_q = Encoder(recipe.arch, recipe.dim, recipe.mlp)
        if recipe.bn_groups > 1:
            batch_norm.in_groups(
                self.encoder_q, max(recipe.bn_groups // distributed.world_size(), 1)
            )
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        self.queue: Tensor
        self.register_buffer("queue", F.normalize(torch.randn(recipe.queue, recipe.dim), dim=1))
        self.pointer = self.steps = 0

    def networks(self) -> Networks:
        """The query encoder, and the key encoder as momentum encoder."""
        query, key = self.encoder_q, self.encoder_k
        return Networks(query.backbone, query.head, momentum=(key.backbone, key.head))

    def embed(self, views: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Updates the key encoder. Returns the queries [n, C] of this process's share and the keys
        [N, C] of the global batch, which carry no gradient."""
        # keys first: what their maps take is free again before those of the queries are kept
        k_NC = self.keys(views[1])
        return self.encoder_q(views[0]), k_NC

    @torch.no_grad()
    def keys(self, view: Tensor) -> Tensor:
        """Updates the key encoder and returns the keys [N, C] of the global batch, of which
        ``view`` is this process's share. Where BatchNorm sees groups, images are shuffled among
        them."""
        momentum_update(self.encoder_k, self.encoder_q, self.recipe.momentum)
        if self.recipe.bn_groups == 1:
            return distributed.concat_all_gather(self.encoder_k(view))
        x_N3HW = distributed.concat_all_gather(view)
        shuffle_N = torch.randperm(
            len(x_N3HW), generator=self.generator("shuffle"), device=view.device
        )
        shuffled = x_N3HW[distributed.shard_of(shuffle_N)].contiguous(
            memory_format=torch.channels_last
        )
        k_NC = distributed.concat_all_gather(self.encoder_k(shuffled))
        return torch.empty_like(k_NC).index_copy_(0, shuffle_N, k_NC)

    def generator(self, *key: int | str) -> torch.Generator:
        """A random generator for this step and one purpose, on the method's device."""
        return torch.Generator(self.queue.device).manual_seed(
            keyed.seed(self.seed, self.steps, *key)
        )

    @torch.no_grad()
    def enqueue(self, k_NC: Tensor) -> None:
        """Replaces the oldest keys in the queue and ends the step. The queue is a multiple of the
        batch, so a batch never wraps around."""
        self.queue[self.pointer : self.pointer + len(k_NC)] = k_NC
        self.pointer = (self.pointer + len(k_NC)) % len(self.queue)
        self.steps += 1

    def loss(self, views: list[Tensor], index_N: Tensor) -> Tensor:
        """InfoNCE of this process's share of the batch. Advances the key encoder and the queue by
        one step."""
        q_NC, k_NC = self.embed(views)
        loss = self.instance_loss(q_NC, k_NC, index_N)
        self.enqueue(k_NC)
        return loss

    def instance_loss(self, q_NC: Tensor, k_NC: Tensor, index_N: Tensor) -> Tensor:
        """InfoNCE of this process's queries [n, C] against keys [N, C] of the global batch and the
        queue, which is cloned because the backward pass still reads it after the keys have been
        added."""
        return info_nce(
            q_NC, distributed.shard_of(k_NC), self.queue.clone(), self.recipe.temperature
        )

    def get_extra_state(self) -> dict[str, Any]:
        """The counters, for checkpoints."""
        return {"pointer": self.pointer, "steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores the counters."""
        self.pointer, self.steps = state["pointer"], state["steps"]


def build(recipe: recipes.MoCo, labels: Tensor, num_classes: int, seed: int) -> MoCo:
    """See method.py; labels are not used."""
    return MoCo(recipe, seed)
