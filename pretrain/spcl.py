"""SPCL: Mo, Sun and Li, "Siamese Prototypical Contrastive Learning" (arXiv 2208.08819, 2022).

Examples:

    python pretrain/spcl.py mini  # bundled synthetic data, about two minutes on one core
    python pretrain/spcl.py cifar10 --data ROOT --device cuda  # ROOT/cifar-10-batches-py
    python pretrain/spcl.py cifar100 --data ROOT --device cuda
    # 21 GiB on each GPU (computed); one would need 164
    torchrun --nproc_per_node 8 pretrain/spcl.py imagenet --data ROOT
    python pretrain/spcl.py mini --pairs labels  # the leak: pairs drawn by true class

Every epoch begins with k-means on the backbone's features of one random view of each image. A step
takes pairs of images of one prototype p and as many images of other prototypes q; its loss is the
sum of the contrastive, the metric and the prototype loss with equal weights. Labels are used only
where ``pairs`` or ``prototypes`` say so, and to measure TP and FN similarity.

How the paper is read where it leaves a choice (each is a field of the recipe):

- Algorithm 1 draws one p per step. Half a batch cannot come from one cluster of a hundred images,
  and its images would be one another's false negatives. Here every pair draws its own p and q,
  uniformly over the clusters that have two images (p) or one (q).
- Eq. 1 leaves the positive out of the denominator, but is called "ordinary NT-Xent, following
  SimCLR", which has it.
- Eqs. 1-4 are sums over equally many terms, about four per image of a half batch; here they are
  means, which keeps their ratio.
- Eq. 3: g_m sees the vector of absolute differences. The norm of the difference would be a single
  number, and would leave a gap to the stated 36 million parameters: 23.5 + g_c 4.5 + g_p 4.2 + a
  two-layer g_m 4.2 = 36.4.
- Algorithm 1 initialises all three heads every epoch. Only g_p has to be re-initialised, because
  each clustering renames its outputs.
- A re-initialised head has one epoch to learn. At the annealed rate it learns nothing (bundled
  data: its loss falls from 5.0 to 0.6 in epoch 10 of 40 and stays at 4.9 in the last one) and
  passes the gradient of a random map to the backbone. It is trained at the peak rate throughout;
  the released code gives it an optimiser of its own at a constant rate.
- A batch of 512 is 512 images, 256 from p and 256 from q, in two views each: the same work as
  SimCLR at 512.
- CIFAR is held in memory, so its views are made from whole batches; pretrain/augment/tensor.py says
  how they differ from torchvision's.

Departures from the released code (github.com/stoneMo/SPCL), which cannot support the paper: it
draws its pairs by the *true* classes (and with the paper's 512 prototypes stops in that draw, with
a KeyError), assigns pseudo-labels to images in another order than they were computed in, trains
with BatchNorm in evaluation mode, and has 10 outputs for 512 prototypes. Its g_c has biases and a
second shift where SimCLR's, which is used here, has none. Here pseudo-labels belong to images by
their number, whatever the order or the number of workers.

Rules for what the paper does not foresee: a cluster of one image is never p; an image drawn twice
into a batch is seen in other views and is not its own negative; empty clusters are not drawn; if
all images fall into one cluster, training stops.

Memory of the clustering: features are kept at unit length in half precision, ImageNet's 1.28 M x
2048 in 5.2 GB; k-means learns from at most 256 images per prototype (K = 2048: 4.3 GB in single
precision); images are assigned in blocks of 0.5 GB: 9.5 GB at most. With ``whiten`` 256: 5.2 GB,
4.1 GB to learn from, then 1.3 GB in their place.

Shapes: N batch, V views of it, M both views of a share of it, C embedding, D feature, I images,
K prototypes, S steps."""

if __name__ == "__main__":  # before torch is imported, so that --help is instant
    from pretrain import command
    from pretrain.recipes import spcl as recipes

    command.main(__doc__, recipes.RECIPES)

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pretrain.method import Extract, Method, Networks
from pretrain.precision import in_fp32
from pretrain.recipes import spcl as recipes
from pretrain.similarity import Similarity
from protobench import keyed
from protobench.checkpoints import heads
from protobench.checkpoints.resnet import build as build_backbone
from protobench.kmeans import kmeans, whitened
from protobench.runtime import distributed
from protobench.runtime.errors import UserError

