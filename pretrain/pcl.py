"""PCL: Li et al., "Prototypical Contrastive Learning of Unsupervised Representations" (arXiv,
2020).

Examples:

    python pretrain/pcl.py mini  # bundled synthetic data, about a minute and a half on one core
    python pretrain/pcl.py v1 --data ROOT --device cuda  # ROOT/imagenet/train, the paper's recipe
    python pretrain/pcl.py v2 --data ROOT --concentration fixed
    torchrun --nproc_per_node 4 pretrain/pcl.py v1 --data ROOT  # the same batch on four GPUs

Every epoch has an E-step, k-means on the momentum features of centre crops, and an M-step,
ProtoNCE. Builds on MoCo, as in the paper.

Departures from the released code:

- Negative prototypes are the first ones of a random permutation instead of ``random.sample`` on a
  Python set: the same distribution from another random stream (the original no longer runs on
  Python 3.11).
- Two images of one prototype in a batch are not each other's negatives. In the original they are
  if they are on one GPU: at K = 25 000 and a batch of 256 about 0.3 pairs a step on 4 GPUs and 0.16
  on 8 (the whole batch holds 1.3), and most of the batch at small K.
- The original draws per GPU, where the prototypes of the 32 to 64 images of the local batch are
  extra negatives; here those of the global batch are.
- The original's BatchNorm and shuffling are between GPUs, of which the authors had 4; here groups
  of the batch (``bn_groups``) take their place, as in MoCo.
- Where there are no more prototypes than can be drawn, all of them are compared (small data only).

Taken from the code where the paper is silent: singletons get the largest phi, phi is clipped to its
10th and 90th percentiles before it is scaled, k-means runs 20 iterations from 5 starts, seeded by
the granularity's position, and prototypes are normalised after distances are computed.

Shapes: N batch, C embedding, I images, K prototypes, R negatives."""

if __name__ == "__main__":  # before torch is imported, so that --help is instant
    from pretrain import command
    from pretrain.recipes import pcl as recipes

    command.main(__doc__, recipes.RECIPES)

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.method import Extract
from pretrain.moco import MoCo
from pretrain.precision import in_fp32
from pretrain.recipes import pcl as recipes
from protobench.kmeans import Clustering, kmeans
from protobench.runtime import distributed
from protobench.runtime.errors import UserError


def concentration(
    distance_I: np.ndarray,
    assignment_I: np.ndarray,
    k: int,
    *,
    temperature: float,
    alpha: float = 10.0,
    singleton_rule: bool = True,
    clip_percentiles: tuple[float, float] = (10.0, 90.0),
) -> np.ndarray:
    """Eq. 12: phi = sum of distances to the prototype / (Z log(Z + alpha)), scaled to a mean of
    ``temperature``; [K].

    Z is the cluster's size. In the released code's order: clusters of at most one image get the
    largest phi, then phi is clipped to the percentiles, then scaled. Finite and positive for every
    input, empty clusters included."""
    prototype_I, distance = torch.from_numpy(assignment_I), torch.from_numpy(distance_I).double()
    # torch counts faster than NumPy, and sums in the same order
    size_K = torch.bincount(prototype_I, minlength=k).double().numpy()
    total_K = torch.zeros(k, dtype=torch.float64).scatter_add_(0, prototype_I, distance).numpy()
    phi_K = total_K / (np.maximum(size_K, 1) * np.log(size_K + alpha))
    if singleton_rule:
        phi_K[size_K <= 1] = phi_K[size_K > 1].max(initial=0.0)
    phi_K = phi_K.clip(*np.percentile(phi_K, clip_percentiles))
    if phi_K.max() < 1e-12:  # every image lies on its prototype: nothing to estimate
        return np.full(k, temperature)
    # a cluster of identical images would otherwise divide the logits by zero
    phi_K = np.maximum(phi_K, 1e-3 * phi_K.max())
    scaled_K: np.ndarray = phi_K * (temperature / phi_K.mean())
    return scaled_K


def draw_negatives(
    positive_N: Tensor, num_prototypes: int, num_negatives: int, generator: torch.Generator
) -> Tensor:
    """R distinct prototypes, none of them positive for an image of the batch, all such sets equally
    likely; int64 [R].

    They are the first R of a permutation that are not positive: at most N of the first R + N are.
    All shapes are known beforehand, so the host never synchronises with the device. ValueError
    where R + N exceeds ``num_prototypes``."""
    r, device = num_negatives, positive_N.device
    if r + len(positive_N) > num_prototypes:
        raise ValueError(
            f"{r} negatives beside {len(positive_N)} images' own, of {num_prototypes} prototypes"
        )
    shuffled_K = torch.randperm(
        num_prototypes, generator=generator, device=device, dtype=torch.int32
    )
    candidate = shuffled_K[: r + len(positive_N)].long()
    free_K = torch.ones(num_prototypes, dtype=torch.bool, device=device).index_fill_(
        0, positive_N, False
    )
    free = free_K[candidate]
    # positives, and negatives beyond R, land in a position behind the last
    place = torch.where(free, free.cumsum(0) - 1, r).clamp_(max=r)
    return candidate.new_empty(r + 1).scatter_(0, place, candidate)[:r]


