"""What the recipes of all methods share: how views are made, how a method is optimised, and the key
of a run.

A recipe is a frozen dataclass, and a variant is another value of it, not a branch in the code. This
package imports no torch, so that plans and ``--help`` are instant.

Each method has recipes of the paper's tier and, beside them, of the mini tier for the bundled
synthetic data, with the reason for each change. The mini tier's rates and temperatures were chosen
once, with the same budget and rule for every method, in a world that no result uses
(pretrain/tuning.py; the log is results/tuning.csv). Queue and momentum come from earlier trials of
**MoCo** on a prototype of the data, by kNN accuracy; PCL inherits them, and SimCLR and SPCL have
neither. What was *not* blind: among five designs of the data, the one shipped was chosen after
PCL's lead over MoCo had been seen on four (PCL led on this one only), so "PCL > MoCo" on bundled
data is a statement about this design, not evidence in general.

The tiers on real pictures come last: ``small`` and ``small_gpu``. Nothing in them was tuned."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeVar

from protobench.data.image_list import ImageList
from protobench.data.transforms import NORMALISATIONS, EvalInput
from protobench.runtime import files
from protobench.runtime.errors import UserError

KEEP_EVERY = 50
"""Epochs between two checkpoints that are kept for good."""
VERSION = 3
"""Raise when a run's result changes for equal recipe, data and seed."""


@dataclass(frozen=True)
class Augment:
    """Random views of an image. jitter: brightness, contrast, saturation, hue."""

    size: int = 224
    """side of a view, pixels"""
    min_area: float = 0.2
    """random resized crop: smallest fraction of the image's area"""
    flip: float = 0.5
    """probability of a horizontal flip"""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.4)
    jitter_p: float = 1.0
    grayscale: float = 0.2
    """probability of dropping colour"""
    grayscale_first: bool = True
    """before the jitter, as in MoCo v1's code; MoCo v2 and SimCLR drop colour after it"""
    blur: float = 0.0
    """probability of a Gaussian blur, sigma 0.1 to 2 pixels"""
    profile: Literal["faithful", "raw"] = "faithful"
    """how views of image files are made. faithful: torchvision's pixels, as published. raw: crops
    of decoded images in a cache (short side 256, 0.26 MB each), colours and blur on the device; off
    protocol"""


@dataclass(frozen=True)
class Train:
    """How a method is optimised. Defaults: MoCo v1, which PCL follows (PCL, appendix A)."""

    epochs: int = 200
    batch_size: int = 256
    """global batch"""
    lr: float = 0.03
    schedule: Literal["step", "cosine", "cosine-epoch"] = "step"
    """step: x0.1 at the milestones; cosine per step, or per epoch as in MoCo v2's code"""
    milestones: tuple[int, ...] = (120, 160)
    warmup_epochs: int = 0
    """linear warm-up of the learning rate"""
    optimizer: Literal["sgd", "lars"] = "sgd"
    sgd_momentum: float = 0.9
    weight_decay: float = 1e-4
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """precision of the networks, in training steps and in feature extraction for clustering;
    weights and losses are always fp32. fp32 is IEEE's, on GPUs too, as in the papers. tf32:
    convolutions on a GPU round their inputs to TF32, which is torch's own default there. bf16: by
    autocast. Both are off protocol"""
    compile: bool = False
    """compile the networks with torch.compile: a minute or two once, then faster steps on a GPU"""


@dataclass(frozen=True)
class Recipe:
    """What all methods share. A subclass adds its own fields; ``method`` names its module in
    pretrain/ and in this package."""

    method: ClassVar[str]
    trained_views: ClassVar[int] = 2
    """views of an image in a step that have a backward pass"""
    momentum_views: ClassVar[int] = 0
    """views that pass a momentum encoder, without one"""
    arch: str = "resnet50"
    dataset: str = "imagenet"
    """what it is trained on: a data set with one label per image, such as imagenet, cifar10 or
    cifar100"""
    augment: Augment = field(default_factory=Augment)
    input: EvalInput = field(default_factory=EvalInput)
    """centre crops: for PCL's E-step, and for every evaluation"""
    train: Train = field(default_factory=Train)

    @property
    def batch_norm_groups(self) -> int:
        """In how many groups, each with statistics of its own, BatchNorm sees the global batch."""
        return 1

    @property
    def compared(self) -> int:
        """With how many vectors each view is compared in a step."""
        return 2 * self.train.batch_size

    def check_images(self, images: ImageList) -> None:
        """UserError where there are too few images."""
        if len(images) < self.train.batch_size:
            raise UserError(
                f"{images.name} has {len(images)} images, less than one batch of"
                f" {self.train.batch_size}",
                at=images.root,
                hint="lower --batch-size",
            )