POINTS_PER_PROTOTYPE = 256
"""How many images per prototype k-means learns from at most; faiss's own default."""


@in_fp32
def contrastive_loss(
    a_NC: Tensor, b_NC: Tensor, image_N: Tensor, temperature: float, decoupled: bool = False
) -> Tensor:
    """Eqs. 1 and 2, the mean over all 2N views: -log exp(s(z, z') / T) / sum_j exp(s(z, z_j) / T).
    Inputs have unit norm.

    j runs over the views of all other images (``image_N`` are the image numbers) and over z',
    which ``decoupled`` leaves out."""
    z, image = torch.cat([a_NC, b_NC]), image_N.repeat(2)
    positive = (a_NC * b_NC).sum(1).repeat(2) / temperature
    rest = (z @ z.T / temperature).masked_fill(image[:, None] == image, float("-inf")).logsumexp(1)
    if decoupled:  # a view without any negative has no term
        return (rest - positive).masked_fill(rest.isneginf(), 0.0).mean()
    return -F.logsigmoid(positive - rest).mean()


@in_fp32
def metric_loss(same: Tensor, different: Tensor) -> Tensor:
    """Eq. 3, the mean over its terms: cross-entropy of g_m's logits, whose targets are 1 for pairs
    of one prototype and 0 for pairs of two."""
    return -(F.logsigmoid(same).mean() + F.logsigmoid(-different).mean()) / 2


@in_fp32
def prototype_loss(logits_NK: Tensor, prototype_N: Tensor) -> Tensor:
    """Eq. 4, the mean over its terms: cross-entropy of g_p's logits with the images' prototypes."""
    return F.cross_entropy(logits_NK, prototype_N)


@in_fp32
def symmetric_cross_entropy(
    logits_NK: Tensor, prototype_N: Tensor, alpha: float, beta: float
) -> Tensor:
    """Wang et al. (ICCV 2019), Eqs. 5-7: alpha CE(q, p) + beta CE(p, q). The zeros of a one-hot q
    are replaced by 1e-4 in the logarithm, so the second term is -log(1e-4) times the probability of
    all other prototypes."""
    p_N = logits_NK.softmax(1).gather(1, prototype_N[:, None])
    return (
        alpha * F.cross_entropy(logits_NK, prototype_N) + beta * -math.log(1e-4) * (1 - p_N).mean()
    )


def draw_batches(
    group_I: np.ndarray,
    steps: int,
    batch_size: int,
    rng: np.random.Generator,
    *,
    one_anchor: bool = False,
) -> np.ndarray:
    """Algorithm 1, lines 5 and 6: image numbers, int64 [S, N]. The first quarter of a batch are the
    first images of pairs, the second quarter their partners, distinct images of the same group; the
    second half are images of other groups: image n + N/2 is of another group than image n.

    Groups p are equally likely among those of two images or more, q among all others that are not
    empty. With ``one_anchor`` a whole step has one p. UserError where there is no pair, or only one
    group."""
    size_K = np.bincount(group_I)
    member_I, start_K = np.argsort(group_I, kind="stable"), np.cumsum(size_K) - size_K
    paired, filled = np.flatnonzero(size_K >= 2), np.flatnonzero(size_K)
    if len(filled) < 2:
        raise UserError(
            "SPCL: all images lie in one cluster (or class), so there are no negatives",
            hint=(
                "if these are clusters, the encoder has collapsed: lower --lr, or raise"
                " --num-prototypes"
            ),
        )
    if not len(paired):
        raise UserError(
            f"SPCL: each of the {len(filled)} clusters (or classes) holds a single image, so"
            " there are no pairs",
            hint="if these are clusters, lower --num-prototypes",
        )
    quarter = batch_size // 4
    p = np.broadcast_to(rng.choice(paired, (steps, 1 if one_anchor else quarter)), (steps, quarter))
    first = rng.integers(0, size_K[p])
    second = rng.integers(0, size_K[p] - 1)
    second += second >= first
    of_half = np.concatenate([p, p], 1)
    other = rng.integers(0, len(filled) - 1, of_half.shape)
    q = filled[other + (other >= np.searchsorted(filled, of_half))]
    third = rng.integers(0, size_K[q])
    return np.concatenate(
        [member_I[start_K[p] + first], member_I[start_K[p] + second], member_I[start_K[q] + third]],
        1,
    )


