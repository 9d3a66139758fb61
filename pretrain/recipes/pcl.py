"""Recipes of PCL, which builds on MoCo."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pretrain.recipes import moco
from pretrain.recipes.common import MINI_TRAIN, Train, mini, small, small_gpu
from pretrain.recipes.moco import MoCo


@dataclass(frozen=True)
class PCL(MoCo):
    """Prototypical contrastive learning (Li et al., 2020). The paper's r, the number of negatives,
    is both ``queue`` and ``num_negatives``."""

    method: ClassVar[str] = "pcl"
    queue: int = 16384
    """paper: r = 16000, which is no multiple of the batch of 256; the released code uses 16384"""
    bn_groups: int = 4
    """the authors trained on 4 GPUs (salesforce/PCL, issue 2), so BatchNorm saw 64 images; their
    README allows 8 GPUs with the same batch, which is --bn-groups 8"""
    temperature: float = 0.1
    num_prototypes: tuple[int, ...] = (25_000, 50_000, 100_000)
    """K, one clustering each; none: MoCo"""
    num_negatives: int = 16384
    """negative prototypes per step; all of them where there are not that many"""
    alpha: float = 10.0
    """smoothing of small clusters in Eq. 12"""
    warmup: int = 20
    """epochs of InfoNCE alone"""
    concentration: Literal["estimated", "fixed"] = "estimated"
    """fixed: phi = temperature for every prototype (Figure 3a's comparison)"""
    singleton_rule: bool = True
    """clusters of one image get the largest phi (released code, not in the paper)"""
    clip_percentiles: tuple[float, float] = (10.0, 90.0)
    """phi is clipped to these before it is scaled (released code, not in the paper); 0 100 switches
    it off"""
    niter: int = 20
    nredo: int = 5
    """k-means iterations and restarts (released code)"""

    @property
    def compared(self) -> int:
        """See ``Recipe``."""
        return self.queue + sum(min(k, self.num_negatives) for k in self.num_prototypes)


V1 = PCL()
"""temperature 0.1 as the paper says; the released command line defaults to 0.2."""
V2 = replace(
    V1, temperature=0.2, mlp=True, augment=moco.V2_AUGMENT, train=Train(schedule="cosine-epoch")
)

MINI = mini(
    V1,
    **moco.MINI_FIELDS,
    num_prototypes=(50, 100, 200),
    num_negatives=512,
    warmup=2,
    temperature=0.2,
    train=replace(MINI_TRAIN, lr=0.06),
)
"""K: 2.5, 5 and 10 clusters per category (the paper: 25, 50, 100); a tenth of the epochs as
warm-up, as in the paper."""
MINI_V2 = replace(MINI, mlp=True, temperature=0.1, train=replace(MINI_TRAIN, lr=0.03))

SMALL, SMALL_V2 = small(MINI), small(MINI_V2)
"""K: 5, 10 and 20 clusters per class."""
SMALL_GPU = small_gpu(
    V1,
    **moco.SMALL_GPU_FIELDS,
    num_prototypes=(250, 500, 1000),
    num_negatives=4096,
    warmup=10,
)
"""As MoCo; K: 25, 50 and 100 clusters per class, and a tenth of the epochs as warm-up, as in the
paper."""
SMALL_GPU_V2 = replace(SMALL_GPU, mlp=True, temperature=V2.temperature)
"""No blur, which MoCo v2 adds: the pictures are of 32 pixels."""

RECIPES = {
    "v1": V1,
    "v2": V2,
    "mini": MINI,
    "mini-v2": MINI_V2,
    "small": SMALL,
    "small-v2": SMALL_V2,
    "small-gpu": SMALL_GPU,
    "small-gpu-v2": SMALL_GPU_V2,
}