R = TypeVar("R", bound=Recipe)


# Keys ---------------------------------------------------------------------------------------------


def run_key(recipe: Recipe, images: ImageList | None, seed: int) -> str:
    """SHA-256 of a run's ``identity``."""
    return files.sha256(identity(recipe, images, seed))


def identity(recipe: Recipe, images: ImageList | None, seed: int) -> dict[str, Any]:
    """Everything that determines a run's weights on one kind of device, whatever the number of
    processes.

    A recipe without epochs (the Random row) depends on no images. The name of the data set is left
    out, since the fingerprint of its images is in."""
    return {
        "version": VERSION,
        "method": recipe.method,
        "recipe": {name: value for name, value in asdict(recipe).items() if name != "dataset"},
        "seed": seed,
        "data": images.fingerprint if images and recipe.train.epochs else None,
    }


# Checks -------------------------------------------------------------------------------------------


def check(recipe: Recipe) -> None:
    """UserError for values of training or augmentation that make no sense."""
    train = recipe.train
    if train.epochs < 0 or train.batch_size < 2:
        raise UserError(
            f"{train.epochs} epochs of batches of {train.batch_size}",
            hint="--epochs from 0, --batch-size from 2",
        )
    if not (
        0 < train.lr < float("inf")
        and 0 <= train.weight_decay < float("inf")
        and 0 <= train.sgd_momentum < float("inf")
    ):
        raise UserError(
            f"--lr {train.lr:g}, --weight-decay {train.weight_decay:g}, --sgd-momentum"
            f" {train.sgd_momentum:g}",
            hint="--lr is positive, the others are not negative, and all are finite",
        )
    augment = recipe.augment
    if not all(
        0 <= p <= 1 for p in (augment.flip, augment.jitter_p, augment.grayscale, augment.blur)
    ):
        raise UserError("--flip, --jitter-p, --grayscale and --blur are probabilities, from 0 to 1")
    if augment.size < 1 or not 0 < augment.min_area <= 1:
        raise UserError(
            f"views of --size {augment.size} from --min-area {augment.min_area}",
            hint="--size from 1, --min-area above 0 and at most 1",
        )
    if not all(0 <= x < float("inf") for x in augment.jitter) or augment.jitter[3] > 0.5:
        raise UserError(
            f"--jitter {augment.jitter}: brightness, contrast and saturation are from 0, hue is"
            " from 0 to 0.5"
        )


def check_share(recipe: Recipe, processes: int) -> None:
    """UserError where the global batch cannot be split over this many processes."""
    size, groups = recipe.train.batch_size, recipe.batch_norm_groups
    if size % processes:
        raise UserError(
            f"{recipe.method}: a batch of {size} images does not split over {processes} processes",
            hint="use another number of GPUs; another --batch-size is another recipe",
        )
    if groups > 1 and groups % processes:
        raise UserError(
            f"{recipe.method}: its {groups} BatchNorm groups do not split over {processes}"
            " processes",
            hint=f"a number of GPUs that divides {groups}; another --bn-groups is another recipe",
        )


# The settings of SPCL's CIFAR experiments ---------------------------------------------------------


CIFAR_VIEWS = Augment(
    size=32, min_area=0.08, jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=0.8, grayscale_first=False
)


def cifar_input(dataset: str) -> EvalInput:
    """Whole images, normalised by the mean and the deviation of cifar10 or cifar100."""
    return EvalInput(32, 32, *NORMALISATIONS[dataset])


