"""Does the input's normalisation fit the weights? The first BatchNorm remembers how large the first
convolution's outputs were in training; images that are normalised otherwise give outputs of another
size.

Measured (benchmarks/normalisation.py): 28 encoders, trained on the bundled synthetic data and on
CIFAR-10 under five normalisations, and a published ResNet-50, on the bundled data's images,
CIFAR-10 and photographs. Under the right normalisation the outputs' variance was 0.42 to 1.6 times
the remembered one; on the bundled scenes, which have little contrast, 0.17 to 0.36 times. With
ImageNet's normalisation taken for none it was at least 7.7 times (on the scenes 3.2 to 6.6), with
none taken for ImageNet's at most 0.09 times. With 0.5 and 0.5 taken for ImageNet's it was 0.09 to
0.32, or in reverse 2.2 to 6.5 times: that is doubted at most. The shift of the mean does not tell:
up to 0.9 standard deviations for the right normalisation on other images than those of the
training, and as little as 0.2 for a wrong one."""

import math
from dataclasses import replace

import numpy as np
import torch

from protobench.checkpoints.encoders import Encoder
from protobench.checkpoints.load_report import InputFit
from protobench.checkpoints.resnet import ResNet
from protobench.data.image_list import ImageList
from protobench.data.loading import CentreCrops, batches, normaliser
from protobench.data.transforms import NORMALISATIONS, EvalInput
from protobench.runtime.errors import UserError
from protobench.runtime.notices import notice

IMAGES = 32
LEAST, MOST = 0.1, 3.0
"""Ratios of variances between these raise no doubt: images may have less contrast than those of
the training, hardly more."""
CONTRADICTS = 6.0
"""Above this ratio, or below LEAST, an assumed normalisation counts as wrong if another usual one
fits."""
OTHERS = {
    **NORMALISATIONS,
    "0.5,0.5,0.5,0.5,0.5,0.5": ((0.5,) * 3, (0.5,) * 3),
    "0,0,0,0.00392157,0.00392157,0.00392157": ((0.0,) * 3, (1 / 255,) * 3),
}
"""What the normalisation may be instead, as --normalisation takes it: the named ones, and those
that give -1 to 1 and 0 to 255."""


def verify(encoder: Encoder, images: ImageList, input_: EvalInput) -> None:
    """Compares the assumed normalisation with the weights, once per encoder, on up to 32 images
    spread over a list.

    Sets ``encoder.report.input_fit`` and warns on the terminal if there is a doubt. Raises
    UserError if the normalisation was assumed, contradicts the weights, and another one fits them.
    Says nothing of a BatchNorm that was never trained, nor of a vision transformer: LayerNorm
    remembers nothing."""
    report = encoder.report
    if report.input_fit or report.untouched or not isinstance(encoder.backbone, ResNet):
        return
    if not bool((_remembered(encoder.backbone) > 0).any()):
        return
    sample = images.subset(np.unique(np.linspace(0, len(images) - 1, IMAGES).astype(int)))
    (pixels,) = batches(
        CentreCrops(sample, input_), workers=0, device="cpu", batch_size=len(sample)
    )
    ratio = variance_ratio(encoder.backbone, pixels, input_.mean, input_.std)
    report.input_fit = InputFit(len(sample), float(f"{ratio:.3g}"))
    if LEAST <= ratio <= MOST:
        return
    ratios = {
        name: variance_ratio(encoder.backbone, pixels, mean, std)
        for name, (mean, std) in OTHERS.items()
    }
    best = min(ratios, key=lambda name: abs(math.log(ratios[name])))
    fits = LEAST <= ratios[best] <= MOST
    doubt = (
        f"the input's normalisation does not fit the weights: on {len(sample)} images of"
        f" {images.name} the outputs of the first convolution have {ratio:.2g} times the variance"
        " that its BatchNorm has seen in training"
    )
    if not LEAST <= ratio <= CONTRADICTS and fits and not encoder.input_certain:
        raise UserError(
            doubt,
            at=report.file,
            hint=(
                f"--normalisation {best} fits best of the usual ones. Mean {input_.mean} and std"
                f" {input_.std} were only assumed, for {report.origin}; if they are right after"
                " all, give them as six numbers"
            ),
        )
    report.input_fit = replace(report.input_fit, doubt=doubt)
    notice(f"warning: {doubt}" + (f"; --normalisation {best} would fit" if fits else ""))


def variance_ratio(
    backbone: ResNet, pixels_N3HW: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> float:
    """Variance of the first convolution's outputs over the one that BatchNorm remembers, median
    over channels. Pixels: uint8."""
    normalise = normaliser(EvalInput(mean=mean, std=std), "cpu")  # type: ignore[arg-type]
    with torch.inference_mode():
        seen_C = backbone.conv1(normalise(pixels_N3HW)).var((0, 2, 3))
        remembered_C = _remembered(backbone)
        alive_C = remembered_C > 1e-12 * remembered_C.max()
        return float(
            (seen_C[alive_C].clamp_min(1e-30) / remembered_C[alive_C]).log().median().exp()
        )


def _remembered(backbone: ResNet) -> torch.Tensor:
    """The first BatchNorm's variances [C]."""
    variance_C = backbone.bn1.running_var
    assert variance_C is not None, "every backbone here keeps statistics"
    return variance_C
