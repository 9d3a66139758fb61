"""Recipes of SPCL."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pretrain.recipes import simclr
from pretrain.recipes.common import (
    MINI_TRAIN,
    Recipe,
    Train,
    mini,
    on_cifar,
    small,
    small_gpu,
)


@dataclass(frozen=True)
class SPCL(Recipe):
    """Siamese prototypical contrastive learning (Mo, Sun and Li, arXiv 2208.08819). Defaults:
    section 4.1, CIFAR.

    Where the paper leaves a choice, the default is the reading taken here; pretrain/spcl.py gives
    the reasons."""

    method: ClassVar[str] = "spcl"
    dim: int = 128
    """size of the embedding after g_c"""
    temperature: float = 0.5
    """not in the paper; the released code's"""
    head_bn: bool = True
    """BatchNorm after both layers of g_c: SimCLR's, which the paper follows, and in the released
    code"""
    zero_gamma: bool = True
    """the last BatchNorm of every residual block starts with the scale 0: SimCLR's, which the paper
    follows; the released code starts with 1"""
    alpha: float = 1.0
    """weight of the contrastive loss in Eq. 5"""
    beta: float = 1.0
    """weight of the metric loss"""
    gamma: float = 1.0
    """weight of the prototypical cross-entropy"""
    num_prototypes: tuple[int, ...] = (512,)
    """K. With several, each has a head of its own, the prototype losses are averaged, and the first
    one's clusters give the pairs"""
    anchors: Literal["pairs", "step"] = "pairs"
    """every pair of images has a prototype p of its own, or the whole step shares one (Algorithm 1
    to the letter)"""
    pairs: Literal["clusters", "labels"] = "clusters"
    """labels: p and q are true classes, which is how the released code draws its pairs. A leak, to
    be measured"""
    prototypes: Literal["clusters", "labels"] = "clusters"
    """labels: the cross-entropy is on the true classes (Table 2's gamma (GT))"""
    negatives: Literal["union", "halves"] = "union"
    """of Eq. 1: all other images (the equation), or those of the same half, p or q (the released
    code)"""
    decoupled: bool = False
    """Eq. 1 to the letter: its denominator is without the positive, unlike NT-Xent's"""
    distance: Literal["elementwise", "norm"] = "elementwise"
    """what g_m sees of two features: the vector of absolute differences, or its length (Eq. 3 to
    the letter)"""
    metric_head: Literal["mlp", "linear"] = "mlp"
    """g_m: two layers, as Table 1's 36 million parameters have it, or one (released code)"""
    reset: Literal["prototype", "all"] = "prototype"
    """heads re-initialised every epoch: g_p, whose outputs lose their meaning, or all three
    (Algorithm 1 to the letter)"""
    renewed_rate: Literal["peak", "scheduled"] = "peak"
    """learning rate of the heads re-initialised every epoch: the peak rate throughout, or the
    schedule's (the paper to the letter)"""
    symmetric: bool = False
    """symmetric cross-entropy on the prototypes (Wang et al., ICCV 2019)"""
    sce_alpha: float = 0.1
    """weight of its usual cross-entropy (released code; Wang et al. have 6 on CIFAR-100)"""
    sce_beta: float = 1.0
    """weight of its reverse cross-entropy (released code; Wang et al. have 0.1 on CIFAR-100)"""
    whiten: int = 0
    """number of PCA dimensions that features are whitened to before clustering (released code:
    256); 0: no whitening"""
    niter: int = 20
    nredo: int = 1
    """k-means iterations and restarts (released code)"""


IMAGENET = SPCL(
    augment=simclr.PAPER.augment,
    temperature=0.1,
    num_prototypes=(2048,),
    train=Train(
        batch_size=1024,
        lr=1.0,
        schedule="cosine",
        warmup_epochs=10,
        optimizer="lars",
        weight_decay=1e-6,
    ),
)
"""SPCL, section 4.1. The temperature is SimCLR's and the warm-up that of CIFAR, as the paper gives
neither; the rate is 1.0 as printed, not per 256 images."""
CIFAR10, CIFAR100 = on_cifar(SPCL(), "cifar10"), on_cifar(SPCL(), "cifar100")

MINI = mini(
    IMAGENET,
    dim=64,
    num_prototypes=(100,),
    temperature=0.2,
    train=replace(MINI_TRAIN, lr=0.24),
)
"""K: five clusters per category, 40 images each (the paper on CIFAR: 51 and 98); PCL's middle
one."""

SMALL, SMALL_GPU = small(MINI), small_gpu(CIFAR10)

RECIPES = {
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "imagenet": IMAGENET,
    "mini": MINI,
    "small": SMALL,
    "small-gpu": SMALL_GPU,
}