def on_cifar(recipe: R, dataset: str) -> R:
    """``recipe`` with the network, views and optimiser of SPCL's section 4.1, on cifar10 or
    cifar100.

    "Closely follow SimCLR": its augmentation for CIFAR (half strength, no blur). The paper says
    ResNet-50; its Supervised 93.0 and SimCLR 92.0 are those of a ResNet-18, which its code has.
    --arch resnet50-cifar is the network as stated. The notes of tables/spcl/table2.py say where
    SPCL's released code and SimCLR's own command for CIFAR differ."""
    return replace(
        recipe,
        arch="resnet18-cifar",
        dataset=dataset,
        input=cifar_input(dataset),
        augment=CIFAR_VIEWS,
        train=Train(
            epochs=1000,
            batch_size=512,
            lr=1.0,
            schedule="cosine",
            warmup_epochs=10,
            optimizer="lars",
            weight_decay=1e-6,
        ),
    )


# The mini tier: the bundled synthetic data --------------------------------------------------------

MINI_TRAIN = Train(epochs=20, batch_size=128, schedule="cosine", warmup_epochs=1)
"""20 epochs of 4000 images decide as much per seed as 40 do, in half the time. In a trial, paired
leads of one method over another (their mean divided by their standard deviation over seeds) were
2.2 after 20 epochs and 1.9 after 40 for VOC07's low-shot SVMs at k = 16, and 8 and 1.6 for SVMs on
all images. Cosine suits short runs, where the paper's two drops would come after too few steps."""


def mini(recipe: R, **changes: Any) -> R:
    """``recipe`` for the bundled synthetic data, with further ``changes``.

    40-pixel images need no ResNet-50, and two cores could not train one. No flip: digits and arrows
    would change their meaning. No blur: strokes are two pixels wide. Hue 0.3, grayscale 0.3: colour
    says nothing about the category, and with weaker jitter colour alone would solve instance
    discrimination."""
    return replace(
        recipe,
        arch="resnet10-mini",
        input=EvalInput(resize=36, crop=32),
        augment=Augment(
            size=32,
            min_area=0.4,
            flip=0.0,
            jitter=(0.5, 0.5, 0.5, 0.3),
            jitter_p=0.8,
            grayscale=0.3,
            grayscale_first=False,
        ),
        **changes,
    )


# The tiers on real pictures: CIFAR-10 -------------------------------------------------------------


def small(recipe: R) -> R:
    """A ``recipe`` of the mini tier for 10,000 pictures of CIFAR-10, which a CPU can train on.

    Network, optimiser, rate, temperature and every other value of the method stay as they are: they
    were chosen by one rule for all methods on other data, so none fits CIFAR-10 better for having
    been tried on it. Input and views are CIFAR's, as the reasons for the mini tier's own (digits
    must not be flipped, colour says nothing) are not true of photographs."""
    return replace(recipe, dataset="cifar10-10k", input=cifar_input("cifar10"), augment=CIFAR_VIEWS)


SMALL_GPU_TRAIN = Train(
    epochs=100,
    batch_size=512,
    lr=0.24,
    schedule="cosine",
    warmup_epochs=5,
    weight_decay=5e-4,
    precision="bf16",
)
"""One optimiser for all methods, from a public benchmark that trains MoCo and SimCLR on CIFAR-10
alike (lightly, cifar10_benchmark.py: SGD, rate 0.06 per 128 images, weight decay 5e-4, cosine).
Half of its 200 epochs, and bf16, so that one pretraining of every row of a table fits into an hour
on one GPU; warm-up is a twentieth, as in the mini tier."""


def small_gpu(recipe: R, **changes: Any) -> R:
    """``recipe`` for all 50,000 training pictures of CIFAR-10 on one GPU, with further ``changes``:
    ResNet-18 with CIFAR's stem, ``CIFAR_VIEWS``, and ``SMALL_GPU_TRAIN`` whatever the method."""
    return replace(
        recipe,
        arch="resnet18-cifar",
        dataset="cifar10",
        input=cifar_input("cifar10"),
        augment=CIFAR_VIEWS,
        train=SMALL_GPU_TRAIN,
        **changes,
    )