class SPCL(Method):
    """A backbone with three heads: g_c (projection), g_m (metric), g_p (one per K)."""

    def __init__(self, recipe: recipes.SPCL, labels: Tensor, num_classes: int, seed: int):
        super().__init__()
        self.recipe, self.seed = recipe, seed
        _check(recipe, labels, num_classes)
        self.backbone = build_backbone(recipe.arch, zero_gamma=recipe.zero_gamma)
        width, head = self.backbone.out_channels, heads.mlp_with_batch_norm
        self.projection = (head if recipe.head_bn else heads.mlp)(width, width, recipe.dim)
        seen = width if recipe.distance == "elementwise" else 1
        self.metric = (
            nn.Sequential(nn.Linear(seen, width), nn.ReLU(), nn.Linear(width, 1))
            if recipe.metric_head == "mlp"
            else nn.Linear(seen, 1)
        )
        outputs = (num_classes,) if recipe.prototypes == "labels" else recipe.num_prototypes
        self.prototype_heads = nn.ModuleList(nn.Linear(width, k) for k in outputs)
        self.labels: Tensor
        self.register_buffer("labels", labels, persistent=False)
        self.prototypes: list[Tensor] = []
        self.classes = self.groups = labels.numpy()
        self.similarity = Similarity(recipe.temperature)
        self.pair_statistics: dict[str, float] = {}
        self.terms: dict[str, list[Tensor]] = {}

    def networks(self) -> Networks:
        """See ``Method``."""
        return Networks(self.backbone, self.projection)

    def start_epoch(self, epoch: int, extract: Extract) -> dict[str, float]:
        """Algorithm 1, lines 2 and 3: re-initialises heads, clusters anew, and returns statistics
        of the clusters.

        Clusters hold image numbers, so the order in which images are trained on does not matter."""
        log: dict[str, float] = {}
        self._renew(epoch)
        if numbers := self._clusterings():
            features_ID = extract(_Unit(self.backbone), epoch=epoch, dtype=np.float16)
            clusterings = distributed.broadcast_from_main(
                lambda: self._cluster(features_ID, epoch, numbers)
            )
            for k, assignment_I in zip(numbers, clusterings, strict=True):
                sizes = np.bincount(assignment_I, minlength=k)
                log |= {
                    f"clusters_{k}_empty": int((sizes == 0).sum()),
                    f"clusters_{k}_single": int((sizes == 1).sum()),
                    f"clusters_{k}_sd": float(sizes.std()),
                }
            self._use([torch.from_numpy(assignment_I) for assignment_I in clusterings])
        return log

    def _cluster(
        self, features_ID: np.ndarray, epoch: int, numbers: tuple[int, ...]
    ) -> list[np.ndarray]:
        """The cluster of every image [I], for each number of clusters."""
        recipe = self.recipe
        if recipe.whiten:
            features_ID = whitened(features_ID, recipe.whiten, seed=epoch)
        return [
            kmeans(
                features_ID,
                k,
                seed=keyed.seed(self.seed, "clusters", epoch, m) % 2**31,
                niter=recipe.niter,
                nredo=recipe.nredo,
                points_per_centroid=POINTS_PER_PROTOTYPE,
                gpu=self.labels.is_cuda,
            ).assignment
            for m, k in enumerate(numbers)
        ]

    def _use(self, clusters: list[Tensor]) -> None:
        """Makes ``clusters``, [I] each, the epoch's prototypes and, where the recipe says so, the
        groups that pairs are drawn from."""
        if clusters and self.recipe.pairs == "clusters":
            self.groups = clusters[0].cpu().numpy()
        self.prototypes = [prototype_I.to(self.labels.device) for prototype_I in clusters]

    def get_extra_state(self) -> dict[str, Any]:
        """The epoch's clusters and what has been measured in it, for checkpoints."""
        return {
            "prototypes": self.prototypes,
            "similarity": self.similarity.total,
            "terms": {name: torch.stack(values) for name, values in self.terms.items()},
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores what ``get_extra_state`` returned."""
        self._use(state["prototypes"])
        self.similarity.total = state["similarity"].to(self.labels.device)
        self.terms = {
            name: list(values.to(self.labels.device)) for name, values in state["terms"].items()
        }

    def draw_batches(self, epoch: int, steps: int) -> np.ndarray:
        """The epoch's batches, [S, N]: see the function ``draw_batches``."""
        size, rng = self.recipe.train.batch_size, keyed.generator(self.seed, "pairs", epoch)
        batches_SN = draw_batches(
            self.groups, steps, size, rng, one_anchor=self.recipe.anchors == "step"
        )
        first, partner, other = np.split(self.classes[batches_SN], [size // 4, size // 2], 1)
        self.pair_statistics = {
            "positives_of_one_class": float((first == partner).mean()),
            "negatives_of_one_class": float((np.concatenate([first, partner], 1) == other).mean()),
        }
        return batches_SN

    def loss(self, views: list[Tensor], index_N: Tensor) -> Tensor:
        """Eq. 5. All views pass the network together, as in SimCLR. The layout of a batch is that
        of ``draw_batches``. Each process passes its share through the backbone and g_c, whose
        BatchNorm sees the global batch; the other heads and the losses, which cost little, are
        computed for the global batch in every process."""
        recipe, n = self.recipe, len(index_N)
        h_MD = self.backbone(torch.cat(views))
        z_MC = F.normalize(self.projection(h_MD), dim=1)
        h_VND, (a_NC, b_NC) = (
            distributed.concat_all_gather_with_grad(x.view(2, len(views[0]), -1), dim=1)
            for x in (h_MD, z_MC)
        )
        pair_N = torch.arange(n, device=index_N.device)
        pair_N[n // 4 : n // 2] -= n // 4  # partners
        clustered = recipe.gamma and recipe.prototypes == "clusters"
        self.similarity.add(
            a_NC.detach(),
            b_NC.detach(),
            self.labels[index_N],
            index_N,
            pair_N,
            self.prototypes[0][index_N] if clustered else None,
        )
        terms = {}
        if recipe.alpha:
            terms["contrastive"] = recipe.alpha * self._contrastive(a_NC, b_NC, index_N)
        if recipe.beta:
            first, partner, other = (
                h_VND[:, : n // 4],
                h_VND[:, n // 4 : n // 2],
                h_VND[:, n // 2 :],
            )
            # |h - h^| is the same for the partner, so every pair counts for both
            same, different = (
                self._distance(first, partner),
                self._distance(h_VND[:, : n // 2], other),
            )
            terms["metric"] = recipe.beta * metric_loss(self.metric(same), self.metric(different))
        if recipe.gamma:
            terms["prototype"] = recipe.gamma * self._prototypical(
                h_VND.flatten(0, 1), index_N.repeat(2)
            )
        for name, term in terms.items():
            self.terms.setdefault(name, []).append(term.detach())
        return torch.stack([*terms.values()]).sum()

    def end_epoch(self) -> dict[str, float]:
        """Returns the terms of the loss, TP and FN similarity, and the fractions of positive and of
        negative pairs that are of one true class."""
        losses = {name: float(torch.stack(values).mean()) for name, values in self.terms.items()}
        self.terms = {}
        return losses | self.similarity.epoch() | self.pair_statistics

    def renewed(self) -> list[nn.Parameter]:
        """See ``Method``."""
        return [parameter for layer in self._renewed_layers() for parameter in layer.parameters()]

    def unscheduled(self) -> list[nn.Parameter]:
        """What is re-initialised every epoch, and so has but one epoch to learn."""
        return self.renewed() if self.recipe.renewed_rate == "peak" else []

    def _renewed_layers(self) -> list[nn.Linear | _BatchNorm]:
        on_classes = self.recipe.prototypes == "labels"  # they keep their meaning
        renewed: list[nn.Module] = [] if on_classes else [self.prototype_heads]
        renewed += [self.projection, self.metric] if self.recipe.reset == "all" else []
        return [
            layer
            for head in renewed
            for layer in head.modules()
            if isinstance(layer, nn.Linear | _BatchNorm)
        ]

    def _clusterings(self) -> tuple[int, ...]:
        """The numbers of clusters for which a clustering is needed."""
        if self.recipe.prototypes == "clusters" and self.recipe.gamma:
            return self.recipe.num_prototypes
        return self.recipe.num_prototypes[:1] if self.recipe.pairs == "clusters" else ()

    def _contrastive(self, a_NC: Tensor, b_NC: Tensor, image_N: Tensor) -> Tensor:
        halves = 1 if self.recipe.negatives == "union" else 2
        parts = zip(a_NC.chunk(halves), b_NC.chunk(halves), image_N.chunk(halves), strict=True)
        return torch.stack(
            [
                contrastive_loss(a, b, image, self.recipe.temperature, self.recipe.decoupled)
                for a, b, image in parts
            ]
        ).mean()

    def _distance(self, h: Tensor, other: Tensor) -> Tensor:
        return (
            (h - other).abs()
            if self.recipe.distance == "elementwise"
            else (h - other).norm(dim=-1, keepdim=True)
        )

    def _prototypical(self, h_ND: Tensor, image_N: Tensor) -> Tensor:
        recipe = self.recipe
        prototypes = [self.labels] if recipe.prototypes == "labels" else self.prototypes
        losses = [
            (
                symmetric_cross_entropy(
                    head(h_ND), prototype_I[image_N], recipe.sce_alpha, recipe.sce_beta
                )
                if recipe.symmetric
                else prototype_loss(head(h_ND), prototype_I[image_N])
            )
            for head, prototype_I in zip(self.prototype_heads, prototypes, strict=True)
        ]
        return torch.stack(losses).mean()

    def _renew(self, epoch: int) -> None:
        """Re-initialises heads."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed.seed(self.seed, "heads", epoch))
            for layer in self._renewed_layers():
                if isinstance(layer, nn.Linear):
                    bias = layer.bias is not None
                    fresh = nn.Linear(layer.in_features, layer.out_features, bias)
                    layer.load_state_dict(fresh.state_dict())
                else:
                    layer.reset_parameters()


class _Unit(nn.Module):
    """The backbone's features, scaled to unit length."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.backbone(x), dim=1)


def _check(recipe: recipes.SPCL, labels: Tensor, num_classes: int) -> None:
    if (
        not all(0 <= weight < float("inf") for weight in (recipe.sce_alpha, recipe.sce_beta))
        or recipe.temperature <= 0
    ):
        raise UserError(
            "SPCL: --sce-alpha and --sce-beta are finite and not negative, --temperature is"
            " positive"
        )
    if recipe.whiten < 0 or recipe.niter < 1 or recipe.nredo < 1:
        raise UserError("SPCL: --whiten is 0 or more, --niter and --nredo are 1 or more")
    weights = (recipe.alpha, recipe.beta, recipe.gamma)
    if not all(0 <= weight < float("inf") for weight in weights) or not any(weights):
        raise UserError(
            f"SPCL: the weights alpha, beta, gamma are {weights}",
            hint="none may be negative, and at least one must not be 0",
        )
    if recipe.train.batch_size % 4:
        raise UserError(
            f"SPCL: a batch of {recipe.train.batch_size} does not split into quarters: pairs of one"
            " prototype and as many images of others",
            hint="--batch-size a multiple of 4",
        )
    if not recipe.num_prototypes or min(recipe.num_prototypes) < 2:
        raise UserError(f"SPCL: --num-prototypes {recipe.num_prototypes} must be 2 or more")
    if "clusters" in (recipe.pairs, recipe.prototypes) and max(recipe.num_prototypes) > len(labels):
        raise UserError(
            f"SPCL: {max(recipe.num_prototypes)} prototypes requested of {len(labels)} images",
            hint="lower --num-prototypes; the paper's 512 are for CIFAR, 2048 for ImageNet",
        )
    if "labels" in (recipe.pairs, recipe.prototypes) and num_classes < 2:
        raise UserError(
            "SPCL: --pairs or --prototypes labels need labels, and these images are all of one"
            " class",
            hint="sort the images into one folder per class",
        )


def build(recipe: recipes.SPCL, labels: Tensor, num_classes: int, seed: int) -> SPCL:
    """See method.py; labels measure, and train only where the recipe says so."""
    return SPCL(recipe, labels, num_classes, seed)
