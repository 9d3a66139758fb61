"""What a pretraining costs, computed: on cards that it was not measured on, and on a machine whose
rates were measured in seconds.

The limits of a card are what its arithmetic and its memory allow, launches, communication and input
left out, so that a real run takes longer. One pass is an image going forward through the network;
a backward pass counts as two. A pass of ResNet-50 at 224 pixels takes 8.13 GFLOP in convolutions,
which also move at least 0.095 GB, and 0.172 GB move in BatchNorm, ReLU and sums (fp32, from the
shapes of its operators). No card has run any of this."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pretrain.recipes.common import KEEP_EVERY, Recipe
from pretrain.recipes.pcl import PCL
from pretrain.recipes.spcl import SPCL

Arithmetic = Literal["ieee", "tf32"]

IMAGES = {"imagenet": 1_281_167, "cifar10": 50_000, "cifar100": 50_000}
"""Training images of the papers' data."""
POINTS_PER_PROTOTYPE = 256
"""How many images per prototype SPCL's k-means learns from at most (pretrain/spcl.py)."""
WIDTH, EMBEDDING = 2048, 128
"""Numbers of a feature of ResNet-50: pooled, which SPCL clusters, and after the head."""
KMEANS = 20 * 5
"""Passes over the images of a k-means of 20 iterations and 5 starts (protobench/kmeans.py)."""
BACKBONE_BYTES = {"resnet50": 0.1e9, "resnet18-cifar": 0.045e9}
"""Of a network's weights in fp32; the first for any other network."""


@dataclass(frozen=True)
class Card:
    """A GPU's reachable rates: about 0.9 of the published peaks of fp32 and memory, and 0.8 of
    TF32's."""

    name: str
    ieee: float
    """FLOP/s of fp32 by IEEE"""
    tf32: float
    memory: float
    """bytes/s"""


A100 = Card("A100", 17.5e12, 126e12, 1.83e12)
H100 = Card("H100", 60e12, 400e12, 3.0e12)
CARDS = (A100, H100)

PASS: dict[str, tuple[float, float, float]] = {
    "resnet50": (8.13e9, 0.095e9, 0.172e9),
    "resnet18-cifar": (1.11e9, 0.0052e9, 0.0095e9),
}
"""Network, at its usual size of images -> FLOP and bytes of a pass's convolutions, and bytes of the
rest. The bytes of the second are ResNet-50's by the ratio of the elements of their maps (0.61 to
11.1 million)."""


def passes(recipe: Recipe) -> int:
    """Passes of an image in a training step."""
    return 3 * recipe.trained_views + recipe.momentum_views


def clusterings(recipe: Recipe) -> int:
    """Epochs that begin with a clustering of all images."""
    if isinstance(recipe, PCL) and recipe.num_prototypes:
        return max(recipe.train.epochs - recipe.warmup, 0)
    if isinstance(recipe, SPCL) and recipe.gamma:
        return recipe.train.epochs
    return 0


def clustering_flops(recipe: Recipe, images: int) -> float:
    """FLOP of one clustering's distances; 0 for a recipe without."""
    if isinstance(recipe, PCL):
        runs = recipe.niter * recipe.nredo
        return 2.0 * images * sum(recipe.num_prototypes) * recipe.dim * runs
    if isinstance(recipe, SPCL):
        runs = recipe.niter * recipe.nredo
        return sum(
            2.0 * (min(images, POINTS_PER_PROTOTYPE * k) * runs + images) * k * WIDTH
            for k in recipe.num_prototypes
        )
    return 0.0


def distance_flops(evaluation: str, params: Mapping[str, Any], train: int, test: int) -> float:
    """FLOP of the distances between features that an evaluation with these parameters computes; 0
    for one whose computations on features are minutes."""
    width = WIDTH if params.get("feature") == "pooled" else EMBEDDING
    if evaluation == "knn":
        return 2.0 * test * train * width
    if evaluation == "ami":
        runs: int = params["iterations"] * params["restarts"] + 1
        return 2.0 * train * float(sum(params["num_clusters"])) * width * runs
    if evaluation == "gallery":
        return 2.0 * train * float(params["fine"] + params["coarse"]) * width * (KMEANS + 1)
    return 0.0


def pass_seconds(
    arch: str, card: Card, arithmetic: Arithmetic, *, inference: bool = False
) -> float:
    """The shortest time of a pass on a card. In inference BatchNorm is part of the convolutions."""
    flops, convolved, rest = PASS[arch]
    rate = card.ieee if arithmetic == "ieee" else card.tf32
    return max(flops / rate, convolved / card.memory) + (0 if inference else rest / card.memory)


def card_hours(recipe: Recipe, card: Card, arithmetic: Arithmetic) -> float | None:
    """The least hours of a pretraining on one card, on the paper's data; None for a network whose
    passes are not known. Clustering is in IEEE fp32."""
    if recipe.arch not in PASS or recipe.dataset not in IMAGES:
        return None
    images = IMAGES[recipe.dataset]
    trained = images * passes(recipe) * pass_seconds(recipe.arch, card, arithmetic)
    read = images * pass_seconds(recipe.arch, card, arithmetic, inference=True)
    clustered = read + clustering_flops(recipe, images) / card.ieee
    return (recipe.train.epochs * trained + clusterings(recipe) * clustered) / 3600


def checkpoint_bytes(recipe: Recipe) -> float:
    """Of one checkpoint of a pretraining: weights, the optimiser's momentum, a momentum encoder."""
    return (2 + recipe.momentum_views) * _backbone_bytes(recipe)


def training_bytes(recipe: Recipe) -> float:
    """What a table's pretraining keeps on the disk at its end, before the last two checkpoints are
    removed: these, the milestones and the encoder."""
    kept = 2 + recipe.train.epochs // KEEP_EVERY if recipe.train.epochs else 0
    return kept * checkpoint_bytes(recipe) + (1 + recipe.momentum_views) * _backbone_bytes(recipe)


def _backbone_bytes(recipe: Recipe) -> float:
    return BACKBONE_BYTES.get(recipe.arch, BACKBONE_BYTES["resnet50"])
