"""Recipes of MoCo."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pretrain.recipes.common import (
    MINI_TRAIN,
    Augment,
    Recipe,
    Train,
    mini,
    small,
    small_gpu,
)
from protobench.data.image_list import ImageList
from protobench.runtime.errors import UserError


@dataclass(frozen=True)
class MoCo(Recipe):
    """Momentum contrast (He et al., CVPR 2020)."""

    method: ClassVar[str] = "moco"
    trained_views: ClassVar[int] = 1
    momentum_views: ClassVar[int] = 1
    dim: int = 128
    """size of the embedding"""
    queue: int = 65536
    """number of negatives kept; a multiple of the batch size"""
    momentum: float = 0.999
    """momentum of the key encoder"""
    bn_groups: int = 8
    """BatchNorm sees the batch in this many groups, with the keys shuffled among them: what the
    original did on 8 GPUs, so that a query cannot find its key by their common statistics; 1
    switches it off"""
    temperature: float = 0.07
    mlp: bool = False
    """projection head of two layers (MoCo v2, PCL v2) instead of one"""

    @property
    def batch_norm_groups(self) -> int:
        """See ``Recipe``."""
        return self.bn_groups

    @property
    def compared(self) -> int:
        """See ``Recipe``."""
        return self.queue

    def check_images(self, images: ImageList) -> None:
        """See ``Recipe``; the queue must not be larger than the data set."""
        super().check_images(images)
        if self.queue > len(images):
            raise UserError(
                f"a queue of {self.queue} negatives for {images.name}'s {len(images)} images",
                at=images.root,
                hint="lower --queue: the same image would be in it several times",
            )


V2_AUGMENT = Augment(jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=0.8, grayscale_first=False, blur=0.5)
"""MoCo v2's; PCL v2: "stronger data augmentation with additional Gaussian blur" (appendix A)."""

V1 = MoCo()
V2 = replace(
    V1, temperature=0.2, mlp=True, augment=V2_AUGMENT, train=Train(schedule="cosine-epoch")
)

MINI_FIELDS: dict[str, Any] = {
    "dim": 64,
    "queue": 512,
    "momentum": 0.99,
    "bn_groups": 1,
}
"""620 steps in all: a queue of an eighth of the data and an encoder average over 100 steps.
BatchNorm over the whole batch: groups of 32 made no difference in a trial (kNN 64.5 against 65.4)
and cost time."""
MINI = mini(V1, **MINI_FIELDS, temperature=0.1, train=replace(MINI_TRAIN, lr=0.06))

SMALL = small(MINI)
SMALL_GPU_FIELDS: dict[str, Any] = {
    "queue": 4096,
    "momentum": 0.99,
    "bn_groups": 8,
    "temperature": 0.1,
}
"""MoCo's own values on CIFAR-10, as lightly's benchmark has them."""
SMALL_GPU = small_gpu(V1, **SMALL_GPU_FIELDS)

RECIPES = {"v1": V1, "v2": V2, "mini": MINI, "small": SMALL, "small-gpu": SMALL_GPU}