@in_fp32
def proto_nce(
    q_NC: Tensor,
    prototypes_KC: Tensor,
    phi_K: Tensor,
    positive_N: Tensor,
    negative_R: Tensor | None,
) -> Tensor:
    """The prototype term of Eq. 11 for one granularity, the mean over i: -log exp(q.c_s / phi_s) /
    sum_j exp(q.c_j / phi_j).

    j runs over all prototypes (``negative_R`` None), or over those of the batch and the drawn
    negatives; a prototype that several images of the batch share counts once. ``positive_N`` is
    that of the global batch, ``q_NC`` may be this process's share of it."""
    if negative_R is None:
        return F.cross_entropy(q_NC @ prototypes_KC.T / phi_K, distributed.shard_of(positive_N))
    column = torch.cat([positive_N, negative_R])
    logits = q_NC @ prototypes_KC[column].T / phi_K[column]
    same_NN = positive_N[:, None] == positive_N
    repeated = same_NN.tril(-1).any(1)  # an earlier image has the same prototype
    logits = logits.masked_fill(F.pad(repeated, (0, len(negative_R))), float("-inf"))
    first = same_NN.int().argmax(1)  # the column of its prototype
    return F.cross_entropy(logits, distributed.shard_of(first))


class PCL(MoCo):
    """MoCo plus prototypes. Per granularity: the centroids [K, C], their phi [K] and the prototype
    of every image [I]."""

    def __init__(self, recipe: recipes.PCL, seed: int):
        super().__init__(recipe, seed)
        self.recipe: recipes.PCL = recipe
        self.prototypes: list[tuple[Tensor, Tensor, Tensor]] = []

    def start_epoch(self, epoch: int, extract: Extract) -> dict[str, float]:
        """E-step: clusters the momentum features of all images and returns statistics of the
        clusters. Only the main process clusters; the result is broadcast."""
        self.prototypes = []
        if epoch < self.recipe.warmup or not self.recipe.num_prototypes:
            return {}
        features_IC = extract(self.encoder_k)
        clusterings = distributed.broadcast_from_main(
            lambda: [
                self._cluster(features_IC, m, k) for m, k in enumerate(self.recipe.num_prototypes)
            ]
        )
        log: dict[str, float] = {}
        for k, (centroids_KC, phi_K, prototype_I) in zip(
            self.recipe.num_prototypes, clusterings, strict=True
        ):
            self.prototypes.append(
                (
                    F.normalize(torch.from_numpy(centroids_KC).to(self.queue), dim=1),
                    torch.from_numpy(phi_K).to(self.queue),
                    torch.from_numpy(prototype_I).to(self.queue.device),
                )
            )
            size_K = np.bincount(prototype_I, minlength=k)
            log |= {
                f"clusters_{k}_empty": int((size_K == 0).sum()),
                f"clusters_{k}_sd": float(size_K.std()),
                f"phi_{k}_min": float(phi_K.min()),
                f"phi_{k}_max": float(phi_K.max()),
            }
        return log

    def _cluster(
        self, features_IC: np.ndarray, m: int, k: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centroids [K, C], their phi [K] and the prototype of every image [I]."""
        recipe, clusters = self.recipe, self._kmeans(features_IC, m, k)
        phi_K = np.full(k, recipe.temperature)
        if recipe.concentration == "estimated":
            phi_K = concentration(
                clusters.distance,
                clusters.assignment,
                k,
                temperature=recipe.temperature,
                alpha=recipe.alpha,
                singleton_rule=recipe.singleton_rule,
                clip_percentiles=recipe.clip_percentiles,
            )
        return clusters.centroids, phi_K, clusters.assignment

    def _kmeans(self, features_IC: np.ndarray, m: int, k: int) -> Clustering:
        recipe, gpu = self.recipe, self.queue.is_cuda
        return kmeans(features_IC, k, seed=m, niter=recipe.niter, nredo=recipe.nredo, gpu=gpu)

    def get_extra_state(self) -> dict[str, Any]:
        """The counters and the epoch's clusters, for checkpoints."""
        return super().get_extra_state() | {"prototypes": [list(part) for part in self.prototypes]}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores what ``get_extra_state`` returned."""
        super().set_extra_state(state)
        device = self.queue.device
        self.prototypes = [
            (c.to(device), phi.to(device), image.to(device))
            for c, phi, image in state["prototypes"]
        ]

    def loss(self, views: list[Tensor], index_N: Tensor) -> Tensor:
        """ProtoNCE (Eq. 11) of this process's share: InfoNCE plus the mean of the prototype terms
        over the M granularities."""
        q_NC, k_NC = self.embed(views)
        loss = self.instance_loss(q_NC, k_NC, index_N)
        terms = []
        for m, (prototypes_KC, phi_K, prototype_I) in enumerate(self.prototypes):
            positive_N = prototype_I[index_N]
            terms.append(
                proto_nce(
                    q_NC,
                    prototypes_KC,
                    phi_K,
                    positive_N,
                    self._negatives(m, positive_N, len(phi_K)),
                )
            )
        if terms:
            loss = loss + torch.stack(terms).mean()
        self.enqueue(k_NC)
        return loss

    def _negatives(self, m: int, positive_N: Tensor, k: int) -> Tensor | None:
        if self.recipe.num_negatives >= k - len(positive_N):
            return None
        return draw_negatives(
            positive_N, k, self.recipe.num_negatives, self.generator("negatives", m)
        )


def check_prototypes(recipe: recipes.PCL, labels: Tensor) -> None:
    """UserError where there are more prototypes than images."""
    if recipe.train.epochs and max(recipe.num_prototypes, default=0) > len(labels):
        raise UserError(
            f"PCL: {max(recipe.num_prototypes)} clusters requested of {len(labels)} images",
            hint="lower --num-prototypes; the paper's 25000, 50000 and 100000 are for ImageNet",
        )


def build(recipe: recipes.PCL, labels: Tensor, num_classes: int, seed: int) -> PCL:
    """See method.py; labels are not used. UserError where there are more prototypes than images."""
    check_prototypes(recipe, labels)
    return PCL(recipe, seed)
