"""How much GPU memory a recipe needs, computed from the shapes of its network; nothing is run.

A training step is at its peak when the backward pass begins. What is kept then:

- The maps of every view with a backward pass: per convolution its output, which BatchNorm's
  backward pass reads, and what ReLU makes of it, the next convolution's input. (The shortcut's
  BatchNorm is added, so only its input is kept.) In bf16 they have half the size.
- Weights, gradients, the optimiser's momentum, and the gradients with weight decay that an update
  makes; the weights of a momentum encoder; under torchrun DistributedDataParallel's copy of the
  gradients; in bf16 a copy of the weights.
- Logits: autograd keeps about four matrices of [images, vectors compared].
- The images; under torchrun a momentum encoder's of the global batch, which are shuffled.

Left out: cuDNN's workspaces, CUDA's context, NCCL's buffers and the allocator's fragments, which
``RESERVED_GIB`` stands for, and heads, below 0.3 GiB. ResNet-50 at 224 pixels, beside the peaks
that torch's operators gave when they were run on shapes alone (FakeTensorMode; no GPU):

                      one GPU, fp32 / bf16     share of 8 GPUs
    MoCo v2, 256      21.5 / 11.5              3.5 / 2.2
    PCL v2, 256       21.6 / 11.6              3.6 / 2.2
    SimCLR, 256       41.9 / 21.8              5.5 / 3.0
    SPCL, 1024        167  / 86                21.2 / 11.2
    Supervised, 256   20.9 / 10.9              2.9 / 1.7

in GiB; a test holds this module to within a tenth of them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pretrain.recipes.common import Recipe, check_share
from protobench.runtime.errors import UserError
from protobench.runtime.notices import notice

if TYPE_CHECKING:  # imports torch, which a plan does without until it asks for memory
    from protobench.checkpoints.resnet import Arch

RESERVED_GIB = 1.5
"""CUDA's context, workspaces and fragments; estimated, measured nowhere."""
MOST_GPUS = 64
GIB = 2**30


@dataclass(frozen=True)
class Convolution:
    """One convolution with its BatchNorm, for one image."""

    weights: int
    out: int
    """elements of its output"""
    channels: int
    shortcut: bool = False

    @property
    def flops(self) -> int:
        """Operations of a forward pass; a multiplication and an addition are two."""
        return 2 * self.weights * self.out // self.channels


def peak_gib(recipe: Recipe, gpus: int = 1) -> float:
    """The GiB of memory that a training step needs on each of ``gpus``, which share the batch;
    computed. 0 for a recipe without epochs."""
    from protobench.checkpoints.resnet import named

    train = recipe.train
    if not train.epochs:
        return 0.0
    layers = list(convolutions(named(recipe.arch), recipe.augment.size))
    images, half = train.batch_size / gpus, train.precision == "bf16"
    kept = sum(layer.out * (1 if layer.shortcut else 2) for layer in layers)
    pooled = layers[0].out // 4 if named(recipe.arch).stem == "imagenet" else 0
    of_view = kept * (2 if half else 4) + pooled * ((2 if half else 4) + 8)  # and int64 indices
    image = 3 * recipe.augment.size**2 * 4
    weights = sum(layer.weights + 2 * layer.channels for layer in layers)
    copies = 4 + (recipe.momentum_views > 0) + (gpus > 1) + half / 2
    logits = images * recipe.trained_views * recipe.compared * 4 * 4
    views = images * recipe.trained_views * (image + of_view)
    gathered = images * (1 + gpus * (gpus > 1)) * recipe.momentum_views * image
    return (views + gathered + copies * weights * 4 + logits) / GIB


def convolutions(arch: "Arch", size: int) -> Iterator[Convolution]:
    """The network's convolutions, for images of ``size`` pixels."""
    from protobench.checkpoints.resnet import STEMS

    kernel, stride, padding = STEMS[arch.stem]
    side = (size + 2 * padding - kernel) // stride + 1
    yield Convolution(3 * arch.width * kernel**2, arch.width * side**2, arch.width)
    side = -(-side // 2) if arch.stem == "imagenet" else side
    channels = arch.width
    for stage, depth in enumerate(arch.depths):
        planes = arch.width * 2**stage
        outputs = planes * (4 if arch.block == "bottleneck" else 1)
        for block in range(depth):
            before = side
            side = -(-side // 2) if stage and not block else side
            if arch.block == "bottleneck":
                inner = planes * arch.inner  # the 3x3 convolution has the stride
                shapes = [(1, channels, inner, before), (3, inner, inner, side)]
                shapes.append((1, inner, outputs, side))
            else:
                shapes = [(3, channels, planes, side), (3, planes, planes, side)]
            for kernel, taken, given, of_side in shapes:
                yield Convolution(taken * given * kernel**2, given * of_side**2, given)
            if before != side or channels != outputs:
                yield Convolution(channels * outputs, outputs * side**2, outputs, shortcut=True)
            channels = outputs


def fits(recipe: Recipe, gpus: int, gib: float) -> bool:
    """Whether a step fits on GPUs of ``gib`` GiB, as computed, with some memory reserved."""
    return peak_gib(recipe, gpus) + RESERVED_GIB <= gib


def gpus_needed(recipe: Recipe, gib: float) -> int | None:
    """The smallest number of GPUs of ``gib`` GiB that can share the recipe's batch and that it fits
    on, as computed; None where no number up to ``MOST_GPUS`` does."""
    numbers = range(1, MOST_GPUS + 1)
    return next((n for n in numbers if _splits(recipe, n) and fits(recipe, n, gib)), None)


def _splits(recipe: Recipe, gpus: int) -> bool:
    try:
        check_share(recipe, gpus)
    except UserError:
        return False
    return True


def advice(recipe: Recipe, gib: float) -> str:
    """What makes the recipe fit on GPUs of ``gib`` GiB."""
    ways = []
    if (gpus := gpus_needed(recipe, gib)) and gpus > 1:
        share = peak_gib(recipe, gpus)
        ways.append(
            f"use {gpus} GPUs (torchrun --nproc_per_node {gpus}), which take {share:.1f} GiB each"
            " and keep the protocol"
        )
    half = replace(recipe, train=replace(recipe.train, precision="bf16"))
    if recipe.train.precision != "bf16" and (gpus := gpus_needed(half, gib)):
        needs = f"{peak_gib(half, gpus):.1f} GiB{f' on each of {gpus} GPUs' if gpus > 1 else ''}"
        ways.append(f"--precision bf16 (off protocol) takes {needs}")
    return "; ".join(ways) or "take GPUs with more memory; a smaller --batch-size is another recipe"


def check(recipe: Recipe, gpus: int, gib: float) -> None:
    """Raises UserError where the recipe's batch cannot fit on ``gpus`` GPUs of ``gib`` GiB, before
    the first step does; says so where it is close. Memory is computed, so only what exceeds the
    whole GPU is refused."""
    needed = peak_gib(recipe, gpus)
    share = f"{recipe.method}: a batch of {recipe.train.batch_size} in {recipe.train.precision}"
    share += f" on {gpus} GPUs" if gpus > 1 else ""
    told = f"{share} needs {needed:.1f} GiB a GPU (computed), and the GPU has {gib:.1f}"
    if needed > gib:
        raise UserError(told, hint=advice(recipe, gib))
    if not fits(recipe, gpus, gib):
        notice(f"warning: {told}: it may run out of memory; {advice(recipe, gib)}")
